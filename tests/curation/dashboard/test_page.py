"""The live page in a real browser: thresholds dragged by mouse and keyboard, search, gallery, hostile texts, a run that grows."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from curation import lease
from curation.opened import Opened
from curation.profile import Profile
from curation.rescore import rescore
from tests.curation.dashboard.conftest import write_mixture
from tests.curation.dashboard.served import Served, serving
from tests.curation.pairs import flat, good_pairs, image, pair, profile, write_tar
from tests.curation.report.runs import HOSTILE, finished
from tests.curation.report.test_browser import CONTRAST, SIZES, browser, emulate, fits  # noqa: F401  a fixture

# Waiting for an answer of the server on a busy machine, seconds.
PATIENCE_S = 15.0


@pytest.fixture(scope="module")
def served(mixture: tuple[Opened, Profile]) -> Iterator[Served]:
    with serving([mixture[0].output.parent().uri]) as server:
        yield server


@pytest.fixture
def page(served: Served, mixture: tuple[Opened, Profile], browser: Any) -> Any:  # noqa: F811
    """The browser, with the run's page and its charts before it."""
    return opened(browser, served, mixture[0])


def opened(browser: Any, served: Served, run: Opened, size: str = "desk", scheme: str = "light") -> Any:  # noqa: F811
    emulate(browser, size, scheme)
    browser.get("about:blank")
    browser.get_log("browser")
    browser.get(served.address + served.run(run.output.uri))
    until(lambda: browser.find_elements("css selector", "#charts figure svg .slider"), "the charts")
    return browser


def until(happened: Callable[[], Any], what: str) -> Any:
    from selenium.common.exceptions import StaleElementReferenceException

    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        try:
            if found := happened():
                return found
        except StaleElementReferenceException:  # it was renewed just now
            continue
        time.sleep(0.02)
    raise AssertionError(f"waited in vain for {what}")


def text(page: Any, selector: str) -> str:
    return str(page.find_element("css selector", selector).text)


def chart(page: Any, name: str) -> Any:
    return page.find_element("css selector", f'figure[data-chart="{name}"]')


def told(figure: Any, what: str) -> str:
    """A number of the readout beside a chart."""
    return str(figure.find_element("css selector", f'[data-of="{what}"]').text)


def threshold(served: Served, run: Opened, name: str) -> dict[str, Any]:
    charts = served.get(f"{served.run(run.output.uri)}/scores").json["charts"]
    return next(mark for each in charts for mark in each["thresholds"] if mark["id"] == name)


def kept(low: int, high: int) -> str:
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def test_a_line_is_dragged_and_the_numbers_follow(page: Any, served: Served, mixture: tuple[Opened, Profile]) -> None:
    from selenium.webdriver import ActionChains

    run, checked = mixture
    steps = threshold(served, run, "shine.min")["steps"]
    figure = chart(page, "shine_mean")
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", figure)
    assert told(figure, "kept") == f"{run.totals().kept:,}"
    knob = figure.find_element("css selector", '[data-line="shine.min"] .knob')
    ActionChains(page, duration=30).click_and_hold(knob).move_by_offset(20, 0).move_by_offset(25, 0).perform()
    until(lambda: told(figure, "kept") != f"{run.totals().kept:,}", "the readout")
    slider = figure.find_element("css selector", '[data-line="shine.min"] .slider')
    value = float(slider.get_attribute("aria-valuenow"))
    place = steps["value"].index(value)  # it stands at an edge of the bins, nowhere between
    assert told(figure, "kept") == kept(steps["low"][place], steps["high"][place])
    near = until(lambda: figure.find_elements("css selector", ".near li"), "thumbnails")
    assert len(near) >= 4
    words = figure.find_element("css selector", ".near").text
    assert "fails here" in words
    assert "passes here" in words
    ActionChains(page).release().perform()
    until(
        lambda: page.execute_script(
            "return [...document.querySelectorAll('.near img')].every(i => i.complete && i.naturalWidth)"
        ),
        "pictures",
    )
    # Counted exactly, and the command that makes a decision of it.
    thresholds = json.loads(json.dumps(checked.decision_identity()))
    thresholds["shine"]["min"] = value
    expected = rescore(checked.deciding(thresholds), dry_run=True, workers=1).totals
    until(lambda: f"{expected.kept:,} of {expected.seen:,} kept" in text(page, "#tryout"), "the exact count")
    command = page.find_element("css selector", "#tryout input[readonly]").get_attribute("value")
    assert command.endswith(f" --set shine.min={value}")
    assert checked.deciding(thresholds).decision_identity() == thresholds  # what is copied is a threshold of the filter
    page.find_element("xpath", "//aside[@id='tryout']//button[text()='Reset']").click()
    until(lambda: told(figure, "kept") == f"{run.totals().kept:,}", "the run's own number")
    assert not page.find_element("css selector", "#tryout").is_displayed()
    assert max(page.execute_script("return performance.getEntriesByName('drag').map(e => e.duration)")) < 1000
    assert page.get_log("browser") == []


