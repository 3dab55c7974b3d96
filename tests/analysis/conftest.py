"""Sessions and references that the tests of analyses share; building each once keeps the suite short."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest

import interpretune as it
from tests.analysis.sessions import make_session


@pytest.fixture(scope="session")
def session_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., it.ITSession]:
    """``session_of(kind, stack, side)``: BOS and padding share an id in GPT-2's tokenizer, not in Llama's."""

    @cache
    def build(kind: str, stack: str, side: str) -> it.ITSession:
        folder = tmp_path_factory.mktemp(f"{kind}-{stack}-{side}")
        return make_session(folder, kind, stack, side, bos_is_pad=kind == "gpt2")

    return build
