"""An adapter that loads dictionaries, with nothing wrong: others are this one with one thing changed."""

import torch
from torch import nn

import interpretune as it
from interpretune.testing.reference_latents import ReferenceLatents

WIDTH, LATENTS = 32, 24
PLACES = ("layers.0.resid_post", "layers.1.resid_post")


def weights(layer):
    draw = torch.Generator().manual_seed(100 + layer)
    shapes = {"w_enc": (WIDTH, LATENTS), "b_enc": (LATENTS,), "w_dec": (LATENTS, WIDTH), "b_dec": (WIDTH,)}
    if layer:
        shapes["w_skip"] = (WIDTH, WIDTH)
    return {name: 0.3 * torch.randn(shape, generator=draw) for name, shape in shapes.items()}


def reference_latents():
    """The truth, of plain tensors: the second was trained on centred activations, and has a skip connection."""
    return [ReferenceLatents(hook_point=place, centred=bool(i), **weights(i)) for i, place in enumerate(PLACES)]


class SoundDictionary(nn.Module):
    skips_special_tokens = False

    def __init__(self, hook_point, centred, w_enc, b_enc, w_dec, b_dec, w_skip=None):
        super().__init__()
        self.name, self.hook_point, self.output_hook_point = f"acme/{hook_point}", hook_point, hook_point
        self.d_in, self.d_sae = w_enc.shape
        self.centred = centred
        for name, value in (("w_enc", w_enc), ("b_enc", b_enc), ("w_dec", w_dec), ("b_dec", b_dec), ("w_skip", w_skip)):
            self.register_buffer(name, value)

    @property
    def has_skip_connection(self):
        return self.w_skip is not None

    def encode(self, activations):
        centre = self.b_dec if self.centred else 0.0
        return torch.relu((activations - centre) @ self.w_enc + self.b_enc)

    def decode(self, latents, inputs=None):
        decoded = latents @ self.w_dec + self.b_dec
        return decoded if inputs is None else decoded + inputs @ self.w_skip

    def decoder_rows(self, latents):
        return self.w_dec[latents]

    def dashboard_url(self):
        return None


class SoundLatentsAdapter:
    declaration = it.AdapterDeclaration(name="acme", level="latents", contract="1.0")
    dictionary = SoundDictionary
    places = PLACES
    reference_latents = staticmethod(reference_latents)

    @it.hookimpl
    def it_load_latent_models(self, module):
        return [self.dictionary(place, bool(i), **weights(i)).eval() for i, place in enumerate(self.places)]


adapter = SoundLatentsAdapter()
