"""Its latent model reads at a hook point that no decoder has."""

import interpretune as it
from interpretune.testing.tiny_latents import RandomDictionary


class AttachesNowhere:
    declaration = it.AdapterDeclaration(name="acme", level="latents", contract="1.0")

    @it.hookimpl
    def it_load_latent_models(self, module):
        return [RandomDictionary("layers.1.resid_pots", 32)]


adapter = AttachesNowhere()
