"""The two markers of the contract: ``hookspec`` for core's specifications, ``hookimpl`` for adapters."""

from __future__ import annotations

import pluggy

PROJECT_NAME = "interpretune"

hookspec = pluggy.HookspecMarker(PROJECT_NAME)
"""Marks a function of ``interpretune.hookspecs`` as a hook specification."""
hookimpl = pluggy.HookimplMarker(PROJECT_NAME)
"""Marks a method of an adapter as the implementation of the hook of that name.

``@hookimpl(wrapper=True)`` makes a wrapper: a generator that yields once and returns the result.
"""
