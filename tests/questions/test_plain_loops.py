"""Effects equal those of plain loops wherever two of model, padding, objective, units, value and positions meet."""

from __future__ import annotations

import itertools
import random
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

import interpretune as it
from interpretune.questions import Latents, OwnObjective
from interpretune.testing.tiny_models import tiny_tokenizer
from tests.questions.plain_loops import NOTHING, Change, Coder, PlainLoops, PlainRow, objective_of
from tests.tiny_architectures import make_model

VARIANTS = {"others": ("mean", "max", "logsumexp"), "answer": ("log_prob", "prob"), "number": ("zero", "number")}
"""Levels that differ by one formula: which of them a case has is a level of its own."""
LEVELS: dict[str, tuple[Any, ...]] = {
    "objective": ("logit_diff", "others", "answer", "kl", "own"),
    "value": ("number", "mean", "mean_over", "corrupted", "given"),
    "variant": (0, 1, 2),
    "units": ("latents", "latents with errors", "neurons", "heads", "sublayers", "residual"),
    "kind": ("llama", "gpt2", "gemma3", "qwen3"),
    "positions": ("answer", "what", "each"),
    "layer": (0, 1, 3),
    "tokens": ("one", "several"),
    "dtype": (torch.float64, torch.float32),
    "side": ("left", "right"),
    "batch_size": (1, 2),
}
PROMPTS = [  # in words that the models' vocabulary of 101 has: prompt, corrupted prompt, span
    ("Ada sees Bo and Cleo near", "Ada sees Dan or Eve near", "Bo and"),
    ("who was", "she has", "was"),
    ("June with Kit <eos>", "Lena with Kit <eos>", "Kit <eos>"),
]
OTHERS = [
    it.PromptRow("Max leaves it", (" Kit",), spans={"what": "leaves"}),
    it.PromptRow("no", (" Kit",), spans={"what": "no"}),
]
ANSWERS = {
    "one": [(" Kit", " Lena", " Max"), (" Nora", " it", " Pia"), (" Gus", " Hana", " Ivo")],
    "several": [
        (" Kit", " Lena sees Bo", " Max"),
        (" Lena", " Max", " Nora"),
        (" Kit has it", " Kit was", " Max"),
    ],
}
N_ANSWERS = {"logit_diff": (2, 2, 2), "mean": (2, 3, 3), "max": (3, 2, 2), "logsumexp": (3, 3, 2)}
N_HEADS, WIDTH = 4, 32


def pairwise() -> list[dict[str, Any]]:
    """Cases in which each pair of levels meets; of some at random, always the one with most pairs that are new."""
    draw, names = random.Random(0), list(LEVELS)
    missing = {((a, x), (b, y)) for a, b in itertools.combinations(names, 2) for x in LEVELS[a] for y in LEVELS[b]}
    cases = []
    while missing:
        (a, x), (b, y) = min(missing, key=str)
        tried = [{**{name: draw.choice(LEVELS[name]) for name in names}, a: x, b: y} for _ in range(50)]
        found = [set(itertools.combinations(case.items(), 2)) & missing for case in tried]
        best = max(range(len(tried)), key=lambda i: len(found[i]))
        cases.append(tried[best])
        missing -= found[best]
    for case in cases:
        for name in ("objective", "value"):
            variants = VARIANTS.get(case[name], (case[name],))
            case[name] = variants[case["variant"] % len(variants)]
    return cases


@cache
def model_of(kind: str, dtype: torch.dtype) -> Any:
    return make_model(kind, dtype)


def units_of(case: dict[str, Any]) -> tuple[list[Any], dict[str, tuple[str | Coder, dict[int, list[int]]]]]:
    """What is asked for; by name of a unit set, where it is and the coordinates of each unit."""
    layer, block, units = case["layer"], f"layers.{case['layer']}", case["units"]
    if units == "neurons":
        return [it.Neurons(layer, [0, 30])], {f"{block}.mlp_act": ("mlp_act", {0: [0], 30: [30]})}
    if units == "heads":
        members = torch.arange(WIDTH).reshape(N_HEADS, -1).tolist()
        return [it.Heads(layer, [0, 3])], {f"{block}.attn_z": ("attn_z", {0: members[0], 3: members[3]})}
    if units in ("sublayers", "residual"):
        parts = ("attn_out", "mlp_out") if units == "sublayers" else ("resid_pre", "resid_mid", "resid_post")
        sets = {f"{block}.{part}": (part, {0: list(range(WIDTH))}) for part in parts}
        return [it.Vector(name) for name in sets], sets
    errors = units == "latents with errors"
    reads = f"{block}.attn_z" if errors else f"{block}.resid_post"
    coders = [
        Coder("sae", reads, reads, case["dtype"], errors, False),
        Coder("transcoder", f"{block}.mlp_in", f"{block}.mlp_out", case["dtype"], not errors, True),
    ]
    return [Latents(item, (1, 4)) for item in coders], {item.name: (item, {1: [1], 4: [4]}) for item in coders}


