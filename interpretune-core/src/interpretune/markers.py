"""The two markers of the contract: ``hookspec`` for core's specifications, ``hookimpl`` for adapters."""

from __future__ import annotations

import pluggy

PROJECT_NAME = "interpretune"

hookspec = pluggy.HookspecMarker(PROJECT_NAME)
hookimpl = pluggy.HookimplMarker(PROJECT_NAME)
