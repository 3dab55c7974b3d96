"""Offers an operation that centres logits in the tensor that others read too."""

import interpretune as it
from interpretune.operations import operation
from interpretune.store.fields import Field


@operation(writes=Field("mean_logits"))
def centred_logits(answer_logits):
    mean = answer_logits.mean(dim=-1)
    answer_logits -= mean.unsqueeze(-1)
    return mean


class ChangesWhatItReads:
    declaration = it.AdapterDeclaration(name="acme", level="extension", contract="1.0")

    @it.hookimpl
    def it_contribute_operations(self):
        return [centred_logits]


adapter = ChangesWhatItReads()
