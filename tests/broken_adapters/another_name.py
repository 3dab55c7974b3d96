"""Declares another name than its entry point has."""

import interpretune as it


class AnotherName:
    declaration = it.AdapterDeclaration(name="menagerie", level="model", contract="1.0")


adapter = AnotherName()
