"""Computes something for a long while when it is imported."""

import time

import interpretune as it
from tests.broken_adapters.misbehaving.sound import SoundAdapter

so_far = time.process_time()
while time.process_time() < 1.5 * so_far:  # on fast machines and on slow ones; the limit is a fifth
    pass


class IsSlowToImport(SoundAdapter):
    declaration = it.AdapterDeclaration(name="acme", level="model", contract="1.0")


adapter = IsSlowToImport()
