"""Was written for a contract of the future."""

import interpretune as it


class NewerContract:
    declaration = it.AdapterDeclaration(name="acme", level="model", contract="2.0")


adapter = NewerContract()
