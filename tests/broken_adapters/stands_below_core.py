"""An order that cannot be: core is below all adapters."""

import interpretune as it


class StandsBelowCore:
    declaration = it.AdapterDeclaration(name="acme", level="extension", contract="1.0", before=("core",))


adapter = StandsBelowCore()
