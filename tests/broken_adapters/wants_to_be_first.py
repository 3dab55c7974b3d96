"""Pushes itself to the front."""

import interpretune as it


class WantsToBeFirst:
    declaration = it.AdapterDeclaration(name="zoo", level="model")

    @it.hookimpl(tryfirst=True)
    def it_forward(self, module, batch):
        return None


adapter = WantsToBeFirst()
