"""Adapters that stack, and do one thing wrong that only the conformance kit finds. ``sound`` does nothing wrong."""
