"""Writes `dashboards/grafana/winnow.json` anew: `python -m dashboards`, or `make dashboards`."""

from dashboards.board import PATH, as_json

PATH.write_text(as_json())
