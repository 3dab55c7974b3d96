"""Manifests of older schema versions, brought up to date one version at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

SCHEMA_VERSION = 2
"""Version of the layout that this package writes. Version 1 had neither ragged fields of their own nor ``about``."""


def _from_1(found: dict[str, Any]) -> dict[str, Any]:
    """Raggedness stood in the dtype as ``int64[]``; what the results are of stood in ``config``; tables were loose."""
    fields = [
        {
            "name": item["name"],
            "dtype": item["dtype"].removesuffix("[]"),
            "per": item["per"],
            "shape": item["shape"],
            "ragged": item["dtype"].endswith("[]"),
            "about": "",
        }
        for item in found["fields"]
    ]
    kept = {name: value for name, value in found.items() if name not in ("config", "fields")}
    return {**kept, "schema_version": 2, "fields": fields, "about": {"config": found.get("config", {})}, "tables": []}


MIGRATIONS: Mapping[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: _from_1}
"""For each older version what makes the next version of its manifest."""


def migrate(found: dict[str, Any]) -> dict[str, Any]:
    """The same manifest in the current version; files are left as they are.

    Raises:
        KeyError: It lacks something that its version has, or is of a version that never was.
    """
    while found["schema_version"] != SCHEMA_VERSION:
        found = MIGRATIONS[found["schema_version"]](found)
    return found