def own(outcome: Any) -> Tensor:
    return outcome.of_correct.exp() + outcome.log_probs[:, 7] - outcome.clean[:, 9]


OBJECTIVES = {name: it.LogitDiff(name) for name in ("mean", "max", "logsumexp")} | {"own": OwnObjective(own)}


def difference(case: dict[str, Any]) -> float:
    """The largest difference between ``effects`` and plain loops."""
    name, tokenizer, model = case["objective"], tiny_tokenizer(case["side"]), model_of(case["kind"], case["dtype"])
    rows = []
    for i, (prompt, corrupted, span) in enumerate(PROMPTS):
        answers = ANSWERS[case["tokens"]][i][: N_ANSWERS.get(name, (1, 2, 3))[i]]
        rows.append(it.PromptRow(prompt, answers, i % len(answers), corrupted, {"what": span}))
    asked, sets = units_of(case)
    coders = [at for at, _ in sets.values() if isinstance(at, Coder)]
    plain = PlainLoops(model, case["layer"], tokenizer.all_special_ids)
    sizes = {key: plain.seen([0], at, coders).shape[-1] for key, (at, _) in sets.items()}
    draw = torch.Generator().manual_seed(3)
    given = {key: torch.randn(size, generator=draw) for key, size in sizes.items()}
    result = it.effects(
        model,
        tokenizer,
        rows,
        units=asked,
        objective=OBJECTIVES.get(name, name),
        value={"number": 0.5, "given": given, "mean_over": "mean"}.get(case["value"], case["value"]),
        mean_over=OTHERS if case["value"] == "mean_over" else None,
        positions=case["positions"],
        batch_size=case["batch_size"],
    )

    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    def plain_row(row: it.PromptRow) -> PlainRow:
        prompts = [[tokenizer.bos_token_id, *ids(text or "")] for text in (row.prompt, row.corrupted)]
        return PlainRow(prompts[0], [ids(answer) for answer in row.answers], row.correct, prompts[1])

    def points_of(row: it.PromptRow) -> list[int]:
        words = ["<bos>", *row.prompt.split()]
        span = row.spans["what"].split()
        first = words.index(span[0])
        found = {"answer": [len(words) - 1], "each": range(len(words)), "what": range(first, first + len(span))}
        return list(found[case["positions"]])

    def values_of(key: str, at: str | Coder, row: PlainRow) -> Tensor:
        """``[pos, d]``."""
        if case["value"] == "corrupted":
            return plain.seen(row.corrupted, at, coders)
        if case["value"] in ("mean", "mean_over"):
            over = OTHERS if case["value"] == "mean_over" else rows
            parts = [plain.seen(plain_row(other).prompt, at, coders)[points_of(other)].double() for other in over]
            value = torch.cat(parts).mean(0)
        else:
            value = {"zero": torch.zeros(sizes[key]), "number": torch.full((sizes[key],), 0.5), "given": given[key]}[
                case["value"]
            ]
        return value.expand(len(row.prompt), -1)

    table = result.to_pandas().set_index(["row", "position", "units", "unit"])
    shown, furthest, largest, count = result.rows(), [0.0], 0.0, 0
    for i, asked_row in enumerate(rows):
        row, points = plain_row(asked_row), points_of(asked_row)
        changes: dict[tuple[Any, ...], Change] = {}
        sizes_of_units = {}
        for key, (at, members) in sets.items():
            clean, values = plain.seen(row.prompt, at, coders), values_of(key, at, row)
            for position, (unit, mine) in itertools.product(points, members.items()):
                changes[i, position, key, unit] = Change(at, position, mine, values[position])
                sizes_of_units[i, position, key, unit] = clean[position, mine].norm().item()
        spliced, *outcomes = plain.outcomes(row, coders, [NOTHING, *changes.values()])
        (whole,) = plain.outcomes(row, [], [NOTHING]) if coders else [spliced]
        before = objective_of(name, row, spliced, spliced[1])
        furthest.append(abs(shown.objective[i] - objective_of(name, row, whole, whole[1])))
        furthest.append(abs(shown.objective_spliced[i] - before))
        assert shown.predicted[i] == whole[0].argmax()
        count += len(points)
        for index, outcome in zip(changes, outcomes, strict=True):
            expected = before - objective_of(name, row, outcome, spliced[1])
            effect, size = table.loc[index, ["effect", "activation"]] if index in table.index else (0.0, None)
            furthest.append(abs(expected - effect))
            furthest.append(0.0 if size is None else abs(abs(size) - sizes_of_units[index]))
            largest = max(largest, abs(expected))
    assert len(result.points()) == count
    assert largest > 1e-5
    return max(furthest)


@pytest.mark.parametrize("case", pairwise(), ids=lambda case: "-".join(map(str, case.values())))
def test_effects_are_those_of_plain_loops(case):
    assert difference(case) < (1e-10 if case["dtype"] == torch.float64 else 1e-4)
