"""Shows the output of a module under its own name, and edits the block's."""

import contextlib

import interpretune as it
from tests.broken_adapters.misbehaving.sound import SoundAdapter, SoundBackend

SHOWN, EDITED = "model.layers.2.mlp.down_proj:out", "model.layers.2:out"


class TwoPlacesBackend(SoundBackend):
    @contextlib.contextmanager
    def hooked(self, edits):
        held = []

        def show(activations):
            held[:] = [edits[SHOWN](activations) - activations]
            return activations

        rest = {name: edit for name, edit in edits.items() if name != SHOWN}
        with contextlib.ExitStack() as stack:
            if SHOWN in edits:
                stack.enter_context(super().hooked({SHOWN: show}))
                stack.enter_context(super().hooked({EDITED: lambda activations: activations + held[0].cumsum(1)}))
            stack.enter_context(super().hooked(rest))
            yield


class OwnNamesEditWhatIsNotRead(SoundAdapter):
    declaration = it.AdapterDeclaration(name="acme", level="model", contract="1.0")

    backend = TwoPlacesBackend


adapter = OwnNamesEditWhatIsNotRead()
