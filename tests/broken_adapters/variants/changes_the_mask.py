"""Offers an operation that changes the mask of the batch, which is inside of an object."""

import interpretune as it
from interpretune.operations import operation
from interpretune.store.fields import Field


@operation(writes=Field("real_tokens", "int64"))
def real_tokens(inputs):
    inputs.attention_mask[:, -1] = 0
    return inputs.attention_mask.sum(dim=1)


class ChangesTheMask:
    declaration = it.AdapterDeclaration(name="acme", level="extension", contract="1.0")

    @it.hookimpl
    def it_contribute_operations(self):
        return [real_tokens]


adapter = ChangesTheMask()
