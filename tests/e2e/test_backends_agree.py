"""One tiny model, one set of padded rows, the same SAEs: every backend gives the same numbers in every analysis."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

import interpretune as it
from interpretune.activations.hooked_model import HookedModel
from interpretune.analysis import (
    Add,
    AnalysisCfg,
    AnalysisMode,
    LatentRows,
    ModelInputs,
    ProjectOut,
    Scale,
    activation_name,
    attribute,
    generate_with_interventions,
    gradient_edges,
    integrated_gradients,
    run_analysis,
    run_with_interventions,
)
from tests.sessions import make_session, padded, unpadded_rows

saelens = pytest.importorskip("interpretune_saelens")

TOLERANCE = 1e-4
"""Largest difference, absolute and, on top, as a share of each number."""
BACKENDS = {"huggingface": "core", "bridge": "bridge", "hooked": "hooked"}
if importlib.util.find_spec("interpretune_nnsight"):
    BACKENDS["nnsight"] = "core"
ADAPTERS = {"huggingface": ("huggingface", "sae_lens"), "nnsight": ("nnsight", "sae_lens")}
PLACES = {
    "blocks.0.hook_resid_post": 32,
    "blocks.1.attn.hook_z": 32,
    "blocks.1.mlp.hook_post": 64,
    "blocks.2.hook_mlp_out": 32,
}
"""Where SAEs read, and how many numbers."""
OTHERS = [name for name in BACKENDS if name != "huggingface"]


def sae(place: str, seed: int) -> Any:
    cfg = {
        "architecture": "standard",
        "d_in": PLACES[place],
        "d_sae": 20,
        "dtype": "float32",
        "device": "cpu",
        "metadata": {"hook_name": place},
    }
    return saelens.SAELensCustomConfig(cfg=cfg, seed=seed, skips_special_tokens=seed == 0)


@pytest.fixture(scope="module")
def session_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., it.ITSession]:
    @cache
    def build(kind: str, side: str, backend: str) -> it.ITSession:
        return make_session(
            tmp_path_factory.mktemp(f"{kind}-{side}-{backend}"),
            kind,
            BACKENDS[backend],
            side,
            adapters=ADAPTERS.get(backend, ("sae_lens",)),
            sae_cfgs=[sae(place, seed) for seed, place in enumerate(PLACES)],
        )

    return build


@pytest.fixture(params=[("gpt2", "left"), ("llama", "right")], ids="-".join)
def model(request: pytest.FixtureRequest) -> tuple[str, str]:
    """An architecture and the side of its padding; the kit and the tests of padding have the other two."""
    return request.param


@pytest.fixture
def kind(model: tuple[str, str]) -> str:
    return model[0]


@pytest.fixture
def side(model: tuple[str, str]) -> str:
    return model[1]


@pytest.fixture(params=OTHERS)
def pair(
    request: pytest.FixtureRequest, kind: str, side: str, session_of: Callable[..., it.ITSession]
) -> tuple[it.ITSession, it.ITSession]:
    """Sessions with the plain Hugging Face model and with another backend."""
    return session_of(kind, side, "huggingface"), session_of(kind, side, request.param)


def agree(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(other, one, rtol=TOLERANCE, atol=TOLERANCE)


def batch_of(session: it.ITSession, side: str) -> dict[str, Tensor]:
    rows = [tokens for tokens, _ in unpadded_rows(session)]
    return padded([rows[0], rows[4][:3], rows[3]], side, session.datamodule.tokenizer.pad_token_id)


def names_of(session: it.ITSession) -> list[str]:
    return [activation_name(item) for item in session.module.latent_models]


@cache
def analysed(module: Any, mode: AnalysisMode) -> Any:
    return run_analysis(module, module.datamodule, AnalysisCfg(mode=mode))


@pytest.mark.parametrize("mode", list(AnalysisMode))
def test_the_four_modes(pair: tuple[it.ITSession, it.ITSession], mode: AnalysisMode) -> None:
    one, other = (analysed(item.module, mode) for item in pair)
    agree(torch.cat(one.logit_diffs), torch.cat(other.logit_diffs))
    assert len(one.activations) == len(other.activations)
    if mode.splices:
        for i, activations in enumerate(one.activations):
            assert set(activations) == set(other.activations[i])
            for name, values in activations.items():
                agree(values.dense(), other.activations[i][name].dense())
    if mode in (AnalysisMode.ablation, AnalysisMode.attr_patching):
        largest = 0.0
        for i, effects in enumerate(one.effects):
            assert set(effects) == set(other.effects[i]) == set(names_of(pair[0]))
            for name, values in effects.items():
                agree(values.dense(), other.effects[i][name].dense())
                largest = max(largest, float(values.values.abs().max()))
        assert largest > 0.05


def test_gradients_at_all_positions(pair: tuple[it.ITSession, it.ITSession], side: str) -> None:
    found = []
    for session in pair:
        inputs = ModelInputs.from_batch(batch_of(session, side))
        module = session.module
        objective = lambda logits: (logits[:, 4] - logits[:, 7]).sum()  # noqa: E731
        found.append(module.backend.gradients(inputs, module.latent_models, objective, names_of(session))[1])
    real = inputs.attention_mask.bool()
    assert set(found[0]) == set(found[1]) == set(names_of(pair[0]))
    for name, gradient in found[0].items():
        agree(gradient[real], found[1][name][real])


def test_ablation_of_sets_attribution_integrated_gradients_and_edges(
    pair: tuple[it.ITSession, it.ITSession], side: str
) -> None:
    found: list[dict[str, Tensor]] = []
    columns = torch.tensor([4, 7])

    def objective(logits: Tensor, points: Tensor) -> Tensor:
        return (logits[:, 0] - logits[:, 1]).sum()

    for session in pair:
        module, names = session.module, names_of(session)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a backend without replays says so
            prefill = module.backend.prefill(ModelInputs.from_batch(batch_of(session, side)), module.latent_models)
        rows = LatentRows.sets(names[0], torch.tensor([0, 1, 2]), [torch.tensor([1, 5, 9])] * 3, 0.7)
        numbers = {"logits": prefill.logits, "sets": module.backend.ablate(prefill, rows, columns)}
        if prefill.kept is not None:
            numbers |= {f"attributed {k}": v for k, v in attribute(prefill, objective, names, columns).items()}
            integrated = integrated_gradients(prefill, objective, names[:1], columns, steps=4)
            numbers |= {f"integrated {k}": v for k, v in integrated.items()}
            edges = gradient_edges(prefill, names[0], names[2])
            numbers |= {f"edges of {i}": edge.values for i, edge in enumerate(edges)}
        found.append(numbers)
    one, other = found
    assert len(one) > 6
    replays = type(pair[1].module.backend).create_replay is not HookedModel.create_replay
    assert set(other) == (set(one) if replays else {"logits", "sets"})  # the others are made of replays
    for name, values in other.items():
        agree(one[name], values)


@pytest.mark.parametrize("positions", ["all", "answer", "prompt"])
def test_interventions(pair: tuple[it.ITSession, it.ITSession], side: str, positions: str) -> None:
    direction = torch.linspace(-1, 1, 32)
    found = []
    for session in pair:
        module, names = session.module, names_of(session)
        changes = [
            Add(at="layers.1.resid_mid", value=direction, scale=2.0, positions=positions),
            ProjectOut(at="layers.2.resid_pre", direction=direction, positions=positions),
            Scale(at="layers.0.mlp_in", factor=0.5, positions=positions),
            Scale(at=names[0], factor=0.0, latents=[1, 2, 3], positions=positions),
        ]
        inputs = ModelInputs.from_batch(batch_of(session, side))
        with torch.no_grad():
            found.append(run_with_interventions(module.backend, inputs, changes, module.latent_models))
    agree(*found)


def test_steered_generation(pair: tuple[it.ITSession, it.ITSession], side: str) -> None:
    direction = torch.linspace(-1, 1, 32)
    found = []
    for session in pair:
        result = generate_with_interventions(
            session.module.backend,
            session.module.it_generate,
            batch_of(session, side),
            [Add(at="layers.1.resid_post", value=direction, positions="all")],
            session.module.latent_models,
            max_new_tokens=3,
            do_sample=False,
        )
        found.append(torch.stack(result.logits))
    agree(*found)


def test_caches_at_every_canonical_place(pair: tuple[it.ITSession, it.ITSession], side: str) -> None:
    names = [name for name in pair[0].module.backend.hook_point_names() if ":" not in name]
    assert len(names) > 20
    caches = []
    for session in pair:
        inputs = ModelInputs.from_batch(batch_of(session, side))
        with torch.no_grad():
            caches.append(session.module.backend.run_with_cache(inputs, names)[1])
    real = inputs.attention_mask.bool()
    for name in names:
        agree(caches[0][name][real], caches[1][name][real])
