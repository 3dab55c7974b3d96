"""Writes the package of a new adapter: ``interpretune new-adapter``."""
