"""Latent models that read or write at several hook points: cross-layer transcoders and crosscoders."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import interpretune as it
from interpretune.analysis import (
    HuggingFaceBackend,
    LatentRows,
    ModelInputs,
    Points,
    Prefill,
    SetTo,
    ablate,
    activation_name,
    interventions_in_place,
    measure_latent_quality,
    run_with_interventions,
)
from interpretune.backends.identity import identify_latents
from interpretune.questions import effects
from interpretune.replay import ablate_from
from interpretune.replay.ablation import ablate_everywhere
from interpretune.replay.gradients import attribute
from interpretune.session.optimization import check_latent_models
from interpretune.testing.tiny_models import VOCABULARY as VOCABULARY_IDS, tiny_llama, tiny_tokenizer
from tests.cross_layer import load_clt, load_crosscoder, with_clt, with_crosscoder, write_clt, write_crosscoder
from tests.replay.ablated_rows import ATOL, Row, rows_of
from tests.tiny_architectures import BLOCKS, VOCABULARY, WIDTH, backend_of, batch_of, dictionary, make_model
from tests.tiny_latents import RandomDictionary, activations_of

LAYERS = (1, 2, 3)
LATENTS = 12
RAGGED = (7, 3, 1)
pytestmark = pytest.mark.filterwarnings("ignore:.*writes at layers.1.resid_post and reads above:UserWarning")
"""A crosscoder without an error term is not replayed."""
Sets = Mapping[str, Mapping[int, float]]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    folder = tmp_path_factory.mktemp("dictionaries")
    return {
        "clt": write_clt(folder / "clt", BLOCKS, WIDTH, LATENTS),
        "crosscoder": write_crosscoder(folder / "model.safetensors", len(LAYERS), WIDTH, LATENTS),
    }


@cache
def backend(kind: str = "llama") -> HuggingFaceBackend:
    return backend_of(make_model(kind))


def loaded(files: Mapping[str, Path], what: str, *, error: bool) -> list[Any]:
    if what == "clt":
        return load_clt(files[what], error=error)
    return [load_crosscoder(files[what], LAYERS, error=error)]


def plain(
    files: Mapping[str, Path], what: str, kind: str, tokens: Tensor, sets: Sets, at: int | slice, *, error: bool
) -> Tensor:
    """Logits ``[pos, vocab]`` of one unpadded row with latents set at some of its tokens."""

    def change(point: str, latents: Tensor) -> Tensor:
        for latent, value in sets.get(f"{point}.hook_sae_acts_post", {}).items():
            latents[0, at, latent] = value
        return latents

    model = backend(kind).model
    with torch.no_grad():
        if what == "clt":
            return with_clt(model, tokens, files[what], change, error=error)
        return with_crosscoder(model, tokens, files[what], LAYERS, change, error=error)


def some_rows(prefill: Prefill) -> list[Row]:
    """The strongest latent of each dictionary alone, some set to numbers, and some of all together."""
    rows: list[Row] = []
    for point in range(len(prefill.points)):
        for name, latents in prefill.latents.items():
            rows.append((point, {name: {int(latents[point].argmax()): 0.0}}))
        rows.append((point, {name: {1: 0.7, 4: 0.0}}))
        rows.append((point, {name: {0: 0.0, 5: 1.1, 8: 0.0} for name in prefill.latent_models}))
    return rows


def row_of(inputs: ModelInputs, points: Points, point: int) -> tuple[Tensor, int]:
    """The unpadded tokens of a point's example, and its place there."""
    example, position = int(points.examples[point]), int(points.positions[point])
    real = inputs.attention_mask[example].bool()
    return inputs.tokens[example][real], int(real[:position].sum())


CASES = [
    ("llama", "left", RAGGED),
    ("gpt2", "right", RAGGED),
    ("llama", "right", (8,)),
]


