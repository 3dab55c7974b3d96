"""Effects by plain loops: torch hooks on a transformers model, a whole forward for each row, answer and change.

Written from the definitions alone, and with nothing of the engine. Changes of the same tokens run as one batch, which
needs no padding; each has a line of its own in it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

Edit = Callable[[Tensor], Tensor]
"""Of activations ``[n, pos, d]``."""


@dataclass
class PlainRow:
    """Tokens of a row: prompt, answers, corrupted prompt."""

    prompt: list[int]
    answers: list[list[int]]
    correct: int
    corrupted: list[int]


@dataclass
class Coder:
    """A dictionary with a linear decoder, as core's protocol asks for it; the loops use its tensors alone."""

    name: str
    hook_point: str
    output_hook_point: str
    dtype: torch.dtype
    use_error_term: bool
    skips_special_tokens: bool
    d_in: int = 32
    d_sae: int = 12
    parts: list[Tensor] = field(init=False)

    def __post_init__(self) -> None:
        draw = torch.Generator().manual_seed(len(self.name))
        shapes = ((self.d_in, self.d_sae), (self.d_sae,), (self.d_sae, self.d_in))
        self.parts = [torch.randn(*shape, generator=draw).to(self.dtype) / shape[0] ** 0.5 for shape in shapes]

    def encode(self, activations: Tensor) -> Tensor:
        return (activations @ self.parts[0] + self.parts[1]).relu()

    def decode(self, latents: Tensor) -> Tensor:
        return latents @ self.parts[2]

    def dashboard_url(self) -> None:
        return None


@dataclass
class Change:
    """Coordinates at a hook point, or latents of a dictionary, set at one token of the prompt; nothing if none."""

    at: str | Coder
    position: int
    members: Sequence[int]
    values: Tensor


NOTHING = Change("", 0, [], torch.zeros(0))


