"""Sets the number of threads when it is imported."""

import torch

import interpretune as it
from tests.broken_adapters.misbehaving.sound import SoundAdapter

torch.set_num_threads(torch.get_num_threads() + 1)


class ChangesThingsAtImport(SoundAdapter):
    declaration = it.AdapterDeclaration(name="acme", level="model", contract="1.0")


adapter = ChangesThingsAtImport()