@pytest.mark.parametrize("error", [False, True], ids=["", "with error"])
@pytest.mark.parametrize("what", ["clt", "crosscoder"])
@pytest.mark.parametrize(("kind", "side", "lengths"), CASES)
def test_splices_and_ablations_equal_plain_loops(
    files: Mapping[str, Path], what: str, kind: str, side: str, lengths: Sequence[int], error: bool
) -> None:
    models, inputs, own = loaded(files, what, error=error), batch_of(lengths, side), backend(kind)
    own.check_latent_models(models)
    prefill = own.prefill(inputs, models)
    assert (prefill.kept is None) == (what == "crosscoder" and not error)
    rows = some_rows(prefill)

    def by_hand(sets: Sets, point: int, at: int | slice | None = None) -> Tensor:
        tokens, last = row_of(inputs, prefill.points, point)
        return plain(files, what, kind, tokens, sets, last if at is None else at, error=error)[last]

    clean = torch.stack([by_hand({}, point) for point in range(len(lengths))])
    run = own.run_spliced(inputs, models, record=list(map(activation_name, models)))
    for found in (prefill.logits, run.answer_logits):
        torch.testing.assert_close(found, clean, rtol=0, atol=ATOL)
    if error:
        torch.testing.assert_close(clean, own.run(inputs), rtol=0, atol=ATOL)
    wanted = torch.stack([by_hand(sets, point) for point, sets in rows])
    for _ in range(2):
        torch.testing.assert_close(ablate(prefill, rows_of(rows)), wanted, rtol=0, atol=ATOL)
    torch.testing.assert_close(ablate(prefill, rows_of(rows), naive=True), wanted, rtol=0, atol=ATOL)
    points = rows_of(rows).points
    assert (wanted - clean[points]).abs().amax() > 0.1
    for i in range(len(models)):  # a latent of every dictionary does something
        mine = [j for j, (_, sets) in enumerate(rows) if list(sets) == [activations_of(models[i])]]
        assert (wanted - clean[points])[mine].abs().amax() > 1e-3
    few = rows[-3:]
    everywhere = torch.stack([by_hand(sets, point, slice(None)) for point, sets in few])
    torch.testing.assert_close(ablate_everywhere(prefill, rows_of(few)), everywhere, rtol=0, atol=ATOL)


@pytest.mark.parametrize("error", [False, True], ids=["", "with error"])
@pytest.mark.parametrize("what", ["clt", "crosscoder"])
def test_ablations_at_earlier_tokens_equal_plain_loops(files: Mapping[str, Path], what: str, error: bool) -> None:
    models, inputs, own = loaded(files, what, error=error), batch_of((6, 3), "left"), backend_of(make_model("llama"))
    points = Points(torch.tensor([0, 1]), torch.tensor([2, 4]))
    prefill = own.prefill(inputs, models, points)
    rows = some_rows(prefill)
    wanted = []
    for point, sets in rows:
        tokens, at = row_of(inputs, points, point)
        wanted.append(plain(files, what, "llama", tokens, sets, at, error=error)[-1])
    found = ablate_from(prefill, rows_of(rows))[:, 0]
    torch.testing.assert_close(found, torch.stack(wanted), rtol=0, atol=ATOL)
    assert all(check.passed for check in own.replays.checks())
    assert len(own.replays.checks()) == (0 if prefill.kept is None else 2)


@pytest.mark.parametrize("error", [False, True], ids=["", "with error"])
def test_a_crosscoder_reads_what_lies_below_it_as_it_is_changed(files: Mapping[str, Path], error: bool) -> None:
    """A row that sets latents of a lower dictionary changes the code, and so does one that sets both."""
    below = dictionary("layers.0.resid_post", 1)
    (above,), inputs = loaded(files, "crosscoder", error=error), batch_of((7, 4), "left")
    prefill = backend().prefill(inputs, [above, below])
    assert (prefill.kept is not None) == error
    lower, upper = activation_name(below), activation_name(above)
    both = {lower: dict.fromkeys(range(0, 24, 2), 0.0), upper: {0: 0.0, 3: 0.9}}
    rows: list[Row] = [(point, sets) for point in (0, 1) for sets in ({lower: both[lower]}, both)]
    wanted = []
    for point, sets in rows:
        tokens, at = row_of(inputs, prefill.points, point)

        def change(point: str, latents: Tensor, sets: Any = sets, at: int = at) -> Tensor:
            for latent, value in sets.get(f"{point}.hook_sae_acts_post", {}).items():
                latents[0, at, latent] = value
            return latents

        def splice(x: Tensor, change: Any = change) -> Tensor:
            return below.decode(change("layers.0.resid_post", below.encode(x)))

        with torch.no_grad():
            logits = with_crosscoder(
                backend().model,
                tokens,
                files["crosscoder"],
                LAYERS,
                change,
                error=error,
                below=[(0, "resid_post", splice)],
            )
        wanted.append(logits[at])
    for naive in (False, True):
        found = ablate(prefill, rows_of(rows), naive=naive)
        torch.testing.assert_close(found, torch.stack(wanted), rtol=0, atol=ATOL)
    assert (found - prefill.logits[rows_of(rows).points]).abs().amax(-1).min() > 1e-3


