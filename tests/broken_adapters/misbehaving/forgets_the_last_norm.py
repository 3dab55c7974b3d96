"""Its unembedding reads the residual stream as it is, without the last norm."""

import interpretune as it
from tests.broken_adapters.misbehaving.sound import SoundAdapter, SoundBackend


class WithoutNorm(SoundBackend):
    def final_norm(self, residual):
        return residual


class ForgetsTheLastNorm(SoundAdapter):
    declaration = it.AdapterDeclaration(name="acme", level="model", contract="1.0")

    backend = WithoutNorm


adapter = ForgetsTheLastNorm()
