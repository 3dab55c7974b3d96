"""The hash of content: different where content differs, equal where it does not, in every process."""

from __future__ import annotations

import collections
import json
import os
import random
import subprocess
import sys
import threading
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import nn
from transformers import PreTrainedTokenizerFast

import interpretune as it
from interpretune.hashing.content_hash import content_hash, hash_of
from tests.other_process import ROOT, run_script


class Colour(Enum):
    red = 1
    blue = 2


class Number(int):
    """A number of a class of its own."""


DIFFERENT: list[Any] = [
    *(1, True, 1.0, "1", b"1", 1 + 0j, Number(1), np.int64(1), np.float32(1), None, ...),
    *([1], (1,), {1}, frozenset({2}), {1: None}, {"1": None}, {True: None}, {1.0: None}),
    *(["ab", "c"], ["a", "bc"], ["abc"], [["ab"], "c"], [[], []], [[[]]], {"a": {"b": 1}}, {"a": {}, "b": 1}),
    *({"a": 1, "b": 2}, {"b": 2, "a": 1}, {"a": 2, "b": 1}, 0.0, -0.0, float("nan")),
    *(Colour.red, Colour.blue, torch.float32, torch.float64, Path("a"), Path("b"), range(3), range(4)),
    *(torch.ones(2), torch.ones(2, 1), torch.ones(2, dtype=torch.float64), torch.zeros(2), np.ones(2), np.ones((2, 1))),
    *(torch.ones(2).to_sparse(), torch.tensor([True]), torch.tensor([1], dtype=torch.uint8)),
    *(collections.deque([1]), collections.deque([1], maxlen=2), collections.OrderedDict(a=1), collections.Counter("a")),
    *(random.Random(1), random.Random(2), np.random.default_rng(1), np.random.default_rng(2)),
    *(torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)),
    *({1}.__contains__, {1, 2}.__contains__, "a".join, torch.relu, torch.sigmoid, np.sin, np.cos, len),
    *(SimpleNamespace(a=1), SimpleNamespace(_a=1), nn.ReLU(), nn.LeakyReLU(0.1), nn.LeakyReLU(0.2)),
    *(nn.Sequential(nn.ReLU(), nn.Tanh()), nn.Sequential(nn.Tanh(), nn.ReLU())),
]


def test_what_differs_has_another_hash() -> None:
    hashes = [hash_of(item, "it") for item in DIFFERENT]
    twice = [DIFFERENT[i] for i, found in enumerate(hashes) if hashes.index(found) != i]
    assert twice == []


def test_what_is_equal_has_one_hash() -> None:
    strided = torch.arange(6.0).reshape(2, 3).T
    pairs: list[tuple[Any, Any]] = [
        (strided, strided.contiguous()),
        (nn.Parameter(torch.ones(2)), torch.ones(2)),
        ({"x", "y", 3}, {3, "y", "x"}),
        (nn.Linear(2, 2).eval(), None),
    ]
    for one, other in pairs[:-1]:
        assert hash_of(one, "it") == hash_of(other, "it")
    layer = pairs[-1][0]
    before = hash_of(layer, "it")
    assert hash_of(layer.train().requires_grad_(False), "it") == before


def circle(*values: int) -> list[Any]:
    """Things of which each holds the next, and the last the first."""
    made = [SimpleNamespace(value=value) for value in values]
    for one, other in zip(made, [*made[1:], made[0]], strict=True):
        one.next = other
    return made


def test_things_that_hold_themselves_are_told_apart() -> None:
    assert hash_of(circle(1, 2), "it") == hash_of(circle(1, 2), "it")
    one, other = circle(5), circle(6)
    shared, apart = [one, other, one[0]], [one, other, other[0]]
    found = [circle(1), circle(2), circle(1, 1), circle(1, 2), circle(2, 1), shared, apart]
    assert len({hash_of(item, "it") for item in found}) == len(found)
    inner: list[Any] = [5]
    inner.append([inner])
    alone: list[Any] = []
    alone.append(alone)
    assert hash_of([inner, inner[1]], "it") != hash_of([inner, alone], "it")


