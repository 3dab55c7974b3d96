"""Contributes a dictionary instead of a ``ClassContribution``."""

import interpretune as it


class WrongContribution:
    declaration = it.AdapterDeclaration(name="acme", level="model", contract="1.0")

    @it.hookimpl
    def it_contribute_classes(self):
        return {"module": ()}


adapter = WrongContribution()
