"""The kit's verdicts do not depend on what it draws: rules hold for every seed and both tiny architectures."""

from __future__ import annotations

import pytest
import torch

from interpretune.testing import RULES, AdapterConformance, Bench, RuleSkipped
from interpretune.testing.backend_runs import active_latents
from interpretune.testing.doctor import PASSED, check_suite
from interpretune.testing.tiny_models import TINY_MODELS

SEEDS = range(2)


def core(architecture: str, seed: int) -> AdapterConformance:
    members = {"adapter": "core", "architecture": architecture, "seed": seed}
    return type("Suite", (AdapterConformance,), members)()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("architecture", TINY_MODELS)
def test_core_leaves_no_hooks_after_errors(architecture, seed, tmp_path):
    [verdict] = check_suite(core(architecture, seed), tmp_path, [RULES["errors-leave-no-hooks"]])
    assert verdict.outcome == PASSED, verdict.message


def test_active_latents_are_chosen():
    latents = torch.tensor([[0.0, 0.0, 2.0, 1.0], [0.0, 0.0, 0.0, 0.0], [0.0, -1.0, 0.0, 3.0]])
    assert active_latents(latents).tolist() == [[0, 2], [2, 1]]
    with pytest.raises(RuleSkipped, match="no latent of the kit's dictionary is active"):
        active_latents(torch.zeros(2, 4))


def test_a_seed_chooses_weights_dictionaries_and_rows(tmp_path):
    from interpretune.testing.hook_points import latents

    benches = [Bench(core("gpt2", seed), tmp_path / f"{i}") for i, seed in enumerate((0, 1, 1))]
    first, other, again = ((b.reference.lm_head.weight, latents(b)[0].w_enc, b.rows[0].tolist()) for b in benches)
    assert benches[0].reference.config.model_type == "gpt2"
    for drawn, differently, same in zip(first, other, again, strict=True):
        assert str(drawn) != str(differently) == str(same)
    for bench in benches:
        bench.close()
