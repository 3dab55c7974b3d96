"""What TransformerLens notes in a model does not count; what somebody else calls alike does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import interpretune as it
from interpretune.analysis import AnalysisRunner
from interpretune.analysis.identity import identify_stack
from interpretune.backends.identity import identify_model
from tests.sessions import make_session


class Part(nn.Module):
    """A part of somebody's own with settings that are called as what the library notes."""

    def __init__(self, value: int) -> None:
        super().__init__()
        self._pattern = value
        self._n_heads = 1

    def forward(self, x: Tensor) -> Tensor:
        return x * self._pattern


@pytest.fixture(scope="module", params=["bridge", "hooked"])
def session(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[it.ITSession]:
    session = make_session(tmp_path_factory.mktemp("session"), stack=request.param, n_rows=3)
    yield session
    it.it_session_end(**session)


def keys(session: it.ITSession) -> list[Any]:
    return [identify_model(session.module.backend, "").about["sha256"], identify_stack(session.module).about["sha256"]]


def test_a_run_leaves_the_keys_as_they_were(session: it.ITSession, tmp_path: Path) -> None:
    before = keys(session)
    for _ in range(2):
        AnalysisRunner(**session, root=tmp_path).run({"a": "clean_no_sae"})
    assert keys(session) == before
    assert len(list(tmp_path.iterdir())) == 1


def test_settings_and_hooks_of_somebodys_own_count(session: it.ITSession) -> None:
    def _capture_mlp_in(module: nn.Module, args: Any, output: Any) -> Any:
        return torch.zeros_like(output)

    model: Any = session.module.model
    found = [keys(session)[0]]
    for value in (1, 2):
        model.own_part = Part(value)
        found.append(keys(session)[0])
    del model.own_part
    handle = model.register_forward_hook(_capture_mlp_in)
    found.append(keys(session)[0])
    handle.remove()
    assert len(set(found)) == 4
    assert keys(session)[0] == found[0]
