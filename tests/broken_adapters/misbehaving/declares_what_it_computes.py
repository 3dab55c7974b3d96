"""Computes its declaration, which nobody can read without running it."""

import interpretune as it
from tests.broken_adapters.misbehaving.sound import SoundAdapter


class DeclaresWhatItComputes(SoundAdapter):
    declaration = it.AdapterDeclaration(name="".join(("ac", "me")), level="model", contract="1.0")


adapter = DeclaresWhatItComputes()
