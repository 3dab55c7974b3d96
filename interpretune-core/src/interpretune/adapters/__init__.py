"""Adapters that come with core: plugins like any other."""
