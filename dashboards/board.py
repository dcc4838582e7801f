"""The Grafana dashboard of a run.

The one decision: every query takes the `max` over the processes that told a gauge: a driver and, until half a minute
after a kill, the one before it, whose sums are smaller.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypeAlias

from grafana_foundation_sdk.builders import common as options
from grafana_foundation_sdk.builders import dashboard as board
from grafana_foundation_sdk.builders import prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import LegendDisplayMode, LegendPlacement, StackingMode
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DataSourceRef,
    Threshold,
    ThresholdsMode,
    VariableRefresh,
    VariableSort,
)

PATH = Path(__file__).parent / "grafana/winnow.json"
SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
# Of a grid that is 24 wide; heights are in its units of 30 pixels.
WIDE, HIGH, STAT_WIDE, STAT_HIGH = 12, 8, 4, 4

# PromQL, and the name of each series.
Query: TypeAlias = tuple[str, str]


def of(name: str, *by: str, **labels: str) -> str:
    """A gauge of the chosen profiles, one series for each value of the labels `by`. labels: only these."""
    chosen = "".join(f', {label}="{value}"' for label, value in labels.items())
    return f'max by ({", ".join(("profile", *by))}) (ray_winnow_{name}{{profile=~"$profile"{chosen}}})'


def build() -> board.Dashboard:
    """Everything on it, in rows of two panels below a row of single numbers."""
    made = (
        board.Dashboard("Winnow: a run")
        .uid("winnow-run")
        .description("Sums of committed unit manifests, as `stats` gives them (docs/dashboards.md).")
        .tags(["winnow", "ray"])
        .timezone("browser")
        .time("now-1h", "now")
        .refresh("10s")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .readonly()
        .with_variable(board.DatasourceVariable("datasource").label("Data source").type("prometheus"))
        .with_variable(
            board.QueryVariable("profile")
            .label("Profile")
            .datasource(SOURCE)
            .query("label_values(ray_winnow_run_active, profile)")
            .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
            .sort(VariableSort.ALPHABETICAL_ASC)
            .multi(True)
            .include_all(True)
        )
    )
    panels: list[stat.Panel | timeseries.Panel] = [*numbers(), *lines()]
    for place, panel in enumerate(panels, 1):
        made = made.with_panel(panel.id(place))
    return made


def numbers() -> list[stat.Panel]:
    retention = of("samples", outcome="kept") + " / " + of("samples_seen")
    units = f"sum by (profile) ({of('units', 'state')})"
    since = f"(time() - {of('last_commit_timestamp_seconds')}) and on (profile) ({of('run_active')} == 1)"
    return [
        _number("Running", of("run_active"), "1: a driver is at work. No data: it has been gone for half a minute."),
        _number("Units committed", f"{of('units', state='committed')} / {units}", "Of the whole input.", "percentunit"),
        _number("Units failed", of("units", state="failed"), "`stats` names each, with its error.", bad=1),
        _number("Since the last commit", since, "Seconds. The alert WinnowStalled watches it.", "s", bad=900),
        _number("Samples kept", of("samples", outcome="kept"), "In shards, of committed units."),
        _number("Retention", retention, "Kept of those seen, not of those listed.", "percentunit"),
    ]


def lines() -> list[timeseries.Panel]:
    batches = 'ray_winnow_clip_batch_seconds_bucket{profile=~"$profile"}[$__rate_interval]'
    busy = 'ray_winnow_clip_busy_share{profile=~"$profile"}'
    return [
        _lines(
            "Funnel",
            "What became of every sample of the committed units; together those listed.",
            [(of("samples", "outcome"), "{{profile}} {{outcome}}")],
            stacked=True,
        ),
        _lines(
            "Samples per second",
            "Of units committed in the last minute. read: all. judged: by the filters. pixels: scored. kept: written.",
            [(of("samples_per_second", "stage"), "{{profile}} {{stage}}")],
        ),
        _lines(
            "Retention against its target",
            "Kept of those seen. WinnowRetentionDrift warns at two points off, after 50,000 samples.",
            [(of("retention"), "{{profile}}"), (of("target_retention"), "{{profile}} target")],
            "percentunit",
        ),
        _lines(
            "Dropped by filter",
            "Samples that each filter was the first to drop, in the order of execution.",
            [(of("filter_dropped_first", "filter"), "{{profile}} {{filter}}")],
            stacked=True,
        ),
        _lines(
            "Failed alone",
            "Samples that fail this filter and no other: what it alone decides about.",
            [(of("filter_failed_alone", "filter"), "{{profile}} {{filter}}")],
        ),
        _lines(
            "Could not be scored",
            "Samples dropped since the filter met an error, among those dropped by it.",
            [(of("filter_errors", "filter"), "{{profile}} {{filter}}")],
        ),
        _lines(
            "Units",
            "Of the whole input.",
            [(of("units", "state"), "{{profile}} {{state}}")],
            stacked=True,
        ),
        _lines(
            "Worker seconds by step",
            "Of committed units: where the time goes.",
            [(of("worker_seconds", "step"), "{{profile}} {{step}}")],
            "s",
            stacked=True,
        ),
        _lines(
            "CLIP: seconds a batch",
            "In the model alone, without reading and decoding. Interpolated within the histogram's buckets.",
            [
                (
                    f"histogram_quantile({share}, sum by (profile, filter, le) (rate({batches})))",
                    f"{name} {{{{filter}}}}",
                )
                for share, name in ((0.5, "half below"), (0.95, "95 % below"))
            ],
            "s",
        ),
        _lines(
            "CLIP: busy share",
            "Of each actor's last minute, in the model. Low with units pending: reading or decoding is the limit.",
            [
                (f"avg by (profile, filter) ({busy})", "{{profile}} {{filter}} mean"),
                (f"min by (profile, filter) ({busy})", "{{profile}} {{filter}} least"),
            ],
            "percentunit",
        ),
    ]


def _number(title: str, query: str, about: str, unit: str = "short", bad: float | None = None) -> stat.Panel:
    """bad: from here on it is red."""
    steps = [Threshold(None, "green"), *([] if bad is None else [Threshold(bad, "red")])]
    return (
        stat.Panel()
        .title(title)
        .description(about)
        .datasource(SOURCE)
        .span(STAT_WIDE)
        .height(STAT_HIGH)
        .unit(unit)
        .reduce_options(options.ReduceDataOptions().calcs(["lastNotNull"]))
        .thresholds(board.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps))
        .with_target(prometheus.Dataquery().expr(query).legend_format("{{profile}}").ref_id("A").datasource(SOURCE))
    )


def _lines(
    title: str, about: str, queries: list[Query], unit: str = "short", stacked: bool = False
) -> timeseries.Panel:
    panel = (
        timeseries.Panel()
        .title(title)
        .description(about)
        .datasource(SOURCE)
        .span(WIDE)
        .height(HIGH)
        .unit(unit)
        .min(0)
        .legend(
            options.VizLegendOptions()
            .display_mode(LegendDisplayMode.TABLE)
            .placement(LegendPlacement.RIGHT)
            .show_legend(True)
            .calcs(["lastNotNull"])
        )
    )
    if stacked:
        panel = panel.stacking(options.StackingConfig().mode(StackingMode.NORMAL)).fill_opacity(40)
    for place, (query, legend) in enumerate(queries):
        target = prometheus.Dataquery().expr(query).legend_format(legend).ref_id("AB"[place]).datasource(SOURCE)
        panel = panel.with_target(target)
    return panel


def as_json() -> str:
    """What Grafana reads; the same bytes every time."""
    return json.dumps(build().build(), cls=JSONEncoder, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
