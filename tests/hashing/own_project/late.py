"""A module that is imported inside of a function."""

LATE = 1.0
