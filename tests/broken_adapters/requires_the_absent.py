"""Requires an adapter that nobody has installed."""

import interpretune as it


class RequiresTheAbsent:
    declaration = it.AdapterDeclaration(name="acme", level="model", requires=("quagga",), contract="1.0")


adapter = RequiresTheAbsent()
