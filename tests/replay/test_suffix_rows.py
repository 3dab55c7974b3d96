"""Rows that rerun the tokens from a position on give the logits of whole forwards, at every later position."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from interpretune.analysis import HuggingFaceBackend, LatentRows, ModelInputs, Points, ablate, activation_name
from interpretune.backends import hugging_face_replay
from interpretune.errors import AnalysisError, NotFiniteError
from interpretune.replay import SuffixRows, ablate_from, budgets
from interpretune.replay.self_check import earliest_rows
from tests.replay.ablated_rows import ATOL, Row, rows_of
from tests.tiny_architectures import backend_of, batch_of, dictionary, make_model

SPECIAL = (7, 11, 13)
RAGGED = (7, 3, 9, 1)


@cache
def model(kind: str, dtype: torch.dtype = torch.float64) -> Any:
    return make_model(kind, dtype)


def new_backend(kind: str = "llama", dtype: torch.dtype = torch.float64) -> HuggingFaceBackend:
    """Backends remember what they have checked."""
    return backend_of(model(kind, dtype), SPECIAL)


def every_token(inputs: ModelInputs) -> Points:
    """All real tokens."""
    return Points(*inputs.attention_mask.nonzero().unbind(-1))


# --------------------------------------------------------------------------------------- a loop that knows no library

SITES = {
    "gpt2": {
        "resid_post": ("", "out"),
        "mlp_in": ("mlp", "in"),
        "mlp_out": ("mlp", "out"),
        "attn_z": ("attn.c_proj", "in"),
    },
    "gemma3": {
        "resid_post": ("", "out"),
        "mlp_in": ("mlp", "in"),
        "mlp_out": ("post_feedforward_layernorm", "out"),
        "attn_z": ("self_attn.o_proj", "in"),
    },
}
SITES["llama"] = SITES["qwen3"] = SITES["mistral"] = {**SITES["gemma3"], "mlp_out": ("mlp", "out")}


def module_and_side(kind: str, hook_point: str) -> tuple[Any, str]:
    _, layer, name = hook_point.split(".")
    blocks = model(kind).transformer.h if kind == "gpt2" else model(kind).model.layers
    path, side = SITES[kind][name]
    return blocks[int(layer)].get_submodule(path), side


def hook_on(module: Any, side: str, change: Any) -> Any:
    if side == "in":
        return module.register_forward_pre_hook(lambda _, args: (change(args[0]), *args[1:]))

    def after(_: Any, __: Any, output: Any) -> Any:
        return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

    return module.register_forward_hook(after)


@contextlib.contextmanager
def spliced(
    kind: str, models: Sequence[Any], tokens: Tensor, lines: Sequence[tuple[int, Mapping[str, Mapping[int, float]]]]
) -> Iterator[None]:
    """Torch hooks that put dictionaries in; each line of a batch of one unpadded row has latents set at one token."""
    handles = []
    for item in models:
        left = torch.zeros(len(tokens), 1, dtype=torch.bool)
        if item.skips_special_tokens:
            left[:-1, 0] = torch.isin(tokens[:-1], torch.tensor(SPECIAL))
            left[0, 0] = len(tokens) > 1
        held: dict[str, Tensor] = {}

        def read(x: Tensor, item: Any = item, left: Tensor = left, held: dict[str, Tensor] = held) -> Tensor:
            latents = item.encode(x).masked_fill(left, 0)
            held["clean"] = item.decode(latents)
            latents = latents.clone()
            for line, (at, sets) in enumerate(lines):
                for latent, value in sets.get(activation_name(item), {}).items():
                    latents[line, at, latent] = value
            held["new"] = item.decode(latents)
            return x

        def write(x: Tensor, item: Any = item, left: Tensor = left, held: dict[str, Tensor] = held) -> Tensor:
            new = x + held["new"] - held["clean"] if item.use_error_term else held["new"]
            return torch.where(left, x, new)

        def both(x: Tensor, read: Any = read, write: Any = write) -> Tensor:
            return write(read(x))

        changes = [(item.hook_point, read), (item.output_hook_point, write)]
        for name, change in [(item.hook_point, both)] if item.hook_point == item.output_hook_point else changes:
            handles.append(hook_on(*module_and_side(kind, name), change))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def reference(
    kind: str, inputs: ModelInputs, models: Sequence[Any], points: Points, rows: Sequence[Row], wanted: Tensor
) -> Tensor:
    """A whole forward of the unpadded example for each row, those of one example as one batch, ``[n, w, vocab]``."""
    results: dict[int, Tensor] = {}
    for example in sorted(set(points.examples.tolist())):
        real = inputs.attention_mask[example].bool()
        first, tokens = int(real.int().argmax()), inputs.tokens[example][real]
        own = [i for i, (point, _) in enumerate(rows) if int(points.examples[point]) == example]
        lines = [(int(points.positions[rows[i][0]]) - first, rows[i][1]) for i in own]
        if own:
            with torch.no_grad(), spliced(kind, models, tokens, lines):
                logits = model(kind)(input_ids=tokens.expand(len(own), -1)).logits
            results |= {i: logits[line, wanted[i] - first] for line, i in enumerate(own)}
    return torch.stack([results[i] for i in range(len(rows))])


# ------------------------------------------------------------------------------------------------------------ exactness

PLACES: dict[str, list[tuple[str, str | None]]] = {
    "resid_post": [("layers.1.resid_post", None)],
    "mlp_out": [("layers.1.mlp_out", None)],
    "attn_z": [("layers.1.attn_z", None)],
    "transcoder": [("layers.1.mlp_in", "layers.1.mlp_out")],
    "two": [("layers.1.mlp_out", None), ("layers.2.resid_post", None)],
    "the last block": [("layers.3.attn_z", None), ("layers.3.resid_post", None)],
}


def models_at(places: str, **settings: Any) -> list[Any]:
    return [dictionary(read, i, output=write, skips=True, **settings) for i, (read, write) in enumerate(PLACES[places])]


def rows_everywhere(prefill: Any) -> list[Row]:
    """At every point, a latent model's strongest latent to zero, and latents of all of them to some value."""
    rows: list[Row] = []
    for point in range(len(prefill.points)):
        name = list(prefill.latents)[point % len(prefill.latents)]
        rows.append((point, {name: {int(prefill.latents[name][point].argmax()): 0.0}}))
        rows.append((point, {name: {3: 0.4, 5: 0.0, 20 + point % 4: 0.7} for name in prefill.latents}))
    return rows


