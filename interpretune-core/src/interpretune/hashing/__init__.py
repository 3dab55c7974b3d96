"""Hashes of all that results depend on."""