class PlainLoops:
    """A model of transformers, seen at one of its blocks."""

    def __init__(self, model: Any, layer: int, special: Sequence[int]) -> None:
        self.model, self.special = model, set(special)
        self._seen: dict[tuple[Any, ...], Tensor] = {}
        block = (model.transformer.h if hasattr(model, "transformer") else model.model.layers)[layer]
        attention = block.attn if hasattr(block, "attn") else block.self_attn
        normed = hasattr(block, "post_feedforward_layernorm")  # Gemma's norms after the sublayers
        self.at: dict[str, tuple[nn.Module, str]] = {
            "resid_pre": (block, "in"),
            "attn_z": (attention.c_proj if hasattr(attention, "c_proj") else attention.o_proj, "in"),
            "attn_out": (block.post_attention_layernorm if normed else attention, "out"),
            "mlp_in": (block.mlp, "in"),
            "mlp_act": (block.mlp.c_proj if hasattr(block.mlp, "c_proj") else block.mlp.down_proj, "in"),
            "mlp_out": (block.post_feedforward_layernorm if normed else block.mlp, "out"),
            "resid_post": (block, "out"),
        }

    @contextlib.contextmanager
    def edited(self, part: str, edit: Edit) -> Iterator[None]:
        if part == "resid_mid":  # the stream passes no module there: change what attention adds
            stream: list[Tensor] = []
            note = self.edited("resid_pre", lambda before: stream.append(before) or before)
            with note, self.edited("attn_out", lambda out: edit(stream[-1] + out) - stream[-1]):
                yield
            return
        module, side = self.at[part]

        def changed(given: Any) -> Any:
            return (edit(given[0].clone()), *given[1:]) if isinstance(given, tuple) else edit(given.clone())

        if side == "out":
            handle = module.register_forward_hook(lambda _, __, output: changed(output))
        else:
            handle = module.register_forward_pre_hook(lambda _, args: changed(args))
        try:
            yield
        finally:
            handle.remove()

    @contextlib.contextmanager
    def spliced(self, coder: Coder, tokens: Sequence[int], n_prompt: int, change: Edit) -> Iterator[None]:
        """All tokens reconstructed but those that the dictionary skips; ``change`` is of the latents."""
        skipped = torch.tensor([i == 0 or token in self.special for i, token in enumerate(tokens)])
        skipped[n_prompt - 1] = False
        skipped = (skipped & coder.skips_special_tokens).unsqueeze(-1)
        read: list[Tensor] = []

        def encode(activations: Tensor) -> Tensor:
            read.append(coder.encode(activations).masked_fill(skipped, 0))
            return activations

        def decode(activations: Tensor) -> Tensor:
            latents = read.pop()
            output = coder.decode(change(latents.clone()))
            if coder.use_error_term:
                output = output + activations - coder.decode(latents)
            return torch.where(skipped, activations, output)

        reads, writes = (name.rpartition(".")[2] for name in (coder.hook_point, coder.output_hook_point))
        with contextlib.ExitStack() as stack:
            if reads == writes:
                stack.enter_context(self.edited(reads, lambda activations: decode(encode(activations))))
            else:
                stack.enter_context(self.edited(reads, encode))
                stack.enter_context(self.edited(writes, decode))
            yield

    @torch.no_grad()
    def run(
        self, tokens: Sequence[int], n_prompt: int, coders: Sequence[Coder], changes: Sequence[Change]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits ``[n, pos, vocab]``, and latents before the changes ``[n, pos, d_sae]`` by dictionary."""
        seen: dict[str, Tensor] = {}

        def changed(activations: Tensor, at: str | Coder) -> Tensor:
            for line, change in enumerate(changes):
                if change.at is at or change.at == at:
                    members = list(change.members)
                    activations[line, change.position, members] = change.values[members].to(activations)
            return activations

        with contextlib.ExitStack() as stack:
            for coder in coders:

                def edit(latents: Tensor, coder: Coder = coder) -> Tensor:
                    seen[coder.name] = latents.clone()
                    return changed(latents, coder)

                stack.enter_context(self.spliced(coder, tokens, n_prompt, edit))
            for part in {change.at for change in changes if isinstance(change.at, str) and change.at}:
                stack.enter_context(self.edited(part, lambda activations, part=part: changed(activations, part)))
            return self.model(input_ids=torch.tensor([list(tokens)] * len(changes))).logits, seen

    def seen(self, tokens: Sequence[int], at: str | Coder, coders: Sequence[Coder] = ()) -> Tensor:
        """Activations at a hook point of the model as it is, or latents with dictionaries spliced in, ``[pos, d]``."""
        key = (*tokens, at.name if isinstance(at, Coder) else at)
        if key in self._seen:
            return self._seen[key]
        found: list[Tensor] = []
        if isinstance(at, Coder):
            found.append(self.run(tokens, len(tokens), coders, [NOTHING])[1][at.name])
        else:
            with self.edited(at, lambda activations: found.append(activations) or activations):
                self.run(tokens, len(tokens), [], [NOTHING])
        return self._seen.setdefault(key, found[0][0])

    def outcomes(
        self, row: PlainRow, coders: Sequence[Coder], changes: Sequence[Change]
    ) -> list[tuple[Tensor, Tensor]]:
        """For each change the log-probability of each answer, teacher-forced, and of each token after the prompt."""
        n, known, scores = len(row.prompt), {}, []
        for answer in ([0], *row.answers):  # fed without its last token
            fed = (*row.prompt, *answer[:-1])
            if fed not in known:
                known[fed] = self.run(fed, n, coders, changes)[0].log_softmax(-1)
            scores.append(sum(known[fed][:, n - 1 + i, token] for i, token in enumerate(answer)))
        return list(zip(torch.stack(scores[1:], -1), known[tuple(row.prompt)][:, -1], strict=True))


def objective_of(name: str, row: PlainRow, outcome: tuple[Tensor, Tensor], clean: Tensor) -> float:
    """An objective by its definition; ``clean`` has the log-probabilities after the prompt in the clean run."""
    scores, log_probs = outcome
    correct = scores[row.correct]
    others = scores[[i for i in range(len(scores)) if i != row.correct]]
    if name == "logit_diff":
        (other,) = others
        return (correct - other).item()
    if name in ("mean", "max", "logsumexp"):
        reduced = {"mean": others.mean(), "max": others.max(), "logsumexp": others.exp().sum().log()}
        return (correct - reduced[name]).item()
    found = {
        "log_prob": correct,
        "prob": correct.exp(),
        "kl": (clean.exp() * (clean - log_probs)).sum(),
        "own": correct.exp() + log_probs[7] - clean[9],
    }
    return found[name].item()
