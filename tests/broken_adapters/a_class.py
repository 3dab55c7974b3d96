"""Registers the class instead of an instance."""

import interpretune as it


class AClass:
    declaration = it.AdapterDeclaration(name="acme", level="model", contract="1.0")


adapter = AClass
