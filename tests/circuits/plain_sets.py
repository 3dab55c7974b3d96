"""The objective with sets of units changed, by torch hooks: whole forwards of one row, a line for each set."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

import interpretune as it
from tests.questions.plain_loops import Coder, Edit, PlainLoops

N_HEADS, WIDTH = 4, 32
PARTS = {"neuron": "mlp_act", "head": "attn_z"}
WORDS = {  # in words that all models' vocabularies have; of other lengths
    "asked": ("Ada sees {} and Cleo near", "who {}", "June with {} <eos>"),
    "held out": ("Max has {} or Dan", "Gus {} near and", "Pia {}", "or {} Ivo"),
}


def rows_of(kind: str, words: tuple[str, str] = ("Bo", "Eve")) -> list[it.PromptRow]:
    """Rows with two answers of one token, and corrupted prompts."""
    answers = ((" Kit", " Lena"), (" Nora", " it"), (" Gus", " Hana"), (" Max", " Pia"))
    prompts = [[text.format(word) for word in words] for text in WORDS[kind]]
    return [it.PromptRow(clean, answers[i], i % 2, other) for i, (clean, other) in enumerate(prompts)]


class PlainSets:
    """A question about neurons, heads and latents of a few units, asked by plain loops."""

    def __init__(self, model: Any, tokenizer: Any, rows: Sequence[it.PromptRow], value: str, positions: str) -> None:
        self.model, self.tokenizer, self.rows = model, tokenizer, rows
        self.value, self.positions = value, positions
        self.coder: Coder | None = None
        self._loops: dict[int, PlainLoops] = {}

    def tokens(self, text: Any) -> list[int]:
        return list(self.tokenizer(text)["input_ids"])

    def points(self, tokens: Sequence[int]) -> list[int]:
        return [len(tokens) - 1] if self.positions == "answer" else list(range(len(tokens)))

    def loops(self, layer: int) -> PlainLoops:
        return self._loops.setdefault(layer, PlainLoops(self.model, layer, self.tokenizer.all_special_ids))

    def seen(self, tokens: Sequence[int], name: str) -> Tensor:
        """Activations at a hook point, or latents of the dictionary, ``[pos, d]``."""
        if self.coder is not None and name == self.coder.name:
            return self.loops(int(self.coder.hook_point.split(".")[1])).seen(tokens, self.coder, [self.coder])
        _, layer, part = name.split(".")
        return self.loops(int(layer)).seen(tokens, part)

    def set_to(self, row: it.PromptRow, name: str) -> Tensor:
        """What units are set to at each token, ``[pos, d]``."""
        clean = self.seen(self.tokens(row.prompt), name)
        if self.value == "corrupted":
            return self.seen(self.tokens(row.corrupted), name)
        if self.value == "mean":
            asked = [self.tokens(item.prompt) for item in self.rows]
            return torch.cat([self.seen(ids, name)[self.points(ids)] for ids in asked]).mean(0).expand_as(clean)
        return torch.zeros_like(clean)

    def edit(self, row: it.PromptRow, name: str, members: Sequence[Sequence[int]]) -> Edit:
        """Set members, which each line of a batch has its own of."""
        values, points = self.set_to(row, name), self.points(self.tokens(row.prompt))

        def changed(activations: Tensor) -> Tensor:
            activations = activations.clone()
            for line, own in enumerate(members):
                for point in points if own else []:
                    activations[line, point, list(own)] = values[point, list(own)]
            return activations

        return changed

    @torch.no_grad()
    def objectives(self, row: it.PromptRow, sets: Sequence[Collection[tuple[str, int]]]) -> list[float]:
        """Logit difference with each of several sets of units changed, each unit named by its unit set and id."""
        tokens = self.tokens(row.prompt)
        by_name: dict[str, list[list[int]]] = {}
        for line, (name, unit) in ((line, item) for line, units in enumerate(sets) for item in units):
            wide = WIDTH // N_HEADS if name.endswith("attn_z") else 1
            members = by_name.setdefault(name, [[] for _ in sets])
            members[line].extend(range(unit * wide, (unit + 1) * wide))
        if self.coder is not None:
            by_name.setdefault(self.coder.name, [[] for _ in sets])
        edits = {name: self.edit(row, name, members) for name, members in by_name.items()}  # none is in place meanwhile
        with contextlib.ExitStack() as stack:
            for name, edit in edits.items():
                if self.coder is not None and name == self.coder.name:
                    layer = int(self.coder.hook_point.split(".")[1])
                    stack.enter_context(self.loops(layer).spliced(self.coder, tokens, len(tokens), edit))
                else:
                    _, layer, part = name.split(".")
                    stack.enter_context(self.loops(int(layer)).edited(part, edit))
            logits = self.model(input_ids=torch.tensor([tokens] * len(sets))).logits[:, -1]
        ids = [self.tokenizer(answer, add_special_tokens=False)["input_ids"][0] for answer in row.answers]
        found: list[float] = (logits[:, ids[row.correct]] - logits[:, ids[1 - row.correct]]).tolist()
        return found
