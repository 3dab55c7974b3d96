"""Numbers of bridges of seeded tiny models, for a comparison of two versions of TransformerLens.

``python -m tests.tlens4.numbers FILE`` writes those of the installed version; ``same_numbers.py`` compares.
"""

from __future__ import annotations

import functools
import importlib.metadata
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoTokenizer

from interpretune.analysis import ablate
from interpretune.replay.gradients import attribute
from interpretune_tlens import ITLensFromPretrainedConfig, ITLensFromPretrainedNoProcessingConfig, loading
from interpretune_tlens.backend import TransformerLensBackend
from tests.replay.ablated_rows import active_rows
from tests.tiny import saved_tiny_model
from tests.tiny_architectures import batch_of, dictionary, make_model

KINDS = ("llama", "gpt2", "gemma2", "qwen3", "neox")
REPLAYED = ("llama", "gpt2", "gemma2", "qwen3")
PLACES = ("blocks.1.hook_resid_post", "blocks.3.hook_mlp_out")
PROCESSED = ("llama", "gpt2")
RAGGED = (9, 4, 12, 1)


@functools.cache
def backend_of(kind: str, *, processed: bool = False) -> TransformerLensBackend:
    """The bridge of a model whose weights its seed fixes, in float32."""
    model = make_model(kind, torch.float32)
    model.config.architectures = [type(model).__name__]
    cfg = ITLensFromPretrainedConfig() if processed else ITLensFromPretrainedNoProcessingConfig()
    tokenizer = AutoTokenizer.from_pretrained(saved_tiny_model("llama"))
    bridge = loading.convert(model, tokenizer, cfg, torch.device("cpu")).eval()
    return TransformerLensBackend(bridge)


def numbers_of(kind: str) -> dict[str, Tensor]:
    """Logits, activations at canonical hook points, effects of ablations, and attributions, by name."""
    backend, inputs = backend_of(kind), batch_of(RAGGED, "left")
    real = inputs.attention_mask.bool()
    names = [name for name in backend.hook_point_names() if name.startswith("layers.")]
    with torch.no_grad():
        logits = backend.forward(inputs, {})
        found = {f"at {name}": values[real] for name, values in backend.run_with_cache(inputs, names)[1].items()}
    found["logits"] = logits[real]
    if kind in REPLAYED:
        prefill = backend.prefill(inputs, [dictionary(place, i).float() for i, place in enumerate(PLACES)])
        assert prefill.kept is not None
        latents = f"{PLACES[0]}.hook_sae_acts_post"
        rows = active_rows(prefill, latents)
        found["effects"] = ablate(prefill, rows) - prefill.logits[rows.points]
        slopes = attribute(prefill, lambda logits, _: logits[:, :5].sum(), [latents])
        found |= {f"attributed {name}": values for name, values in slopes.items()}
    if kind in PROCESSED:
        processed = backend_of(kind, processed=True)
        with torch.no_grad():
            found["logits of processed weights"] = processed.forward(inputs, {})[real]
    return {f"{kind}: {name}": values.contiguous() for name, values in found.items()}


def main(file: Path) -> None:
    """Write the numbers of all models, with the version that they are of and the names of its hook points."""
    numbers = {name: values for kind in KINDS for name, values in numbers_of(kind).items()}
    names = {kind: " ".join(backend_of(kind).hook_point_names()) for kind in KINDS}
    save_file(numbers, file, {"transformer-lens": importlib.metadata.version("transformer-lens"), **names})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
