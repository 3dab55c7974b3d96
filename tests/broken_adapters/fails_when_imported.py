"""Stops while it is imported."""

raise RuntimeError("libzoo.so.7 is too old")
