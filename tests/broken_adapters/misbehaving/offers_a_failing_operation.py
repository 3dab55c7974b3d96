"""Offers an operation that was never run: it asks for an attribute that is not there."""

import interpretune as it
from interpretune.operations import operation
from interpretune.store.fields import Field


@operation(writes=Field("prompt_lengths", "int64"))
def prompt_lengths(inputs):
    return inputs.mask.sum(dim=1)


class OffersAFailingOperation:
    declaration = it.AdapterDeclaration(name="acme", level="extension", contract="1.0")

    @it.hookimpl
    def it_contribute_operations(self):
        return [prompt_lengths]


adapter = OffersAFailingOperation()
