"""Dictionaries over several layers, in the layouts in which they are published, and plain loops that splice them.

A cross-layer transcoder is loaded from the files of circuit-tracer, a crosscoder from those of dictionary_learning. The
loops know neither: a Hugging Face GPT-2 or Llama, torch hooks, one unpadded row.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

Change = Callable[[str, Tensor], Tensor]
"""Takes a hook point and the latents ``[1, pos, d]`` read there (first), and returns them changed."""
Hook = Callable[[Tensor], Tensor]


def random(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, generator=draw, dtype=torch.float64)


# ---------------------------------------------------------------------------------------------- published layouts


def write_clt(folder: Path, n_layers: int, width: int, latents: int) -> Path:
    """``W_enc_{layer}.safetensors`` and ``W_dec_{layer}.safetensors`` of a random cross-layer transcoder."""
    folder.mkdir()
    for i in range(n_layers):
        encoder = {
            f"W_enc_{i}": random(latents, width, seed=10 * i, scale=width**-0.5),
            f"b_enc_{i}": random(latents, seed=10 * i + 1, scale=0.2),
            f"b_dec_{i}": random(width, seed=10 * i + 2, scale=0.2),
        }
        save_file(encoder, folder / f"W_enc_{i}.safetensors")
        decoder = random(latents, n_layers - i, width, seed=10 * i + 3, scale=latents**-0.5)
        save_file({f"W_dec_{i}": decoder}, folder / f"W_dec_{i}.safetensors")
    return folder


def write_crosscoder(path: Path, n_layers: int, width: int, latents: int) -> Path:
    """``model.safetensors`` of a random crosscoder."""
    weights = {
        "encoder.weight": random(n_layers, width, latents, seed=1, scale=(n_layers * width) ** -0.5),
        "encoder.bias": random(latents, seed=2, scale=0.2),
        "decoder.weight": random(n_layers, latents, width, seed=3, scale=latents**-0.5),
        "decoder.bias": random(n_layers, width, seed=4, scale=0.2),
    }
    save_file(weights, path)
    return path


class Linear:
    """ReLU latents with a linear decoder."""

    skips_special_tokens = False

    def __init__(self, name: str, reads: Sequence[str], writes: Sequence[str], error: bool, **weights: Tensor) -> None:
        self.name, self.use_error_term = name, error
        self.hook_points, self.output_hook_points = tuple(reads), tuple(writes)
        self.hook_point, self.output_hook_point = reads[0], writes[0]
        self.w_enc, self.b_enc, self.w_dec, self.b_dec = (
            weights[part] for part in ("w_enc", "b_enc", "w_dec", "b_dec")
        )
        self.d_in, self.d_sae = self.w_enc.shape

    def encode(self, activations: Tensor) -> Tensor:
        return torch.relu(activations @ self.w_enc + self.b_enc)

    def decode(self, latents: Tensor) -> Tensor:
        return latents @ self.w_dec + self.b_dec

    def decoder_rows(self, latents: Tensor) -> Tensor:
        return self.w_dec[latents]

    def dashboard_url(self) -> str | None:
        return None


def load_clt(folder: Path, *, error: bool = False) -> list[Linear]:
    """One latent model for each layer."""
    n_layers = len(list(folder.glob("W_enc_*")))
    found = []
    for i in range(n_layers):
        part = load_file(folder / f"W_enc_{i}.safetensors")
        decoder = load_file(folder / f"W_dec_{i}.safetensors")[f"W_dec_{i}"]
        bias = torch.zeros(decoder.shape[1:], dtype=decoder.dtype)
        bias[0] = part[f"b_dec_{i}"]
        weights = {
            "w_enc": part[f"W_enc_{i}"].T,
            "b_enc": part[f"b_enc_{i}"],
            "w_dec": decoder.flatten(1),
            "b_dec": bias.flatten(),
        }
        writes = [f"layers.{target}.mlp_out" for target in range(i, n_layers)]
        found.append(Linear(f"clt {i}", [f"layers.{i}.resid_mid"], writes, error, **weights))
    return found


def load_crosscoder(path: Path, layers: Sequence[int], *, error: bool = False) -> Linear:
    """A crosscoder of residual streams."""
    stored = load_file(path)
    weights = {
        "w_enc": stored["encoder.weight"].flatten(0, 1),
        "b_enc": stored["encoder.bias"],
        "w_dec": stored["decoder.weight"].transpose(0, 1).flatten(1),
        "b_dec": stored["decoder.bias"].flatten(),
    }
    points = [f"layers.{layer}.resid_post" for layer in layers]
    return Linear("crosscoder", points, points, error, **weights)


# ---------------------------------------------------------------------------------------------------- plain loops


@contextlib.contextmanager
def hooks_on(model: Any, hooks: Sequence[tuple[int, str, Hook]]) -> Iterator[None]:
    """Functions applied at ``resid_mid``, ``mlp_out`` and ``resid_post`` of blocks."""
    gpt2 = hasattr(model, "transformer")
    blocks = model.transformer.h if gpt2 else model.model.layers
    handles = []

    def after(hook: Hook) -> Any:
        def run(_: Any, __: Any, output: Any) -> Any:
            return (hook(output[0]), *output[1:]) if isinstance(output, tuple) else hook(output)

        return run

    def before(hook: Hook) -> Any:
        return lambda _, args: (hook(args[0]), *args[1:])

    for layer, part, hook in hooks:
        block = blocks[layer]
        if part == "resid_mid":
            norm = block.ln_2 if gpt2 else block.post_attention_layernorm
            handles.append(norm.register_forward_pre_hook(before(hook)))
        else:
            module = block.mlp if part == "mlp_out" else block
            handles.append(module.register_forward_hook(after(hook)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def logits_of(model: Any, tokens: Tensor, hooks: Sequence[tuple[int, str, Hook]] = ()) -> Tensor:
    """``[pos, vocab]`` of one unpadded row."""
    with hooks_on(model, hooks):
        return model(input_ids=tokens.unsqueeze(0)).logits[0]


def with_clt(model: Any, tokens: Tensor, folder: Path, change: Change, *, error: bool) -> Tensor:
    """Every MLP gives the sum of what latents of its own and of lower layers write; or its own, and their change."""
    n_layers = len(list(folder.glob("W_enc_*")))
    encoders = [load_file(folder / f"W_enc_{i}.safetensors") for i in range(n_layers)]
    decoders = [load_file(folder / f"W_dec_{i}.safetensors")[f"W_dec_{i}"] for i in range(n_layers)]
    written: dict[int, Tensor] = {}

    def read(layer: int) -> Hook:
        def hook(x: Tensor) -> Tensor:
            part = encoders[layer]
            latents = torch.relu(x @ part[f"W_enc_{layer}"].T + part[f"b_enc_{layer}"])
            changed = change(f"layers.{layer}.resid_mid", latents.clone())
            written[layer] = changed - latents.detach() if error else changed
            return x

        return hook

    def write(target: int) -> Hook:
        def hook(x: Tensor) -> Tensor:
            total = x if error else encoders[target][f"b_dec_{target}"].expand_as(x)
            for layer in range(target + 1):
                total = total + written[layer] @ decoders[layer][:, target - layer]
            return total

        return hook

    hooks = [
        *((layer, "resid_mid", read(layer)) for layer in range(n_layers)),
        *((layer, "mlp_out", write(layer)) for layer in range(n_layers)),
    ]
    return logits_of(model, tokens, hooks)


def with_crosscoder(
    model: Any,
    tokens: Tensor,
    path: Path,
    layers: Sequence[int],
    change: Change,
    *,
    error: bool,
    below: Sequence[tuple[int, str, Hook]] = (),
) -> Tensor:
    """A run in which it reads, and one in which it writes; others below it do the same in both."""
    stored, seen = load_file(path), []

    def read(x: Tensor) -> Tensor:
        seen.append(x)
        return x

    logits_of(model, tokens, [*below, *((layer, "resid_post", read) for layer in layers)])
    weight = stored["encoder.weight"]
    code = torch.relu(sum(x @ weight[i] for i, x in enumerate(seen)) + stored["encoder.bias"])
    code = code.detach() if error else code
    changed = change(f"layers.{layers[0]}.resid_post", code.clone())

    def write(i: int) -> Hook:
        decoder = stored["decoder.weight"][i]
        return lambda x: x + (changed - code) @ decoder if error else changed @ decoder + stored["decoder.bias"][i]

    return logits_of(model, tokens, [*below, *((layer, "resid_post", write(i)) for i, layer in enumerate(layers))])
