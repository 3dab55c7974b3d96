"""Makes torch.load safe for everybody, when it is imported."""

import functools

import torch

import interpretune as it

torch.load = functools.partial(torch.load, weights_only=True)


class PatchesWithAPartial:
    declaration = it.AdapterDeclaration(name="acme", level="extension", contract="1.0")


adapter = PatchesWithAPartial()