def test_a_line_is_moved_by_keyboard(page: Any, served: Served, mixture: tuple[Opened, Profile]) -> None:
    from selenium.webdriver.common.keys import Keys

    run, checked = mixture
    steps = threshold(served, run, "text_length.min_words")["steps"]
    figure = chart(page, "text_length_words")
    slider = figure.find_element("css selector", '[data-line="text_length.min_words"] .slider')
    assert slider.get_attribute("role") == "slider"
    assert slider.get_attribute("aria-valuenow") == "3"
    page.execute_script("arguments[0].focus()", slider)
    for key, expected in (
        (Keys.ARROW_RIGHT, 4),
        (Keys.ARROW_RIGHT, 5),
        (Keys.ARROW_LEFT, 4),
        (Keys.END, max(steps["value"])),
    ):
        slider.send_keys(key)
        assert float(slider.get_attribute("aria-valuenow")) == expected
    slider.send_keys(Keys.ESCAPE)
    assert slider.get_attribute("aria-valuenow") == "3"
    slider.send_keys(Keys.ARROW_RIGHT)
    place = steps["value"].index(4)
    assert told(figure, "kept") == kept(steps["low"][place], steps["high"][place])
    assert steps["low"][place] < steps["high"][place]  # bins cannot know: the caption may have failed min_chars too
    thresholds = json.loads(json.dumps(checked.decision_identity()))
    thresholds["text_length"]["min_words"] = 4
    exact = rescore(checked.deciding(thresholds), dry_run=True, workers=1).totals.kept
    until(lambda: f"{exact:,} of {run.totals().seen:,} kept" in text(page, "#tryout"), "the exact count")


def test_samples_are_found_and_looked_at(page: Any, served: Served, mixture: tuple[Opened, Profile]) -> None:
    from selenium.webdriver.common.keys import Keys

    run, _ = mixture
    until(lambda: page.find_elements("css selector", "#cards .card"), "the gallery")
    row = next(row for unit in run.units() for row in run.ledger(unit).to_pylist() if row["reason"] == "aspect_ratio")
    for by, words in (("url", row["url"]), ("key", row["key"]), ("caption", row["caption"])):
        page.find_element("css selector", f'#search [name=by] option[value="{by}"]').click()
        field = page.find_element("css selector", "#search [name=text]")
        field.clear()
        field.send_keys(words + Keys.ENTER)
        until(
            lambda: any(row["url"] in card.text for card in page.find_elements("css selector", "#cards .card")),
            f"the sample by {by}",
        )
    page.find_element("css selector", "#search [name=text]").clear()
    page.find_element("css selector", "#search [name=reason] option[value=min_size]").click()
    page.find_element("css selector", "#search button").click()
    # The choice of a reason asks, and so does the button: the cards are those of the last answer once nothing is awaited.
    until(
        lambda: (
            page.find_element("css selector", "#cards").get_attribute("aria-busy") == "false"
            and {"min_size" in card.text for card in page.find_elements("css selector", "#cards .card")} == {True}
        ),
        "one reason",
    )
    page.find_element("css selector", "#cards .card a.open").send_keys(Keys.ENTER)
    dialog = page.find_element("css selector", "dialog#sample")
    until(lambda: dialog.is_displayed() and "Dropped by min_size: short_side" in dialog.text, "the sample")
    assert all(label in dialog.text for label in run.labels)
    here = page.current_url
    assert "#sample=" in here
    page.switch_to.active_element.send_keys(Keys.ESCAPE)
    until(lambda: not dialog.is_displayed(), "the end of it")
    page.get("about:blank")
    page.get(here)  # an address that was passed on
    until(lambda: "Dropped by min_size" in text(page, "dialog#sample"), "the sample of the address")
    assert page.get_log("browser") == []