WEIGHTS = torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
STEP = 1e-4


@pytest.mark.parametrize("error", [False, True], ids=["", "with error"])
@pytest.mark.parametrize("what", ["clt", "crosscoder"])
def test_gradients_equal_differences(files: Mapping[str, Path], what: str, error: bool) -> None:
    below = [] if what == "clt" else [dictionary("layers.0.resid_post", 1, d_sae=LATENTS)]
    models, inputs, own = [*below, *loaded(files, what, error=error)], batch_of((6, 4), "left"), backend("gpt2")
    names = list(map(activation_name, models))
    prefill = own.prefill(inputs, models)
    _, everywhere = own.gradients(inputs, models, lambda logits: (logits @ WEIGHTS).sum(), names)
    found = [{name: prefill.points.of(values) for name, values in everywhere.items()}]
    if prefill.kept is not None:
        found.append(attribute(prefill, lambda logits, _: (logits @ WEIGHTS).sum(), names))
    pairs = torch.cartesian_prod(torch.arange(2), torch.arange(LATENTS))
    for name in names:
        at = prefill.latents[name].flatten()
        up, down = (ablate(prefill, LatentRows.single(name, pairs, at + step), naive=True) for step in (STEP, -STEP))
        wanted = ((up - down) @ WEIGHTS / (2 * STEP)).reshape(2, LATENTS)
        assert wanted.abs().max() > 0.1
        for gradients in found:
            torch.testing.assert_close(gradients[name], wanted, rtol=0, atol=1e-6)


# ------------------------------------------------------------------------------------------------- in the library


@pytest.mark.parametrize(
    ("what", "value", "error"),
    [
        ("clt", "mean", False),
        ("clt", "corrupted", True),
        ("clt", "given", False),
        ("crosscoder", "mean", True),
        ("crosscoder", "corrupted", False),
        ("crosscoder", "given", True),
    ],
)
def test_effects_of_their_latents_equal_plain_loops(tmp_path: Path, what: str, value: str, error: bool) -> None:
    model, tokenizer, width, layers = tiny_llama().double().eval(), tiny_tokenizer(), 32, (1, 2)
    file = tmp_path / what
    if what == "clt":
        models = load_clt(write_clt(file, 3, width, LATENTS), error=error)
    else:
        models = [load_crosscoder(write_crosscoder(file, len(layers), width, LATENTS), layers, error=error)]
    rows = [
        it.PromptRow("Ada sees the red dog near the", (" house", " tree"), 0, "Ada sees the old dog near the"),
        it.PromptRow("Bo likes a boat and", (" house", " tree"), 1, "Bo likes a lamp and"),
    ]
    ids = [VOCABULARY_IDS["house"], VOCABULARY_IDS["tree"]]
    given = {item.name: torch.linspace(0, 2, LATENTS).double() for item in models}
    chosen = given if value == "given" else value
    found = effects(model, tokenizer, rows, units=models, value=chosen, batch_size=2)
    table = found.to_pandas().set_index(["row", "units", "unit"]).effect

    def run(text: str, change: Any) -> Tensor:
        tokens = torch.tensor(tokenizer(text)["input_ids"])
        with torch.no_grad():
            if what == "clt":
                return with_clt(model, tokens, file, change, error=error)[-1]
            return with_crosscoder(model, tokens, file, layers, change, error=error)[-1]

    def seen_in(text: str) -> tuple[Tensor, dict[str, Tensor]]:
        seen: dict[str, Tensor] = {}

        def note(point: str, latents: Tensor) -> Tensor:
            seen[point] = latents[0, -1].clone()
            return latents

        return run(text, note), seen

    clean, others = [seen_in(row.prompt) for row in rows], [seen_in(row.corrupted) for row in rows]
    assert table.abs().max() > 1e-3
    for i, item, latent in itertools.product(range(len(rows)), models, (0, 3, 7)):
        point, correct = item.hook_point, rows[i].correct
        mean = torch.stack([seen[point] for _, seen in clean]).mean(0)
        to = {"mean": mean, "corrupted": others[i][1][point], "given": given[item.name]}[value][latent]

        def change(at: str, latents: Tensor, point: str = point, latent: int = latent, to: Tensor = to) -> Tensor:
            if at == point:
                latents[0, -1, latent] = to
            return latents

        difference = clean[i][0] - run(rows[i].prompt, change)
        wanted = difference[ids[correct]] - difference[ids[1 - correct]]
        assert table.get((i, item.name, latent), 0.0) == pytest.approx(wanted.item(), abs=1e-10)


