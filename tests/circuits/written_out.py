"""Models written out node by node, from their weights: every reader of the residual stream gets a copy of its own.

Nothing of the library is used. One row at a time, without padding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Change = Callable[[str, Tensor], Tensor]
"""Of the name of what is read or written, and what it is."""


def unchanged(_: str, given: Tensor) -> Tensor:
    return given


@dataclass
class Run:
    """What a forward gave: logits ``[pos, vocab]``, embeddings, and by name what nodes wrote."""

    logits: Tensor
    embedded: Tensor
    outputs: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class Row:
    """Tokens of a row."""

    prompt: list[int]
    corrupted: list[int]
    answers: list[list[int]]
    correct: int

    def sequences(self) -> Iterator[tuple[list[int], list[int], list[int], int]]:
        """Of each answer: what is run, with the clean prompt and with the corrupted one; the answer; its sign."""
        for j, answer in enumerate(self.answers):
            sign = 1 if j == self.correct else -1
            yield [*self.prompt, *answer[:-1]], [*self.corrupted, *answer[:-1]], answer, sign

    def score(self, logits: Tensor, answer: list[int]) -> Tensor:
        log_probs, first = logits.log_softmax(-1), len(self.prompt) - 1
        return sum((log_probs[first + i, token] for i, token in enumerate(answer)), torch.tensor(0.0))


class WrittenOut:
    """A model of transformers, computed head by head."""

    def __init__(self, model: Any) -> None:
        self.model, self.config = model, model.config
        self.body = (
            model.transformer if hasattr(model, "transformer") else getattr(model, "gpt_neox", None) or model.model
        )
        self.blocks = self.body.h if hasattr(self.body, "h") else self.body.layers
        self.n_heads = self.config.num_attention_heads
        self.factor = getattr(self.config, "residual_multiplier", 1.0)
        self._plain: dict[tuple[int, ...], Run] = {}
        self.parallel = self.config.model_type in ("gpt_neox", "phi")

    # ------------------------------------------------------------------------------------------------------- parts

    @staticmethod
    def attention(block: Any) -> Any:
        return next(getattr(block, name) for name in ("attn", "self_attn", "attention") if hasattr(block, name))

    def rotated(self, layer: int, x: Tensor) -> Tensor:
        """Queries or keys ``[heads, pos, d]``, rotated."""
        if not hasattr(self.body, "rotary_emb"):
            return x
        types = getattr(self.config, "layer_types", None)
        told = (types[layer],) if hasattr(self.blocks[layer], "pre_feedforward_layernorm") else ()
        cos, sin = self.body.rotary_emb(x, torch.arange(x.shape[1])[None], *told)
        width = cos.shape[-1]
        turned, rest = x[..., :width], x[..., width:]
        half = torch.cat([-turned[..., width // 2 :], turned[..., : width // 2]], dim=-1)
        return torch.cat([turned * cos + half * sin, rest], dim=-1)

    def projected(self, layer: int, part: int, normed: Tensor) -> Tensor:
        """All queries (0), keys (1) or values (2), ``[heads, pos, d]``."""
        attention = self.attention(self.blocks[layer])
        if hasattr(attention, "c_attn"):
            made = attention.c_attn(normed[None])[0].chunk(3, dim=-1)[part].unflatten(-1, (self.n_heads, -1))
        elif hasattr(attention, "query_key_value"):
            made = attention.query_key_value(normed).unflatten(-1, (self.n_heads, -1)).chunk(3, dim=-1)[part]
        else:
            made = (attention.q_proj, attention.k_proj, attention.v_proj)[part](normed)
            made = self.normed(attention, part, made).unflatten(-1, (-1, attention.head_dim))
            made = self.normed(attention, part, made)
        made = made.transpose(0, 1)
        return self.rotated(layer, made) if part < 2 else made

    @staticmethod
    def normed(attention: Any, part: int, made: Tensor) -> Tensor:
        """Through the norm of queries or keys, if there is one of this width."""
        norm = {0: getattr(attention, "q_norm", None), 1: getattr(attention, "k_norm", None)}.get(part)
        return made if norm is None or made.shape[-1] != len(norm.weight) else norm(made)

    def norms(self, layer: int) -> tuple[Any, Any, Any, Any]:
        """Norms before and after attention, before and after the MLP."""
        block, nothing = self.blocks[layer], torch.nn.Identity()
        if hasattr(block, "pre_feedforward_layernorm"):
            return (
                block.input_layernorm,
                block.post_attention_layernorm,
                block.pre_feedforward_layernorm,
                block.post_feedforward_layernorm,
            )
        if hasattr(block, "ln_1"):
            return block.ln_1, nothing, block.ln_2, nothing
        if not hasattr(block, "input_layernorm"):
            return nothing, block.post_attention_layernorm, nothing, block.post_feedforward_layernorm
        return (
            block.input_layernorm,
            nothing,
            getattr(block, "post_attention_layernorm", block.input_layernorm),
            nothing,
        )

    def added(self, layer: int, z: Tensor) -> Tensor:
        """What attention adds to the stream, from the heads' outputs ``[heads, pos, d]``."""
        attention = self.attention(self.blocks[layer])
        last = next(getattr(attention, name) for name in ("c_proj", "o_proj", "dense") if hasattr(attention, name))
        return self.factor * self.norms(layer)[1](last(z.transpose(0, 1).flatten(1)[None])[0])

    def head(self, layer: int, head: int, x: Tensor, read: Change, unchanged: dict[int, Tensor]) -> Tensor:
        """The output of one head, ``[pos, d]``; projections of a stream that no reader changes are computed once."""
        attention = self.attention(self.blocks[layer])

        def made(part: int) -> Tensor:
            given = read(f"layers.{layer}.attn_{'qkv'[part]} head {head}", x)
            if given is not x:
                return self.projected(layer, part, self.norms(layer)[0](given))
            if part not in unchanged:
                unchanged[part] = self.projected(layer, part, self.norms(layer)[0](x))
            return unchanged[part]

        q, k, v = map(made, range(3))
        k, v = (item[head * len(item) // self.n_heads] for item in (k, v))
        scaling = attention.scaling if hasattr(attention, "scaling") else k.shape[-1] ** -0.5
        at = torch.arange(len(x))
        seen = at[None] <= at[:, None]
        window = getattr(attention, "sliding_window", None)
        if window is not None:
            seen = seen & (at[:, None] - at[None] < window)
        return (q[head] @ k.T * scaling).masked_fill(~seen, -torch.inf).softmax(-1) @ v

    # ------------------------------------------------------------------------------------------------------ forward

    def embed(self, ids: Sequence[int]) -> Tensor:
        tokens = torch.tensor(list(ids))
        embedded = self.model.get_input_embeddings()(tokens)
        if hasattr(self.body, "wpe"):
            embedded = embedded + self.body.wpe(torch.arange(len(tokens)))
        return embedded * getattr(self.config, "embedding_multiplier", 1.0)

    def run(
        self, ids: Sequence[int], embedded: Tensor | None = None, read: Change = unchanged, write: Change = unchanged
    ) -> Run:
        x = write("layers.0.resid_pre", self.embed(ids) if embedded is None else embedded)
        found = Run(x, x, {"layers.0.resid_pre": x})
        for layer, block in enumerate(self.blocks):
            z, projections = [], dict[int, Tensor]()
            for head in range(self.n_heads):
                name = f"layers.{layer}.attn_z head {head}"
                z.append(write(name, self.head(layer, head, x, read, projections)))
                found.outputs[name] = z[-1]
            middle = x + self.added(layer, torch.stack(z))
            _, _, before, after = self.norms(layer)
            given = read(f"layers.{layer}.mlp_in", x if self.parallel else middle)
            name = f"layers.{layer}.mlp_out"
            made = write(name, after(block.mlp(before(given)[None])[0]))
            found.outputs[name] = made
            x = middle + self.factor * made
        names = ("ln_f", "norm", "final_layer_norm", "final_layernorm")
        norm = next(getattr(self.body, name) for name in names if hasattr(self.body, name))
        head = self.model.get_output_embeddings()
        found.logits = head(norm(read("logits", x))) / getattr(self.config, "logits_scaling", 1.0)
        return found

    def change(self, source: str, clean: Run, corrupted: Run) -> Tensor:
        """What a source adds to the stream, clean minus corrupted."""
        if "head" not in source:
            factor = 1.0 if source == "layers.0.resid_pre" else self.factor
            return factor * (clean.outputs[source] - corrupted.outputs[source])
        layer, head = int(source.split(".")[1]), int(source.split()[-1])
        z = torch.stack([clean.outputs[f"layers.{layer}.attn_z head {i}"] for i in range(self.n_heads)])
        changed = z.clone()
        changed[head] = corrupted.outputs[source]
        return self.added(layer, z) - self.added(layer, changed)

    # -------------------------------------------------------------------------------------------------- definitions

    @torch.no_grad()
    def plain(self, ids: Sequence[int]) -> Run:
        """The forward in which nothing is changed."""
        key = tuple(ids)
        if key not in self._plain:
            self._plain[key] = self.run(ids)
        return self._plain[key]

    def objective(self, row: Row) -> float:
        """Log-probability of the correct answer minus that of the other."""
        return sum(s * float(row.score(self.plain(ids).logits, answer)) for ids, _, answer, s in row.sequences())

    @torch.no_grad()
    def path_patched(self, row: Row, source: str, target: str) -> float:
        total = 0.0
        for ids, other, answer, sign in row.sequences():
            change = self.change(source, self.plain(ids), self.plain(other))
            run = self.run(ids, None, lambda name, x, c=change: x - c if name == target else x)
            total += sign * float(row.score(run.logits, answer))
        return self.objective(row) - total

    @torch.no_grad()
    def node_patched(self, row: Row, source: str) -> float:
        total = 0.0
        for ids, other, answer, sign in row.sequences():
            put = self.plain(other).outputs[source]
            run = self.run(ids, write=lambda name, x, put=put: put if name == source else x)
            total += sign * float(row.score(run.logits, answer))
        return self.objective(row) - total

    def attributed(self, row: Row, share: float = 1.0) -> tuple[dict[tuple[str, str], float], dict[str, float]]:
        """Of each edge, and of each node, the change times the gradient at embeddings between the two prompts."""
        found: dict[tuple[str, str], float] = {}
        nodes: dict[str, float] = {}
        for ids, other, answer, sign in row.sequences():
            clean, corrupted = self.plain(ids), self.plain(other)
            leaves: dict[str, Tensor] = {}

            def read(name: str, x: Tensor, leaves: dict[str, Tensor] = leaves) -> Tensor:
                leaves[name] = torch.zeros_like(x, requires_grad=True)
                return x + leaves[name]

            embedded = corrupted.embedded + share * (clean.embedded - corrupted.embedded)
            run = self.run(ids, embedded.clone().requires_grad_(), read)
            score = sign * row.score(run.logits, answer)
            by_node = torch.autograd.grad(score, list(run.outputs.values()), retain_graph=True)
            slopes = dict(zip(leaves, torch.autograd.grad(score, list(leaves.values())), strict=True))
            moved = {name: (clean.outputs[name] - corrupted.outputs[name]).detach() for name in clean.outputs}
            for name, slope in zip(run.outputs, by_node, strict=True):
                nodes[name] = nodes.get(name, 0.0) + float((moved[name] * slope).sum())
            for target, slope in slopes.items():
                for source, value in self._along(run, moved, slope, target).items():
                    found[source, target] = found.get((source, target), 0.0) + value
        return found, nodes

    def _along(self, run: Run, moved: dict[str, Tensor], slope: Tensor, target: str) -> dict[str, float]:
        """Of all sources below a target, by the slope at what it reads."""
        end = int(target.split(".")[1]) if target != "logits" else len(self.blocks)
        found = {"layers.0.resid_pre": float((moved["layers.0.resid_pre"] * slope).sum())}
        within = "mlp_in" in target and not self.parallel
        for layer in range(end + within):
            names = [f"layers.{layer}.attn_z head {head}" for head in range(self.n_heads)]
            z = torch.stack([run.outputs[name] for name in names]).detach().requires_grad_()
            back = torch.autograd.grad(self.added(layer, z), z, slope)[0]
            found |= {name: float((moved[name] * back[head]).sum()) for head, name in enumerate(names)}
            if layer < end:
                name = f"layers.{layer}.mlp_out"
                found[name] = float(self.factor * (moved[name] * slope).sum())
        return found
