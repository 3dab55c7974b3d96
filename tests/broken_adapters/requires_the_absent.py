"""Requires an adapter that nobody has installed."""

import interpretune as it


class RequiresTheAbsent:
    declaration = it.AdapterDeclaration(name="zoo", level="model", requires=("quagga",), contract="1.0")


adapter = RequiresTheAbsent()
