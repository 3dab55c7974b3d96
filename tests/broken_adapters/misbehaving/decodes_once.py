"""Its latent models forget the scale of an activation when it has been decoded."""

import interpretune as it
from interpretune.testing.tiny_latents import RandomDictionary


class Forgetful(RandomDictionary):
    scale = 1.0

    def encode(self, activations):
        self.scale = 2.0
        return super().encode(activations / 2.0)

    def decode(self, latents):
        scale, self.scale = self.scale, 1.0
        return super().decode(latents) * scale

    def decoder_rows(self, latents):
        return None


class DecodesOnce:
    declaration = it.AdapterDeclaration(name="acme", level="latents", contract="1.0")

    @it.hookimpl
    def it_load_latent_models(self, module):
        return [Forgetful("layers.1.resid_post", 32).eval()]


adapter = DecodesOnce()
