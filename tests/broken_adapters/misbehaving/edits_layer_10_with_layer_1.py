"""Looks for modules by the beginning of their paths, so that whatever edits block 1 edits blocks 10 and 11, too."""

import contextlib

import interpretune as it
from tests.broken_adapters.misbehaving.sound import SoundAdapter, SoundBackend


class PrefixBackend(SoundBackend):
    @contextlib.contextmanager
    def hooked(self, edits):
        with contextlib.ExitStack() as stack:
            for name, edit in edits.items():
                path, side = self.module_and_side(name)
                found = [other for other in self.modules if other == path or is_meant(other, path)]
                places = [name if other == path else f"{other}:{side}" for other in found]
                stack.enter_context(super().hooked(dict.fromkeys(places, edit)))
            yield


def is_meant(path, beginning):
    return path.startswith(beginning) and "." not in path.removeprefix(beginning)


class EditsLayer10WithLayer1(SoundAdapter):
    declaration = it.AdapterDeclaration(name="acme", level="model", contract="1.0")

    backend = PrefixBackend


adapter = EditsLayer10WithLayer1()
