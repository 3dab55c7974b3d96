"""Two versions of TransformerLens give the same numbers: those in a file and those of the installed one.

``make test-tlens4`` has the workspace's version write the file, and runs this with version 4.
"""

from __future__ import annotations

import importlib.metadata
import os

import pytest
import torch
from safetensors import safe_open

from tests.tlens4.numbers import KINDS, backend_of, numbers_of

FILE = os.environ["TRANSFORMER_LENS_NUMBERS"]


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_are_those_of_the_other_version(kind: str) -> None:
    with safe_open(FILE, "pt") as stored:
        assert stored.metadata()["transformer-lens"] != importlib.metadata.version("transformer-lens")
        names = stored.metadata()[kind].split()
        expected = {name: stored.get_tensor(name) for name in stored.keys() if name.startswith(f"{kind}: ")}  # noqa: SIM118
    assert set(names) <= set(backend_of(kind).hook_point_names())
    found = numbers_of(kind)
    assert len(expected) > 20
    assert expected.keys() <= found.keys()
    for name, values in expected.items():
        told = f"{name} differs by {(found[name] - values).abs().max()}"
        torch.testing.assert_close(found[name], values, rtol=0, atol=1e-5, msg=told)
        assert values.abs().max() > 1e-3, f"{name} shows no difference"
