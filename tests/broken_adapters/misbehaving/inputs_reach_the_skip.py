"""Edits inputs of modules in place, so that the residual stream around them is edited, too."""

import interpretune as it
from interpretune.activations.edits import CARRIED, IN
from tests.broken_adapters.misbehaving.sound import SoundAdapter, SoundBackend

MODULES = ""
"""Ends of the paths of modules of which that is so; by default all."""


class InPlaceBackend(SoundBackend):
    def module_and_side(self, hook_point):
        path, side = super().module_and_side(hook_point)
        own = f"{path}:{side}" == hook_point
        return path, CARRIED if own and side == IN and path.endswith(MODULES) else side


class InputsReachTheSkip(SoundAdapter):
    declaration = it.AdapterDeclaration(name="acme", level="model", contract="1.0")

    backend = InPlaceBackend


adapter = InputsReachTheSkip()
