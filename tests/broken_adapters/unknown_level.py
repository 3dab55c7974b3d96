"""Declares a level that does not exist."""

import interpretune as it


class UnknownLevel:
    declaration = it.AdapterDeclaration(name="acme", level="penthouse", contract="1.0")


adapter = UnknownLevel()