def test_what_is_known_of_them_names_all_their_hook_points(files: Mapping[str, Path]) -> None:
    (item,) = loaded(files, "crosscoder", error=True)
    about = identify_latents(item).about
    assert about["hook_points"] == about["output_hook_points"] == [f"layers.{i}.resid_post" for i in LAYERS]
    before = about["sha256"]
    item.hook_points = item.hook_points[::-1]
    assert identify_latents(item).about["sha256"] != before


def test_what_does_not_fit_is_refused_in_words(files: Mapping[str, Path]) -> None:
    (item,) = loaded(files, "crosscoder", error=True)
    item.output_hook_points = item.output_hook_points[::-1]
    with pytest.raises(it.HookPointError, match="not in the order in which this model reaches them"):
        backend().check_latent_models([item])
    (item,) = loaded(files, "crosscoder", error=True)
    item.hook_points = item.hook_points[:2]
    with pytest.raises(it.HookPointError, match=r"reads 96 numbers at layers\.1\.resid_post, layers\.2.* has 64"):
        backend().check_latent_models([item])
    (item,) = loaded(files, "crosscoder", error=True)
    item.output_hook_points = item.output_hook_points[:2]
    with pytest.raises(it.HookPointError, match=r"writes 96 numbers at .* has 64"):
        backend().check_latent_models([item])


def test_a_crosscoder_cannot_be_spliced_into_somebody_elses_loop(files: Mapping[str, Path]) -> None:
    models, inputs = loaded(files, "crosscoder", error=False), batch_of((4,), "left")
    change = SetTo(at=activation_name(models[0]), value=0.0, latents=[1])
    with (
        pytest.raises(it.HookPointError, match="in a run of its own before it writes"),
        interventions_in_place(backend(), inputs, [change], models),
    ):
        pass
    found = run_with_interventions(backend(), inputs, [change], models)
    wanted = plain(files, "crosscoder", "llama", inputs.tokens[0], {change.at: {1: 0.0}}, slice(None), error=False)[-1:]
    torch.testing.assert_close(found, wanted, rtol=0, atol=ATOL)


def test_gradients_between_the_hook_points_of_a_crosscoder_are_refused(files: Mapping[str, Path]) -> None:
    between, inputs = dictionary("layers.2.mlp_out", 1), batch_of((4,), "left")
    for error in (False, True):
        models = [*loaded(files, "crosscoder", error=error), between]
        names = list(map(activation_name, models))
        if error:
            _, found = backend().gradients(inputs, models, lambda logits: logits.sum(), names)
            assert found[names[1]].any()
            continue
        with pytest.raises(it.AnalysisError, match="between its hook points"):
            backend().gradients(inputs, models, lambda logits: logits.sum(), names)


def test_parts_of_a_transcoder_are_neither_trained_nor_measured_alone(files: Mapping[str, Path]) -> None:
    parts = loaded(files, "clt", error=False)
    module: Any = SimpleNamespace(latent_models=parts)
    with pytest.raises(it.LatentModelError, match="'clt 0', 'clt 1', 'clt 2', 'clt 3' write is summed"):
        measure_latent_quality(module, parts, [])
    trainable = [RandomDictionary("layers.0.mlp_in", output="layers.1.mlp_out") for _ in range(2)]
    with pytest.raises(it.ConfigurationError, match="one loss together"):
        check_latent_models(trainable)