def test_a_run_grows_while_the_page_is_open(browser: Any, tmp_path: Path) -> None:  # noqa: F811
    write_mixture(tmp_path, files=1, samples=40)
    run = finished(profile(tmp_path))
    before = run.totals()
    # A driver at work is one that holds the lease; this one is the test itself.
    with lease.hold(run.output, lambda line: None):
        with serving([str(tmp_path / "runs")]) as server:
            opened(browser, server, run)
            until(lambda: "at work" in text(browser, "[data-fragment=head]"), "the state")
            write_tar(tmp_path / "in/00007.tar", flat(good_pairs(5, 700)))
            more = finished(profile(tmp_path)).totals()
            assert (more.seen, more.kept) == (before.seen + 5, before.kept + 5)
            until(lambda: f"{more.kept:,} were kept" in text(browser, "[data-fragment=head]"), "the new numbers")
            assert f"{more.seen:,}" in text(browser, "[data-fragment=funnel]")
            figure = until(lambda: chart(browser, "min_size_short_side"), "a chart")
            until(lambda: told(figure, "kept") == f"{more.kept:,}", "the charts' new numbers")
        until(lambda: "does not answer" in text(browser, "#connection"), "that the server has gone")


def test_hostile_texts_stay_texts(browser: Any, tmp_path: Path) -> None:  # noqa: F811
    attacks = [attack for attack in HOSTILE if "\ud800" not in attack]
    pairs = [
        pair(f"x{number:03d}", f"A fine picture {attack}", image(seed=number), {"url": attack, attack: attack})
        for number, attack in enumerate(attacks)
    ]
    write_tar(tmp_path / "in/<img src=x onerror=alert(1)>.tar", flat(pairs))
    run = finished(profile(tmp_path))
    with serving([str(tmp_path / "runs")]) as server:
        opened(browser, server, run)
        title = browser.title
        field = browser.find_element("css selector", "#search [name=text]")
        field.send_keys("fine\n")
        cards = until(
            lambda: (
                len(browser.find_elements("css selector", "#cards .card")) >= 6
                and browser.find_elements("css selector", "#cards .card")
            ),
            "cards",
        )
        seen = 0
        keys = [
            card["key"] for card in server.get(f"{server.run(run.output.uri)}/search?by=caption&text=fine").json["rows"]
        ]
        for key in keys:
            browser.execute_script("location.hash = arguments[0]", f"#sample={key}")
            until(lambda key=key: key in text(browser, "dialog#sample"), "a hostile sample")  # type: ignore[misc]
            seen += 1
        assert seen == len(cards)
        assert browser.title == title
        script = "return [document.querySelectorAll('script:not([src]), iframe, object, [onerror], [onload], [onmouseover], a[href^=javascript]').length, document.querySelectorAll('#cards a[href*=example], #cards script, dialog script').length]"
        assert browser.execute_script(script) == [0, 0]
        assert browser.get_log("browser") == []  # nothing that the policy had to forbid


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", list(SIZES))
def test_it_reads_well(browser: Any, served: Served, mixture: tuple[Opened, Profile], size: str, scheme: str) -> None:  # noqa: F811
    page = opened(browser, served, mixture[0], size, scheme)
    until(lambda: page.find_elements("css selector", "#cards .card"), "the gallery")
    assert fits(page)
    low = [entry for entry in page.execute_script(CONTRAST) if entry[0] < 4.5]
    assert low == []
    assert page.get_log("browser") == []
    page.get(served.address)
    assert fits(page)


def test_the_charts_are_drawn_at_once(page: Any) -> None:
    """A generous bound, for a machine that is busy with other tests; benchmarks/dashboard.py measures."""
    drawn = page.execute_script("return performance.getEntriesByName('charts-drawn')[0].startTime")
    paint = page.execute_script("return performance.getEntriesByName('first-contentful-paint')[0].startTime")
    assert paint < 3000
    assert drawn < 6000
