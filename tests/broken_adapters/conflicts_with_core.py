"""Cannot share a stack with core, which is in every stack."""

import interpretune as it


class ConflictsWithCore:
    declaration = it.AdapterDeclaration(name="acme", level="model", conflicts=("core",), contract="1.0")


adapter = ConflictsWithCore()
