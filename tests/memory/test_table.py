from __future__ import annotations

import functools
import types

import numpy as np
import pytest
import torch
from torch import nn

import interpretune as it
from interpretune.testing import tiny_llama


def sizes(table):
    return {line.name: (line.n_bytes, line.shared) for line in table.lines}


def test_a_model_holds_its_parameters_once_with_gradients():
    model = tiny_llama()
    plain = sum(p.nbytes for p in {p.data_ptr(): p for p in [*model.parameters(), *model.buffers()]}.values())
    assert it.memory_table({"model": model}, unnamed=False).n_bytes == plain
    model(torch.tensor([[1, 2, 3]])).logits.sum().backward()
    grads = sum(p.grad.nbytes for p in model.parameters())
    assert it.memory_table({"model": model}, unnamed=False).n_bytes == plain + grads


def test_shared_storages_count_for_the_largest_holder():
    whole = torch.zeros(100)
    names = {"part": [whole[:10]], "both": [whole, torch.zeros(5)], "array": whole.numpy(), "other": np.zeros(3)}
    table = it.memory_table(names, unnamed=False)
    assert sizes(table) == {"both": (420, 0), "array": (0, 400), "part": (0, 400), "other": (24, 0)}
    assert table.n_bytes == 444
    assert "counted above" in repr(table)
    assert [line.what for line in table.lines] == ["list", "ndarray (100,)", "list", "ndarray (3,)"]


class Slotted:
    __slots__ = ("kept",)

    def __init__(self, kept):
        self.kept = kept


def closure_of(kept):
    return lambda: kept


@pytest.mark.parametrize(
    "wrap",
    [
        lambda x: {"a": [(x,)]},
        Slotted,
        closure_of,
        lambda x: functools.partial(print, x),
        lambda x: types.SimpleNamespace(x=x),
        lambda x: nn.ParameterList([nn.Parameter(x)]),
        lambda x: x.to_sparse(),
    ],
    ids=["containers", "slots", "closure", "partial", "attributes", "module", "sparse"],
)
def test_memory_is_found_wherever_it_is_kept(wrap):
    table = it.memory_table({"holder": wrap(torch.ones(8, 8))}, unnamed=False)
    assert table.n_bytes >= 256
    assert all(line.device == "cpu" for line in table.lines)


def test_an_optimizer_holds_its_state():
    weight = nn.Parameter(torch.ones(50))
    optimizer = torch.optim.Adam([weight])
    weight.sum().backward()
    optimizer.step()
    state = sum(value.nbytes for value in optimizer.state[weight].values())
    assert sizes(it.memory_table({"optimizer": optimizer}, unnamed=False)) == {"optimizer": (state + 400, 0)}


def test_names_of_functions_are_not_followed_to_the_whole_program():
    names = {"f": sizes}
    keep = torch.zeros(1000)
    globals()["kept_elsewhere"] = keep
    try:
        assert it.memory_table(names, unnamed=False).n_bytes == 0
    finally:
        del globals()["kept_elsewhere"]


def test_tensors_without_a_name_have_a_line():
    held = [torch.zeros(1_000_000)]
    table = it.memory_table({"small": torch.zeros(2)}, at_least=4_000_000)
    assert [line.name for line in table.lines] == ["(no name leads here)"]
    assert table.n_bytes >= held[0].nbytes


def test_a_device_filters_and_memory_that_is_none_counts_as_none():
    names = {"here": torch.zeros(4), "nowhere": torch.zeros(4, device="meta"), "empty": torch.zeros(0)}
    assert sizes(it.memory_table(names, device="cpu", unnamed=False)) == {"here": (16, 0)}
    assert it.memory_table(names, device="cuda", unnamed=False).lines == ()


def test_a_namespace_may_be_an_object_and_must_have_names():
    assert it.memory_table(types.SimpleNamespace(x=torch.zeros(4)), unnamed=False).to_pandas().name.tolist() == ["x"]
    with pytest.raises(it.ConfigurationError, match=r"is a int, which has no names. Give globals\(\)"):
        it.memory_table(3)


def test_markup_in_names_is_shown_as_text():
    table = it.memory_table({"<script>": torch.zeros(1)}, unnamed=False)
    assert "<script>" not in table._repr_html_()


def test_the_status_is_one_line_of_what_the_machine_tells():
    status = it.memory_status("cpu")
    assert 0 < status.resident < status.total
    assert 0 < status.free <= status.total
    assert str(status).startswith("cpu: free ")
    assert "\n" not in str(status)


def test_proxies_are_not_asked_what_they_stand_for():
    asked = []

    class Lazy:
        __class__ = property(lambda _: asked.append("loaded") or dict)

        def __init__(self, kept):
            self.kept = kept

    kept = torch.zeros(50)
    names = {"lazy": Lazy(kept), "more": [Lazy(kept)]}
    assert it.memory_table(names, unnamed=False).n_bytes == 200
    assert it.holders_of(kept)
    assert asked == []