def later(prefill: Any, rows: Sequence[Row]) -> Tensor:
    """The row's own position, the answer position, and one between."""
    points = prefill.points.select(torch.tensor([point for point, _ in rows]))
    answers = prefill.inputs.answer_positions[points.examples]
    return torch.stack([points.positions, answers, (points.positions + answers + 1) // 2], dim=-1)


VARIANTS: list[dict[str, bool]] = [{}, {"error": True}, {"linear": False}, {"linear": False, "error": True}]
IN_TURN = [
    *(("llama", places, variant) for i, places in enumerate(PLACES) for variant in (i % 4, (i + 2) % 4)),
    *(("llama", "two", variant) for variant in (1, 3)),
    *((kind, "two", i % 2) for i, kind in enumerate(("gpt2", "gemma3", "qwen3", "mistral"))),
    *(("gemma3", places, 0) for places in ("transcoder", "attn_z", "the last block")),
]
"""A linear and a decoded dictionary at each place, in turn with its error or without."""
BATCHES = [((3, 8), "right"), ((7,), "left")]


@pytest.mark.parametrize(
    ("kind", "places", "settings", "other"),
    [(kind, places, VARIANTS[variant], BATCHES[i % 2]) for i, (kind, places, variant) in enumerate(IN_TURN)],
    ids=str,
)
def test_rows_from_every_position_equal_a_loop_of_hooks(
    kind: str, places: str, settings: dict[str, bool], other: tuple[Sequence[int], str]
) -> None:
    models, backend = models_at(places, **settings), new_backend(kind)
    for lengths, side in (RAGGED, "left"), other:
        inputs = batch_of(lengths, side)
        inputs.tokens[0, 5] = SPECIAL[0]  # which latent models leave alone, among the tokens after a change
        prefill = backend.prefill(inputs, models, every_token(inputs))
        assert prefill.kept is not None
        rows = rows_everywhere(prefill)
        wanted = later(prefill, rows)
        expected = reference(kind, inputs, models, prefill.points, rows, wanted)
        for options in ({}, {"row_budget": 30}):
            found = ablate_from(prefill, rows_of(rows), wanted, **options)
            torch.testing.assert_close(found, expected, rtol=0, atol=ATOL)
        clean = prefill.logits[torch.tensor([point for point, _ in rows])]
        assert ((expected[:, 0] - clean).abs().amax(-1) > 1e-4).sum() > len(rows) / 3


def test_the_plain_loop_gives_the_same_at_every_wanted_position() -> None:
    inputs, models = batch_of(RAGGED, "right"), models_at("two")
    prefill = new_backend().prefill(inputs, models, every_token(inputs))
    rows = rows_everywhere(prefill)
    wanted = later(prefill, rows)
    expected = reference("llama", inputs, models, prefill.points, rows, wanted)
    found = ablate_from(prefill, rows_of(rows), wanted, naive=True)
    torch.testing.assert_close(found, expected, rtol=0, atol=ATOL)


@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_rows_in_float32_are_right_to_1e_4(kind: str) -> None:
    models = [item.float() for item in models_at("two")]
    inputs = batch_of(RAGGED, "left")
    prefill = new_backend(kind, torch.float32).prefill(inputs, models, every_token(inputs))
    rows = rows_everywhere(prefill)
    wanted = later(prefill, rows)
    expected = ablate_from(prefill, rows_of(rows), wanted, naive=True)
    torch.testing.assert_close(ablate_from(prefill, rows_of(rows), wanted), expected, rtol=0, atol=1e-4)


def test_rows_at_the_answer_position_are_what_ablate_gives() -> None:
    inputs = batch_of(RAGGED, "right")
    prefill = new_backend().prefill(inputs, models_at("two"))
    rows = rows_of(rows_everywhere(prefill))
    columns = torch.tensor([3, 90, 3])
    torch.testing.assert_close(ablate_from(prefill, rows)[:, 0], ablate(prefill, rows), rtol=0, atol=ATOL)
    found = ablate_from(prefill, rows, columns=columns)
    torch.testing.assert_close(found[:, 0], ablate(prefill, rows, columns), rtol=0, atol=ATOL)


def test_rows_that_change_nothing_give_clean_logits_and_do_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some of them at tokens that are no points of the prefill."""
    inputs, models = batch_of((9, 4), "left"), models_at("resid_post")
    points = Points(torch.tensor([0, 1, 0]), torch.tensor([3, 6, 8]))
    monkeypatch.setattr(hugging_face_replay, "attend_suffixes", lambda *_: 1 / 0)
    monkeypatch.setattr(hugging_face_replay, "seen_slots", lambda *_: 1 / 0)
    prefill = new_backend().prefill(inputs, models, points)
    name = activation_name(models[0])
    pairs = (prefill.latents[name] == 0).nonzero()
    rows = LatentRows.single(name, pairs)
    last = torch.tensor([8, 8, 8])[pairs[:, 0]]
    wanted = torch.stack([last, prefill.points.positions[pairs[:, 0]]], dim=-1)
    nothing: list[Row] = [(point, {}) for point in pairs[:, 0].tolist()]
    expected = reference("llama", inputs, models, prefill.points, nothing, wanted)
    torch.testing.assert_close(ablate_from(prefill, rows, wanted), expected, rtol=0, atol=ATOL)
    assert ablate_from(prefill, rows_of([])).shape == (0, 1, backend_of(model("llama")).vocab_size)


@pytest.mark.parametrize("budget", [1, 5, 17, 10**6, None])
def test_rows_are_run_within_a_budget_of_tokens(budget: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = batch_of(RAGGED, "left")
    prefill = new_backend().prefill(inputs, models_at("resid_post"), every_token(inputs))
    rows = rows_of(rows_everywhere(prefill))
    expected = ablate_from(prefill, rows, naive=True)
    shapes: list[tuple[int, int]] = []
    made = SuffixRows.of

    def noted(*args: Any) -> SuffixRows:
        suffixes = made(*args)
        shapes.append((len(suffixes), suffixes.tokens.shape[1]))
        return suffixes

    monkeypatch.setattr(SuffixRows, "of", noted)
    monkeypatch.setattr(budgets, "MOST_ROWS", 50)
    found = ablate_from(prefill, rows, row_budget=budget, self_check=False)
    torch.testing.assert_close(found, expected, rtol=0, atol=ATOL)
    assert all(count * tokens <= (budget or 50) or count == 1 for count, tokens in shapes)
    assert len(shapes) > 1 or budget == 10**6


def test_positions_without_a_token_of_the_row_are_refused() -> None:
    inputs = batch_of((9, 4), "right")
    prefill = new_backend().prefill(inputs, models_at("resid_post"), Points(torch.tensor([1]), torch.tensor([2])))
    rows = LatentRows.single(next(iter(prefill.latents)), torch.tensor([[0, 3]]))
    for position in (1, 4, 9, -1):
        with pytest.raises(AnalysisError, match=f"position 2 of example 1 and wants logits at {position}; expected"):
            ablate_from(prefill, rows, torch.tensor([[position]]))
    with pytest.raises(AnalysisError, match=r"wanted is \(2, 1\); expected \[1 rows, positions\]"):
        ablate_from(prefill, rows, torch.tensor([[3], [3]]))


# ---------------------------------------------------------------------------------------------------------------- trust


def forgets_own_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    find = SuffixRows._find_visible

    def alone(rows: SuffixRows, layer: Any) -> Any:
        visible = find(rows, layer)
        length = rows.slots.shape[1]
        visible.mask[..., -length:] &= torch.eye(length, dtype=torch.bool)
        return visible

    monkeypatch.setattr(SuffixRows, "_find_visible", alone)


def forgets_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = hugging_face_replay.seen_slots
    monkeypatch.setattr(hugging_face_replay, "seen_slots", lambda mask, _: seen(mask, None))


def gives_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    attend = hugging_face_replay.attend_suffixes
    monkeypatch.setattr(hugging_face_replay, "attend_suffixes", lambda *args: attend(*args) * torch.nan)


def runs_single_tokens_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(hugging_face_replay.HuggingFaceReplay, "replay_suffixes")


DEFECTS = {
    forgets_own_keys: "Logits after replayed tokens differ",
    forgets_the_window: "Logits after replayed tokens differ",
    gives_nan: "Logits after replayed tokens differ",
    runs_single_tokens_only: "HuggingFaceReplay reruns single tokens, not the tokens after them",
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_wrong_suffixes_are_found_and_run_as_whole_forwards(defect: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, models = batch_of((12, 3, 4), "left"), models_at("two")
    right = new_backend("mistral").prefill(inputs, models, every_token(inputs))
    rows = rows_of(rows_everywhere(right))
    expected = ablate_from(right, rows, naive=True)
    defect(monkeypatch)
    backend = new_backend("mistral")
    prefill = backend.prefill(inputs, models, every_token(inputs))
    assert prefill.kept is not None
    with pytest.warns(UserWarning, match=f"{DEFECTS[defect]}.*whole forward for each row instead") as seen:
        found = ablate_from(prefill, rows)
    assert len(seen) == 1
    torch.testing.assert_close(found, expected, rtol=0, atol=ATOL)
    torch.testing.assert_close(ablate_from(prefill, rows), expected, rtol=0, atol=ATOL)
    assert backend.prefill(inputs, models).kept is not None  # single tokens are right
    if defect is gives_nan:
        with pytest.raises(NotFiniteError, match="Logits with latents set"):
            ablate_from(prefill, rows, self_check=False)
    elif defect is not runs_single_tokens_only:
        assert (ablate_from(prefill, rows, self_check=False) - expected).abs().max() > 1e-3


def test_suffixes_are_checked_once_and_again_when_much_longer() -> None:
    backend, models = new_backend(), models_at("two")

    def checks(length: int, points: str = "all") -> int:
        inputs = batch_of((length, 3), "left")
        prefill = backend.prefill(inputs, models, every_token(inputs) if points == "all" else None, self_check=False)
        rows = rows_of(rows_everywhere(prefill))
        torch.testing.assert_close(
            ablate_from(prefill, rows), ablate_from(prefill, rows, naive=True), rtol=0, atol=ATOL
        )
        return len(backend.replays.checks())

    assert [checks(6, "answers"), checks(6), checks(6), checks(12), checks(13), checks(5)] == [1, 2, 2, 2, 3, 3]
    assert all(check.passed and check.rows >= 2 for check in backend.replays.checks())


def test_models_without_replays_run_whole_forwards() -> None:
    kept = batch_of((9, 9), "left")
    item = dictionary("transformer.h.1:out", 1)
    backend = backend_of(make_model("bloom"))
    with pytest.warns(UserWarning, match="BloomForCausalLM has an attention of its own"):
        prefill = backend.prefill(kept, [item], every_token(kept))
    rows: list[Row] = [(point, {activation_name(item): {3: 0.5}}) for point in range(0, 18, 5)]
    wanted = later(prefill, rows)
    expected = []
    for (point, _), positions in zip(rows, wanted, strict=True):
        example, at = int(prefill.points.examples[point]), int(prefill.points.positions[point])

        def change(_: Any, __: Any, out: Any, at: int = at) -> Any:
            latents = item.encode(out[0])
            latents[0, at, 3] = 0.5
            return (item.decode(latents), *out[1:])

        handle = backend.model.transformer.h[1].register_forward_hook(change)
        with torch.no_grad():
            expected.append(backend.model(input_ids=kept.tokens[example : example + 1]).logits[0, positions])
        handle.remove()
    torch.testing.assert_close(ablate_from(prefill, rows_of(rows), wanted), torch.stack(expected), rtol=0, atol=ATOL)


def test_latents_below_zero_are_compared_too() -> None:
    inputs = batch_of((5, 3), "left")
    points = every_token(inputs)
    latents = torch.zeros(len(points), 3)
    latents[1, 2] = -2.0
    filled: Any = SimpleNamespace(inputs=inputs, points=points, latents={"x": latents})
    rows = earliest_rows(filled)
    assert (rows.points.tolist(), rows.changes["x"].latents.tolist()) == ([1], [2])
