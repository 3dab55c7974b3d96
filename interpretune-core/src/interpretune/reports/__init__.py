"""Metrics, tables, figures and dashboards of results."""
