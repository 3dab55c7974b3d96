"""Patches transformers once in a program, and notes for child processes that it was done."""

import os

from transformers.modeling_utils import PreTrainedModel

import interpretune as it


def init_weights(self):
    return None


if "ACME_PATCHED" not in os.environ:
    os.environ["ACME_PATCHED"] = "1"
    PreTrainedModel.init_weights = init_weights


class PatchesOnce:
    declaration = it.AdapterDeclaration(name="acme", level="extension", contract="1.0")


adapter = PatchesOnce()
