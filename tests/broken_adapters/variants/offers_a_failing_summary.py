"""Offers a summary of a run that takes a sequence of batches for a tensor."""

import pyarrow as pa

import interpretune as it
from interpretune.operations import operation
from interpretune.store.fields import Field, Per


@operation(writes=Field("lengths", "int64"))
def lengths(inputs):
    return inputs.attention_mask.sum(dim=1)


@operation(writes=Field("mean_length", per=Per.run))
def mean_length(lengths):
    return pa.table({"mean": [float(lengths.float().mean())]})


class OffersAFailingSummary:
    declaration = it.AdapterDeclaration(name="acme", level="extension", contract="1.0")

    @it.hookimpl
    def it_contribute_operations(self):
        return [lengths, mean_length]


adapter = OffersAFailingSummary()
