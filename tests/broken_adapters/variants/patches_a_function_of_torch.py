"""Puts a faster function of torch in the place of another, for everybody."""

import torch

import interpretune as it

torch.nn.functional.gelu = torch.nn.functional.relu


class PatchesAFunctionOfTorch:
    declaration = it.AdapterDeclaration(name="acme", level="extension", contract="1.0")


adapter = PatchesAFunctionOfTorch()
