"""Pushes itself to the end, behind core."""

import interpretune as it


class WantsToBeLast:
    declaration = it.AdapterDeclaration(name="acme", level="model", contract="1.0")

    @it.hookimpl(trylast=True)
    def it_forward(self, module, batch):
        return None


adapter = WantsToBeLast()
