"""The tiny model with another end token: one that it comes to generate, as random models seldom do by themselves."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from interpretune.testing.reference import logits_of
from interpretune.testing.rule import RuleSkipped
from interpretune.testing.workbench import Bench

LONGEST = 6
"""Tokens within which the end token must come."""

SETTINGS = ("config.json", "generation_config.json")
"""Files that say what the end token is, beside the tokenizer's."""


def greedy_tokens(bench: Bench, row: Tensor, most: int, end: int) -> list[int]:
    """Tokens of plain greedy decoding, up to the end token, which is among them."""
    tokens: list[int] = []
    while len(tokens) < most and end not in tokens:
        longer = torch.cat([row, torch.tensor(tokens, dtype=torch.long)])
        tokens.append(int(logits_of(bench.reference, longer)[-1].argmax()))
    return tokens


def row_that_ends(bench: Bench, others: Sequence[Tensor]) -> tuple[Tensor, int, int]:
    """A row, the token that shall end it, and the index of this token among the new ones, at least 1.

    Args:
        bench: The workbench.
        others: Rows in the same batch, of which one goes on for longer.

    Raises:
        RuleSkipped: The tiny model repeats itself in all rows.
    """
    special = set(bench.special)
    after = [greedy_tokens(bench, row, LONGEST + 2, -1) for row in others]
    for whole in bench.rows:
        for cut in range(min(len(whole) - 2, 6)):
            row = whole[: len(whole) - cut]
            tokens = greedy_tokens(bench, row, LONGEST, -1)
            for at in range(1, LONGEST):
                first = tokens.index(tokens[at]) == at and tokens[at] not in special
                if first and any(tokens[at] not in new[: at + 2] for new in after):
                    return row, tokens[at], at
    raise RuleSkipped("the tiny model gives no token that could end one row before the others: choose another seed")


def with_end_token(bench: Bench, token: int) -> Path:
    """The tiny model and its tokenizer, with another end token.

    Raises:
        RuleSkipped: The model is no folder of Hugging Face.
    """
    from transformers import AutoTokenizer

    folder = bench.folder / f"ends-with-{token}"
    shutil.copytree(bench.model_folder, folder, dirs_exist_ok=True)
    if not (folder / SETTINGS[0]).exists():
        raise RuleSkipped("the tiny model has no config.json in which another end token could be set")
    for file in (folder / name for name in SETTINGS):
        if file.exists():
            about = json.loads(file.read_text(encoding="utf-8"))
            file.write_text(json.dumps({**about, "eos_token_id": token}), encoding="utf-8")
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(token)
    tokenizer.save_pretrained(str(folder))
    return folder