def test_deep_and_shared_things_take_no_time() -> None:
    chain: Any = None
    for _ in range(5000):
        chain = [chain, chain]
    assert hash_of(chain, "it") == hash_of(chain, "it")


def test_attributes_come_in_any_order() -> None:
    one, other = SimpleNamespace(a=1, b=2), SimpleNamespace(b=2, a=1)
    assert hash_of(one, "it") == hash_of(other, "it")


UNREADABLE = (Path(os.devnull).open, threading.Lock, lambda: (i for i in [1]), lambda: torch.ones(1, device="meta"))


@pytest.mark.parametrize("make", UNREADABLE)
def test_what_cannot_be_read_is_told_with_its_place(make: Any) -> None:
    thing = make()
    found = content_hash({"cfg": SimpleNamespace(rng=[thing])}, "The latent model x")
    assert len(found.unknown) == 1
    assert found.unknown[0].endswith("at ['cfg'].rng[0].")
    with pytest.raises(it.UnknownContentError, match=r"\['cfg'\]\.rng\[0\].*identity\(\)"):
        hash_of({"cfg": SimpleNamespace(rng=[thing])}, "The latent model x")
    if hasattr(thing, "close"):
        thing.close()


SCRIPT = """
import json, sys
sys.meta_path[:] = [finder for finder in sys.meta_path if not type(finder).__module__.startswith("_pytest")]
for name in [name for name in sys.modules if name.partition(".")[0] == "tests"]:
    del sys.modules[name]  # as pytest has rewritten them
from interpretune.hashing.content_hash import content_hash
from tests.hashing.test_stale_latents import WAYS, NoModule
found = {kind.__name__: content_hash(kind(1.0), kind.__name__).sha256 for kind in [*WAYS, NoModule]}
print(json.dumps(found))
"""


def test_hashes_are_the_same_in_every_process(tmp_path: Path) -> None:
    script = tmp_path / "hashes.py"
    script.write_text(SCRIPT)
    forked, _ = run_script(script)
    started = subprocess.run(
        [sys.executable, str(script)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
    )
    found, expected = (json.loads(told.splitlines()[-1]) for told in (forked, started.stdout))
    assert found == expected
    assert len(set(found.values())) == len(found)


def test_weights_hashed_at_once_hash_as_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    shared = nn.Linear(3, 3)
    model = nn.Sequential(shared, nn.BatchNorm1d(3), shared, nn.Linear(3, 2).to(torch.bfloat16), nn.Sequential())
    model[1].running_mean = None
    model[4].register_buffer("strided", torch.arange(12.0).view(3, 4).T, persistent=False)
    at_once = content_hash(model, "A model")
    monkeypatch.setattr("interpretune.hashing.content_hash.digests_of_weights", lambda _: {})
    assert content_hash(model, "A model") == at_once
    with torch.no_grad():
        model[3].bias[1] += 1
    assert content_hash(model, "A model") != at_once


def test_tokenizers_count_by_all_but_padding_and_truncation() -> None:
    def tokenizer(words: str) -> PreTrainedTokenizerFast:
        model = WordLevel({word: number for number, word in enumerate(words.split())}, unk_token="?")
        return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), unk_token="?", pad_token="?")

    one, padded = tokenizer('? a "added_tokens":'), tokenizer('? a "added_tokens":')
    before = content_hash(one, "A tokenizer")
    padded(["a a", "a"], padding=True, truncation=True, max_length=1)
    padded.backend_tokenizer.enable_padding(pad_token='"added_tokens":')
    assert content_hash(padded, "A tokenizer") == before
    assert content_hash(tokenizer('? b "added_tokens":'), "A tokenizer") != before
    padded.backend_tokenizer.pre_tokenizer = Whitespace()
    assert content_hash(padded, "A tokenizer") != before
