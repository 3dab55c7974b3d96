"""Offers an operation that counts its own calls."""

import interpretune as it
from interpretune.operations import operation
from interpretune.store.fields import Field, Per

COUNTED = [0]


@operation(writes=Field("calls", "int64", Per.batch))
def calls(inputs):
    COUNTED[0] += 1
    return COUNTED[0]


class OffersACountingOperation:
    declaration = it.AdapterDeclaration(name="acme", level="extension", contract="1.0")

    @it.hookimpl
    def it_contribute_operations(self):
        return [calls]


adapter = OffersACountingOperation()
