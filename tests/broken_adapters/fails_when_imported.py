"""Stops while it is imported."""

raise RuntimeError("libacme.so.7 is too old")
