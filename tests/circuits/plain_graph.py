"""An attribution graph by plain loops: torch hooks on a transformers model, one forward of the held model a source.

Written from the definition alone: attention patterns, scales of norms and outputs of MLPs are those of the clean run,
and an edge is what the target loses when what the source writes is taken away.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tests.cross_layer import Linear, random

Place = tuple[str, int]
"""``embed``, ``resid_mid``, ``mlp_in``, ``mlp_out`` or ``normed``, and a layer."""


def transcoders(layers: Sequence[int], dtype: torch.dtype = torch.float64, reads: str = "mlp_in") -> list[Linear]:
    """One for each layer; the first reads the stream before the norm."""
    parts = ["resid_mid", *[reads] * len(layers)]
    return [
        _linear(f"layer {i}", f"layers.{i}.{part}", [f"layers.{i}.mlp_out"], seed=i, dtype=dtype)
        for i, part in zip(layers, parts, strict=False)
    ]


def cross_layer(n_layers: int) -> list[Linear]:
    """Parts of a cross-layer transcoder."""
    outputs = [f"layers.{i}.mlp_out" for i in range(n_layers)]
    return [_linear(f"layer {i}", f"layers.{i}.mlp_in", outputs[i:], seed=i) for i in range(n_layers)]


class Skipping(Linear):
    """A transcoder with a skip connection."""

    has_skip_connection = True

    def __init__(self, of: Linear, seed: int) -> None:
        weights = {"w_enc": of.w_enc, "b_enc": of.b_enc, "w_dec": of.w_dec, "b_dec": of.b_dec}
        super().__init__(of.name, of.hook_points, of.output_hook_points, False, **weights)
        self.w_skip = random(32, of.w_dec.shape[1], seed=seed, scale=0.1).to(of.w_dec)

    def decode(self, latents: Tensor, inputs: Tensor | None = None) -> Tensor:
        """The reconstruction of the latents, and of the inputs where they are given."""
        decoded = super().decode(latents)
        return decoded if inputs is None else decoded + inputs @ self.w_skip


def _linear(name: str, reads: str, writes: Sequence[str], seed: int, dtype: torch.dtype = torch.float64) -> Linear:
    wide, latents = 32 * len(writes), 10
    weights = {
        "w_enc": random(32, latents, seed=seed, scale=32**-0.5),
        "b_enc": random(latents, seed=seed + 50, scale=0.2) - 0.4,
        "w_dec": random(latents, wide, seed=seed + 100, scale=latents**-0.5),
        "b_dec": random(wide, seed=seed + 150, scale=0.2),
    }
    return Linear(name, [reads], writes, False, **{key: weight.to(dtype) for key, weight in weights.items()})


class HeldModel:
    """A model, a prompt ``[pos]`` and dictionaries; ``held`` is the linear model, ``whole`` the model as it is."""

    def __init__(self, model: Any, tokens: Tensor, dictionaries: Sequence[Linear]) -> None:
        self.tokens, self.dictionaries = tokens, dictionaries
        self.model, self.eager = model, copy.deepcopy(model)
        self.eager.set_attn_implementation("eager")
        self.patterns: list[Tensor] = []
        self.read: dict[str, Tensor] = {}
        with self._softmax(self._note):
            self.clean = self.run(self.eager, {}, norms=self._note_norm)
        self.n_layers = len(blocks_of(model))
        self.explained = {place: torch.zeros_like(self.clean[place]) for place in self._places()}
        self.passed = {place: torch.zeros_like(self.clean[place]) for place in self._places()}
        self.skips: list[tuple[Place, Place, Tensor]] = []
        self.now: dict[Place, Tensor] = {}
        self.written: dict[tuple[str, int, int, int], dict[Place, Tensor]] = {}
        self.values: dict[tuple[str, int, int, int], float] = {}
        for item in dictionaries:
            layer, part = int(item.hook_point.split(".")[1]), item.hook_point.split(".")[2]
            latents = item.encode(self.clean[part, layer])
            outs = [int(name.split(".")[1]) for name in item.output_hook_points]
            if isinstance(item, Skipping):
                for j, weight in zip(outs, item.w_skip.split(32, -1), strict=True):
                    self.skips.append(((part, layer), ("mlp_out", j), weight))
                    self.passed["mlp_out", j] += self.clean[part, layer] @ weight
            for j, made in zip(outs, item.decode(latents).split(32, -1), strict=True):
                self.explained["mlp_out", j] += made
            for position, unit in latents.nonzero().tolist():
                rows = (latents[position, unit] * item.w_dec[unit]).split(32)
                self._add("latent", layer, position, unit, {("mlp_out", j): r for j, r in zip(outs, rows, strict=True)})
                self.values["latent", layer, position, unit] = float(latents[position, unit])
        bare = {j for j in range(self.n_layers) if not self.explained["mlp_out", j].any()}
        for position, token in enumerate(tokens.tolist()):
            for j in range(self.n_layers):
                place = ("mlp_out", j)
                kind = "mlp" if j in bare else "error"
                left = self.clean[place] - self.passed[place] - self.explained[place]
                self._add(kind, j, position, -1, {place: left[position]})
            self._add("token", -1, position, token, {("embed", 0): self.clean["embed", 0][position]})

    def _places(self) -> list[Place]:
        return [("embed", 0), *(("mlp_out", j) for j in range(self.n_layers))]

    def _add(self, kind: str, layer: int, position: int, unit: int, vectors: dict[Place, Tensor]) -> None:
        self.written[kind, layer, position, unit] = vectors

    def without(self, *sources: Any) -> dict[Place, Tensor]:
        """What is written, ``[pos, d]`` by place, with that of some sources taken away."""
        left = {place: self.clean[place] - self.passed[place] for place in self._places()}
        for source in sources:
            for place, vector in self.written[source].items():
                left[place][source[2]] -= vector
        return left

    def held(self, *sources: Any) -> dict[tuple[str, int, int, int], Tensor]:
        """Activations before the nonlinearity, and centred logits, in the linear model without some sources."""
        left, patterns = self.without(*sources), iter(self.patterns)
        with self._softmax(lambda _: next(patterns)):
            changes = {place: self._with_skips(place, x) for place, x in left.items()}
            seen = self.run(self.eager, changes, norms=self._hold_norm)
        return self._targets(seen, lambda item, x: x @ item.w_enc + item.b_enc)

    def _with_skips(self, place: Place, x: Tensor) -> Callable[[Tensor], Tensor]:
        """What is written at a place, and what skip connections make of what this forward has read."""
        return lambda _: x + sum(self.now[reads] @ weight for reads, writes, weight in self.skips if writes == place)

    def whole(self, source: Any = None) -> dict[tuple[str, int, int, int], Tensor]:
        """Latents and centred logits of the model as it is, without a source."""
        changes = {}
        for place, vector in (self.written[source] if source else {}).items():
            gone = torch.zeros_like(self.clean[place])
            gone[source[2]] = vector
            changes[place] = lambda x, gone=gone: x - gone
        return self._targets(self.run(self.model, changes), lambda item, x: item.encode(x))

    def _targets(self, seen: Mapping[Place, Tensor], encode: Callable[[Linear, Tensor], Tensor]) -> Any:
        found: dict[tuple[str, int, int, int], Tensor] = {}
        for item in self.dictionaries:
            _, layer, part = item.hook_point.split(".")
            for position, units in enumerate(encode(item, seen[part, int(layer)])):
                found |= {("latent", int(layer), position, unit): value for unit, value in enumerate(units)}
        logits, last = seen["logits", 0][-1], len(self.tokens) - 1
        for token, value in enumerate(logits - logits.mean()):
            found["logit", self.n_layers, last, token] = value
        return found

    # ------------------------------------------------------------------------------------------------------- forwards

    def run(
        self, model: Any, changes: Mapping[Place, Callable[[Tensor], Tensor]], norms: Any = None
    ) -> dict[Place, Tensor]:
        """One forward, with changes of what is at places; all that is there after them."""
        seen: dict[Place, Tensor] = {}
        self.now = seen
        handles = []

        def at(place: Place) -> Callable[[Tensor], Tensor]:
            def apply(x: Tensor) -> Tensor:
                made = changes[place](x[0]).unsqueeze(0) if place in changes else x
                seen[place] = made[0].detach().clone()
                return made

            return apply

        for name, module in model.named_modules():
            if norms and "Norm" in type(module).__name__ and name.split(".")[-1] not in ("q_norm", "k_norm"):
                note = lambda m, args, out, name=name: norms(name, m, args[0], out)  # noqa: E731
                handles.append(module.register_forward_hook(note))
        body = blocks_of(model)
        handles.append(body[0].register_forward_pre_hook(lambda _, args: (at(("embed", 0))(args[0]), *args[1:])))
        for i, block in enumerate(body):
            before = next(getattr(block, n) for n in BEFORE_MLP if hasattr(block, n))
            after = getattr(block, "post_feedforward_layernorm", block.mlp)
            handles.append(before.register_forward_pre_hook(lambda _, args, i=i: at(("resid_mid", i))(args[0])))
            handles.append(block.mlp.register_forward_pre_hook(lambda _, args, i=i: at(("mlp_in", i))(args[0])))
            handles.append(after.register_forward_hook(lambda _, __, out, i=i: at(("mlp_out", i))(out)))
        handles.append(model.lm_head.register_forward_hook(lambda _, __, out: at(("logits", 0))(out)))
        try:
            with torch.no_grad():
                model(input_ids=self.tokens.unsqueeze(0))
        finally:
            for handle in handles:
                handle.remove()
        return seen

    def _note(self, pattern: Tensor) -> Tensor:
        self.patterns.append(pattern)
        return pattern

    @contextmanager
    def _softmax(self, use: Callable[[Tensor], Tensor]) -> Iterator[None]:
        own = nn.functional.softmax

        def softmax(x: Tensor, dim: int, dtype: Any = None) -> Tensor:  # transformers round to float32 here
            return use(own(x, dim=dim))

        nn.functional.softmax = softmax  # type: ignore[assignment]
        try:
            yield
        finally:
            nn.functional.softmax = own

    def _note_norm(self, name: str, _: nn.Module, read: Tensor, made: Tensor) -> Tensor:
        self.read[name] = read.detach()
        return made

    def _hold_norm(self, name: str, norm: Any, read: Tensor, _: Tensor) -> Tensor:
        layer = type(norm).__name__.endswith("LayerNorm")
        before = self.read[name]
        if layer:
            before, read = before - before.mean(-1, keepdim=True), read - read.mean(-1, keepdim=True)
        eps = norm.variance_epsilon if hasattr(norm, "variance_epsilon") else norm.eps
        weight = norm.weight + 1 if type(norm).__name__.startswith("Gemma") else norm.weight
        made = weight * read / (before.pow(2).mean(-1, keepdim=True) + eps).sqrt()
        return made + norm.bias if layer else made


BEFORE_MLP = ("pre_feedforward_layernorm", "post_attention_layernorm", "ln_2")


def blocks_of(model: Any) -> Any:
    """The blocks of a GPT-2 or of one that is named as Llama."""
    return model.transformer.h if hasattr(model, "transformer") else model.model.layers
