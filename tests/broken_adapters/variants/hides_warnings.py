"""Hides all warnings, since a library under it warns."""

import warnings

import interpretune as it

warnings.filterwarnings("ignore")


class HidesWarnings:
    declaration = it.AdapterDeclaration(name="acme", level="extension", contract="1.0")


adapter = HidesWarnings()
