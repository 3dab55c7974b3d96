"""A setting of a SAELens SAE that changes numbers is another analysis, wherever SAELens keeps it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import StandardSAE, StandardSAEConfig
from torch import Tensor

import interpretune as it
from interpretune.analysis import AnalysisRunner
from interpretune_saelens.latent_model import SAELatentModel
from tests.sessions import make_session

PLACE = "blocks.1.hook_resid_post"


def random_sae(kind: type = StandardSAE, **settings: Any) -> Any:
    cfg = StandardSAEConfig(
        d_in=32, d_sae=24, dtype="float32", device="cpu", **{"apply_b_dec_to_input": False, **settings}
    )
    cfg.metadata.hook_name = PLACE
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sae = kind(cfg)
        with torch.no_grad():
            for parameter in sae.parameters():
                parameter.add_(torch.randn(parameter.shape) * 0.2)
    return sae


class Scaled(StandardSAE):
    """A SAE of the user's own, with a private setting."""

    _scale = 1.0

    def decode(self, feature_acts: Tensor) -> Tensor:
        return super().decode(feature_acts) * self._scale


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[it.ITSession]:
    session = make_session(tmp_path_factory.mktemp("session"), n_rows=3, adapters=("huggingface", "sae_lens"))
    yield session
    it.it_session_end(**session)


@pytest.fixture
def run(session: it.ITSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], tuple[Tensor, bool]]:
    runner, move = AnalysisRunner(**session, root=tmp_path), session.module.batch_to_device
    moved: list[Any] = []
    monkeypatch.setattr(session.module, "batch_to_device", lambda batch: (moved.append(1), move(batch))[1])

    def run(sae: Any) -> tuple[Tensor, bool]:
        moved.clear()
        session.module.latent_models = [SAELatentModel(sae).eval()]
        store = runner.run({"a": "clean_w_sae"})["a"]
        return torch.cat([batch["logit_diffs"] for batch in store.batches(["logit_diffs"])]), bool(moved)

    return run


def with_error_term() -> Any:
    sae = random_sae()
    with pytest.warns(DeprecationWarning, match="use_error_term"):
        sae.use_error_term = True
    return sae


def scaled(scale: float) -> Any:
    sae = random_sae(Scaled)
    sae._scale = scale
    return sae


CHANGES: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "use_error_term": (random_sae, with_error_term),
    "apply_b_dec_to_input": (random_sae, lambda: random_sae(apply_b_dec_to_input=True)),
    "normalize_activations": (random_sae, lambda: random_sae(normalize_activations="layer_norm")),
    "a private setting of a class of one's own": (lambda: scaled(1.0), lambda: scaled(2.0)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_another_setting_of_a_sae_gives_other_numbers(change: str, run: Callable[[Any], tuple[Tensor, bool]]) -> None:
    make, make_other = CHANGES[change]
    first, ran = run(make())
    assert ran
    assert not run(make())[1]
    changed, ran = run(make_other())
    assert ran
    assert (changed - first).abs().max() > 1e-4
    again, ran = run(make_other())
    assert not ran
    torch.testing.assert_close(again, changed, rtol=0, atol=0)


def test_what_encoding_notes_is_no_setting(session: it.ITSession, tmp_path: Path) -> None:
    sae = random_sae(normalize_activations="layer_norm")
    session.module.latent_models = [SAELatentModel(sae).eval()]
    runner = AnalysisRunner(**session, root=tmp_path)
    first = runner.run({"a": "ablation"})["a"]
    assert hasattr(sae, "ln_mu")
    assert runner.run({"a": "ablation"})["a"].folder == first.folder
    assert len(list(tmp_path.iterdir())) == 1
