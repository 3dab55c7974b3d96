"""Its package offers a command that core has."""

import interpretune as it


class TakesANameOfCore:
    declaration = it.AdapterDeclaration(name="acme", level="extension", contract="1.0")


def tasks(arguments):
    return 0


adapter = TakesANameOfCore()
