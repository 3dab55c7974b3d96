"""Offers an operation that fails on a batch of one row."""

import interpretune as it
from interpretune.operations import operation
from interpretune.store.fields import Field


@operation(writes=Field("prompt_spread"))
def prompt_spread(inputs):
    lengths = inputs.attention_mask.sum(dim=1).float()
    return (lengths - lengths.mean()).squeeze() / lengths.numel()


class OffersAnOperationForManyRows:
    declaration = it.AdapterDeclaration(name="acme", level="extension", contract="1.0")

    @it.hookimpl
    def it_contribute_operations(self):
        return [prompt_spread]


adapter = OffersAnOperationForManyRows()
