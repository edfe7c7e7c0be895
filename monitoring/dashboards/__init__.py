"""Grafana's dashboards as code: `make dashboards` writes the JSON that Grafana loads.

A module for each: overview (is it fine?), then accuracy, engine and agents (why not?).
"""
