"""Needs a package that nobody has."""

import a_package_that_nobody_has as adapter  # noqa: F401
