"""The server of the live page: what it answers, and to whom.

The one decision: it only reads, and only what it was given: an address names a run by an id that is looked up, a sample
by a key of that run. Nothing that it is sent becomes a path, a query or a piece of HTML.
"""

from __future__ import annotations

import json
import logging
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from typing import Any

from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from curation.dashboard import page, rows, samples, search
from curation.dashboard.gate import Gate
from curation.dashboard.near import MOST
from curation.dashboard.page import Listed
from curation.dashboard.rows import MOST_ROWS, NotHere
from curation.dashboard.runs import DAMAGE, Failure, Look, Run, Runs
from curation.dashboard.whatif import charts_of
from curation.report.compare import compare, must_compare
from curation.report.markup import visible
from curation.unit import describe

_TYPES = {"js": "text/javascript; charset=utf-8", "css": "text/css; charset=utf-8"}
_TEXT, _CHANGES, _OFFSET = 200, 40, 10_000
_NUMBER = re.compile(r"-?[0-9]{1,16}(?:\.[0-9]{1,30})?(?:[eE][-+]?[0-9]{1,3})?\Z")
_LOG = logging.getLogger("curation.dashboard")


class Bad(ValueError):
    """A request that cannot be meant so: one line."""


class Dashboard:
    """The pages of some runs. where: the folders, as they were given."""

    def __init__(self, runs: Runs, where: Sequence[str], profiles: str = "pipelines.yaml") -> None:
        self.runs, self.where, self.profiles = runs, ", ".join(where), profiles
        self._files = _static()

    def app(self, token: str | None, port: int) -> Gate:
        """The ASGI application behind its gate."""
        run = "/run/{run}"
        routes = [
            Route("/", _page(self.index)),
            Route("/live", _json(self.index_live)),
            Route("/static/{name:path}", self.static),
            Route(run, _page(self.run)),
            Route(f"{run}/compare", _page(self.compare)),
            *(
                Route(f"{run}/{name}", _json(getattr(self, name)))
                for name in ("live", "scores", "near", "count", "search")
            ),
            Route(f"{run}/sample/{{key}}", _json(self.sample)),
            Route(f"{run}/picture/{{key}}", _json(self.picture)),
        ]
        return Gate(Starlette(routes=routes, exception_handlers={HTTPException: _http_error}), token, port)

    # --- pages ---

    def index(self, request: Request) -> Response:
        return _html(page.runs_page(self._listed(), self.where))

    def run(self, request: Request) -> Response:
        run, look = self._look(request)
        return _html(page.run_page(run, look, self._others(run, look)))

    def compare(self, request: Request) -> Response:
        run, look = self._look(request)
        other = self._run(request.query_params.get("with", ""))
        if look.shown.totals.listed > MOST_ROWS:
            raise TooMany(
                f"runs of more than {MOST_ROWS:,} rows are compared by a command: "
                f"python -m curation report {look.opened.output.uri} --compare {other.output.uri}"
            )
        comparison = compare(look.shown, other.look().opened, partial=True)
        return _html(page.compare_page(run, look, comparison))

    def static(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in self._files:
            return _error("there is no such file", 404)
        return Response(
            self._files[name],
            media_type=_TYPES[name.rpartition(".")[2]],
            headers={"Cache-Control": "private, max-age=300"},
        )

    # --- what scripts ask for ---

    def index_live(self, request: Request) -> Response:
        listed = self._listed()
        version = "+".join(each.look.version if each.look is not None else "0" for each in listed)
        at_work = any(each.look is not None and each.look.at_work for each in listed)
        return _live(request, version, at_work, lambda: {"runs": page.runs_fragment(listed)})

    def live(self, request: Request) -> Response:
        _, look = self._look(request)
        return _live(request, look.version, look.at_work, lambda: page.fragments(look))

    def scores(self, request: Request) -> Response:
        run, look = self._look(request)
        totals = look.shown.totals
        command = ["python", "-m", "curation", "rescore", look.opened.name]
        if self.profiles != "pipelines.yaml":
            command += ["--config", self.profiles]
        return JSONResponse(
            {
                "version": look.version,
                "seen": totals.seen,
                "kept": totals.kept,
                "retention": totals.retention,
                "target": look.shown.target,
                "paper": page.paper_of(look.shown),
                "countable": totals.listed <= MOST_ROWS,
                "rescore": visible(shlex.join(command)),
                "own": [f"{name}={json.dumps(value)}" for name, value in self._own(run, look)],
                "charts": [
                    {**chart, "title": visible(chart["title"], 100), "note": visible(chart["note"], 400)}
                    for chart in charts_of(look.shown, run.rules)
                ],
            }
        )

    def near(self, request: Request) -> Response:
        run, look = self._look(request)
        score = request.query_params.get("score", "")
        if score not in look.shown.totals.histograms:
            raise Bad("score: none of this run's")
        x, number = _number(request, "x"), min(int(_number(request, "n", MOST)), MOST)
        at_most = request.query_params.get("side") == "max"
        below, above = run.near.samples(look.units, score, x, number, at_most)

        def shown(each: Any) -> dict[str, Any]:
            return {
                "key": each.key,
                "score": f"{each.score:.4g}",
                "x": each.score,
                "caption": visible(each.caption or "", 120),
                "reason": visible(each.reason or "kept", 80),
                "kept": each.reason is None,
                "picture": _picture(run, each.key),
            }

        return JSONResponse({"below": [shown(each) for each in below], "above": [shown(each) for each in above]})

    def count(self, request: Request) -> Response:
        run, look = self._look(request)
        _few_enough(look)
        base = run if run.base is None else run.base
        changes: dict[str, dict[str, Any]] = {}
        for name, value in self._own(run, look):
            label, _, field = name.partition(".")
            changes.setdefault(label, {})[field] = value
        given = request.query_params.getlist("set")
        if len(given) > _CHANGES:
            raise Bad(f"set: at most {_CHANGES} at once")
        for text in given:
            label, field, value = _setting(text, base.rules)
            changes.setdefault(label, {})[field] = value
        try:
            counted = base.counting.count(look.units, look.shown.totals.seen, changes, look.opened.labels)
        except KeyError as error:
            raise Bad(f"set: no filter or threshold is called {error.args[0]!r} here") from error
        except ValidationError as error:
            raise Bad(f"set: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from error
        return JSONResponse(counted)

    def search(self, request: Request) -> Response:
        run, look = self._look(request)
        query = request.query_params
        by, text, reason = query.get("by", "caption"), query.get("text", "").strip(), query.get("reason", "any")
        offset = int(_number(request, "offset", 0))
        if by not in search.BY or len(text) > _TEXT:
            raise Bad(f"search by one of {', '.join(search.BY)}, for at most {_TEXT} characters")
        if not 0 <= offset <= _OFFSET:
            raise Bad(f"the first {_OFFSET:,} samples are shown: look for something rarer, or ask DuckDB")
        wanted = None if reason == "any" else reason
        if not text:
            keys = search.pictured(look.opened, run.pictures, look.units, wanted, offset)
        elif by == "key" and rows.KEY.match(text):
            keys = [text] if offset == 0 else []
        else:
            _few_enough(look)
            keys = search.search(look.opened, look.units, by, text, wanted, offset)
        cards = [
            samples.card(look.opened, row, self._picture(run, look, row["key"]))
            for row in rows.rows_of(look.opened, look.units, keys[: search.PAGE])
            if wanted is None or (row["reason"] or "kept") == wanted
        ]
        more = len(keys) > search.PAGE
        first, last = offset + bool(cards), offset + len(cards)
        told = f"Samples {first:,} to {last:,}{', more follow' if more else ''}." if cards else "Nothing was found."
        return JSONResponse({"rows": cards, "more": more, "told": told})

    def sample(self, request: Request) -> Response:
        run, look = self._look(request)
        key = request.path_params["key"]
        for row in rows.rows_of(look.opened, look.units, [key]):
            picture = self._picture(run, look, key)
            return JSONResponse(samples.whole(look.opened, run.rules, row, picture))
        raise NotHere("no sample of this run has that key")

    def picture(self, request: Request) -> Response:
        run, look = self._look(request)
        key = request.path_params["key"]
        picture = run.pictures.picture(rows.unit_of(look.units, key), key)
        return Response(picture, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=300"})

    # --- what they share ---

    def _run(self, run_id: str) -> Run:
        found = self.runs.use(run_id)
        if found is None:
            raise NotHere("there is no such run here")
        return found

    def _look(self, request: Request) -> tuple[Run, Look]:
        run = self._run(request.path_params["run"])
        return run, run.look()

    def _listed(self) -> list[Listed]:
        listed = []
        for run in self.runs.all().values():
            try:
                listed.append(Listed(run, run.look()))
            except Failure as error:
                listed.append(Listed(run, None, str(error)))
        return listed

    def _own(self, run: Run, look: Look) -> list[tuple[str, Any]]:
        """What a decision changed of its run: thresholds by `<filter>.<field>`; nothing for a run."""
        if run.base is None:
            return []
        there = run.base.look().opened.record["thresholds"]
        return [
            (f"{label}.{field}", value)
            for label, fields in look.opened.record["thresholds"].items()
            for field, value in fields.items()
            if value != there[label][field]
        ]

    def _others(self, run: Run, look: Look) -> dict[str, str]:
        """Runs and decisions that have the same samples."""
        found = {}
        for other in self._listed():
            if other.run is run or other.look is None:
                continue
            try:
                must_compare(look.opened, other.look.opened)
            except Failure:
                continue
            found[other.run.id] = f"{other.run.name} ({other.look.shown.totals.kept:,} kept)"
        return found

    def _picture(self, run: Run, look: Look, key: str) -> str | None:
        return _picture(run, key) if run.pictures.has(rows.unit_of(look.units, key), key) else None


def _picture(run: Run, key: str) -> str:
    return f"/run/{run.id}/picture/{key}"


def _static() -> dict[str, bytes]:
    """Files of the page by name, and the report's style sheet."""
    folder = resources.files("curation.dashboard").joinpath("static")
    found = {"report.css": resources.files("curation.report").joinpath("style.css").read_bytes()}
    for prefix, place in (("", folder), ("vendor/", folder.joinpath("vendor"))):
        files = (file for file in place.iterdir() if file.name.endswith((".js", ".css")))
        found |= {prefix + file.name: file.read_bytes() for file in files}
    return found


def _few_enough(look: Look) -> None:
    if look.shown.totals.listed > MOST_ROWS:
        raise TooMany(
            f"a run of {look.shown.totals.listed:,} rows is looked into by key only (beyond {MOST_ROWS:,}): "
            "use `rescore --dry-run`, or DuckDB on its ledger folder"
        )


class TooMany(Bad):
    """More rows than are looked through for a page."""


def _number(request: Request, name: str, default: float | None = None) -> float:
    text = request.query_params.get(name)
    if text is None and default is not None:
        return default
    try:
        value = float(text or "")
    except ValueError as error:
        raise Bad(f"{name}: not a number") from error
    if not abs(value) < 1e15:
        raise Bad(f"{name}: not a number that can be used")
    return value


def _setting(text: str, rules: Mapping[str, Any]) -> tuple[str, str, float]:
    """`clip_score.min=0.31` as label, field and value."""
    name, _, given = text.partition("=")
    label, _, field = name.partition(".")
    if label not in rules:
        raise Bad(f"set: no filter of this run is called {label!r}, or it is not installed here")
    if not _NUMBER.match(given):
        raise Bad(f"set: {name} needs a number")
    value = float(given) if any(character in given for character in ".eE") else int(given)
    if not abs(value) < 1e15:
        raise Bad(f"set: {name} needs a number")
    return label, field, value


def _live(request: Request, version: str, at_work: bool, draw: Callable[[], Mapping[str, str]]) -> Response:
    if request.query_params.get("version") == version:
        return Response(status_code=204)
    return JSONResponse({"version": version, "at_work": at_work, "fragments": dict(draw())})


def _html(data: bytes) -> Response:
    return Response(data, media_type="text/html; charset=utf-8")


def _error(line: str, status: int) -> Response:
    return JSONResponse({"error": visible(line, 600)}, status)


def _answered(
    answer: Callable[[Request], Response], request: Request, tell: Callable[[str, int], Response]
) -> Response:
    try:
        return answer(request)
    except NotHere as error:
        return tell(str(error), 404)
    except TooMany as error:
        return tell(str(error), 413)
    except Bad as error:
        return tell(str(error), 400)
    except Failure as error:
        return tell(str(error), 503)
    except DAMAGE as error:
        _LOG.exception("%s cannot be answered", request.url.path)  # it may be a defect of ours as well
        return tell(f"a file of the run is not as runs write it ({describe(error)}): see the log", 503)


def _json(answer: Callable[[Request], Response]) -> Callable[[Request], Response]:
    return lambda request: _answered(answer, request, _error)


def _page(answer: Callable[[Request], Response]) -> Callable[[Request], Response]:
    def tell(line: str, status: int) -> Response:
        return Response(page.error_page(line), status, media_type="text/html; charset=utf-8")

    return lambda request: _answered(answer, request, tell)


def _http_error(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    return _error("there is no such page" if status == 404 else "not answered here", status)
