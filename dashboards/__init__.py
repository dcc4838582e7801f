"""Prometheus and Grafana beside a run (docs/dashboards.md): configuration, alert rules, and the dashboard's source.

The one decision: the Grafana dashboard is built here, and what it builds is committed, so that a user needs no build.
"""
