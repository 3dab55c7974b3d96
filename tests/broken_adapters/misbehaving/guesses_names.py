"""Takes the nearest hook point for a misspelt one."""

from difflib import get_close_matches

import interpretune as it
from tests.broken_adapters.misbehaving.sound import SoundAdapter, SoundBackend


class GuessingBackend(SoundBackend):
    def resolve_hook_point(self, name):
        try:
            return super().resolve_hook_point(name)
        except it.HookPointError:
            return get_close_matches(name, self.hook_point_names(), n=1)[0]


class GuessesNames(SoundAdapter):
    declaration = it.AdapterDeclaration(name="acme", level="model", contract="1.0")

    backend = GuessingBackend


adapter = GuessesNames()
