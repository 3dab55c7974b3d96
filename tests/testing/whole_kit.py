"""Every rule on every adapter of this repository, every starter, and every stack of two or three: ``make kit``.

Sessions draw weights, latent models and rows from six seeds, on both tiny architectures.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from interpretune.testing.doctor import FAILED, PASSED, diagnose
from interpretune.testing.tiny_models import TINY_MODELS
from tests.e2e.test_installed_packages import adapter_name, environment, packages
from tests.fresh_environment import FreshEnvironment
from tests.testing.test_stacks import GROUPS, allowed, check_stack

__all__ = ["environment", "packages"]  # fixtures

ADAPTERS = ("core", "huggingface", "interp_engine", "lightning", "nnsight", "sae_lens", "transformer_lens")


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("architecture", TINY_MODELS)
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_an_adapter_keeps_every_rule(adapter: str, architecture: str, seed: int) -> None:
    verdicts = diagnose(adapter, seed=seed, architecture=architecture).verdicts
    assert [verdict.message for verdict in verdicts if verdict.outcome == FAILED] == []
    assert sum(verdict.outcome == PASSED for verdict in verdicts) > 50


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("architecture", TINY_MODELS)
def test_a_starter_keeps_every_rule(
    environment: FreshEnvironment, packages: dict[str, Path], architecture: str, seed: int
) -> None:
    for kind in packages:
        environment.run("interpretune", "doctor", adapter_name(kind), "--seed", seed, "--architecture", architecture)


@pytest.mark.parametrize("names", allowed(GROUPS), ids="-".join)
def test_a_stack_keeps_the_rules_of_stacks(names: tuple[str, ...], tmp_path: Path) -> None:
    check_stack(names, tmp_path)
