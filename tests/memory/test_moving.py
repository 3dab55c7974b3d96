from __future__ import annotations

import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

import interpretune as it
from interpretune.memory import moving
from interpretune.system.model_lock import model_lock
from interpretune.testing import tiny_llama

IDS = torch.tensor([[1, 2, 3]])


def test_a_model_moved_into_files_answers_the_same_when_it_is_back(tmp_path):
    model = tiny_llama()
    model.lm_head.weight = model.model.embed_tokens.weight
    view = model.lm_head.weight.detach()[3:5]
    before, addresses = model(IDS).logits.detach().clone(), {p.data_ptr() for p in model.parameters()}
    state = {name: value.clone() for name, value in model.state_dict().items()}
    moved = it.move_off(model, to=tmp_path)
    assert not addresses & {p.data_ptr() for p in model.parameters()}
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    assert view.untyped_storage().data_ptr() == model.lm_head.weight.untyped_storage().data_ptr()
    assert sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file()) == moved.n_bytes
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    moved.back()
    assert list(tmp_path.iterdir()) == []
    assert torch.equal(model(IDS).logits, before)
    assert view.untyped_storage().data_ptr() == model.lm_head.weight.untyped_storage().data_ptr()
    moved.back()
    assert torch.equal(model(IDS).logits, before)


def test_a_block_moves_back_also_after_an_error(tmp_path):
    kept, copied = torch.arange(6.0), torch.arange(6.0)
    address = kept.data_ptr()
    moved = it.move_off([kept], to=tmp_path)
    assert kept.data_ptr() != address
    assert moved.moved[0].what == "Tensor (6,)"
    with pytest.raises(ZeroDivisionError), moved:
        1 / 0  # noqa: B018
    assert list(tmp_path.iterdir()) == []
    assert torch.equal(kept, copied)


def test_gradients_and_state_of_optimizers_go_along(tmp_path):
    weight = nn.Parameter(torch.ones(50))
    optimizer = torch.optim.Adam([weight])
    weight.sum().backward()
    optimizer.step()
    with it.move_off(optimizer, to=tmp_path, at_least=100) as moved:
        assert moved.n_bytes == 4 * 200
    optimizer.step()
    assert torch.isfinite(weight).all()


def test_what_refers_to_moved_memory_is_told(tmp_path):
    layer = nn.Linear(40, 40)
    kept = {"forgotten": layer.weight.detach()}
    with it.move_off(layer, to=tmp_path) as moved:
        told = moved.moved[0].holders
        assert "Linear.weight" in told
        assert "dict['forgotten']" in told
        assert "Linear.weight" in repr(moved)
    assert it.holders_of(kept["forgotten"]) == ("dict['forgotten']",)
    assert it.holders_of(layer.weight) == ("Linear.weight",)


def test_of_many_moved_tensors_the_largest_are_shown(tmp_path):
    with it.move_off([torch.ones(i + 1) for i in range(12)], to=tmp_path) as moved:
        assert "Tensor (12,)" in repr(moved)
        assert "Tensor (7,)" not in repr(moved)
        assert repr(moved).endswith("and 7 more")
        assert "7 more rows" in moved._repr_html_()


def test_tensors_that_cannot_be_changed_stay_and_are_told(tmp_path):
    with torch.inference_mode():
        fixed = torch.ones(30)
    with it.move_off([fixed, torch.ones(2)], to=tmp_path) as moved:
        assert [item.what for item in moved.stayed] == ["Tensor (30,)"]
        assert "120 bytes cannot be moved" in repr(moved)
    assert fixed.sum() == 30


def test_tensors_that_are_more_than_their_storage_stay(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        given = [torch.nested.nested_tensor([torch.ones(3), torch.ones(4)])]
        given.append(torch.quantize_per_tensor(torch.ones(50), 0.5, 0, torch.qint8))
    with it.move_off([*given, torch.ones(2)], to=tmp_path) as moved:
        assert [item.what for item in moved.moved] == ["Tensor (2,)"]
        assert sorted(item.what for item in moved.stayed) == ["Tensor", "Tensor (50,)"]
    assert given[0].unbind()[1].sum() == 4
    assert given[1].dequantize().sum() == 50


@pytest.mark.parametrize("given", ["in a mapping", "none"])
def test_models_that_hold_what_moves_are_locked_meanwhile(tmp_path, monkeypatch, given):
    model, free = nn.Linear(300, 300), list[bool]()
    [(_, lock)] = model_lock(model).locks

    def seen() -> list[torch.Tensor]:
        with ThreadPoolExecutor() as pool:
            free.append(pool.submit(lock.acquire, blocking=False).result())
        return living()

    living = moving.living_tensors
    monkeypatch.setattr(moving, "living_tensors", seen)
    asked = {"objects": {"model": model}} if given == "in a mapping" else {"device": "cpu", "at_least": 360_000}
    with it.move_off(to=tmp_path, **asked) as moved:
        assert "Parameter (300, 300)" in [item.what for item in moved.moved]
    assert free == [False]


def test_only_large_tensors_of_a_device_go(tmp_path):
    large, small = torch.zeros(1000), torch.zeros(10)
    with it.move_off([large, small], device="cuda", to=tmp_path) as moved:
        assert moved.moved == ()
    assert it.move_off([large, small], to="cpu").moved == ()
    with it.move_off([large, small], device="cpu", to=tmp_path, at_least=1000) as moved:
        assert [item.n_bytes for item in moved.moved] == [4000]


def test_what_cannot_be_asked_is_refused(tmp_path):
    with pytest.raises(it.ConfigurationError, match="nothing to move. Give objects"):
        it.move_off()
    with pytest.raises(it.ConfigurationError, match="is no folder that exists"):
        it.move_off([torch.ones(1)], to=tmp_path / "none")
    with pytest.raises(it.ConfigurationError, match="keeps no numbers"):
        it.move_off([torch.ones(1)], to="meta")


def test_a_storage_moves_with_all_its_tensors_or_with_none(tmp_path, monkeypatch):
    tensor, fails = torch.arange(6.0), [1]
    views = [tensor, tensor[2:], tensor[3:]]
    show = moving._show_part

    def broken(shown: torch.Tensor, storage: torch.UntypedStorage) -> None:
        if shown is views[-1] and fails:
            raise RuntimeError("out of memory")
        show(shown, storage)

    monkeypatch.setattr(moving, "_show_part", broken)
    address = tensor.data_ptr()
    with pytest.raises(RuntimeError, match="out of memory"):
        it.move_off(tensor, to=tmp_path)
    assert {view.untyped_storage().data_ptr() for view in views} == {address}
    assert list(tmp_path.iterdir()) == []
    fails.clear()
    moved = it.move_off(tensor, to=tmp_path)
    fails.append(1)
    with pytest.raises(RuntimeError, match="out of memory"):
        moved.back()
    assert len({view.untyped_storage().data_ptr() for view in views}) == 1
    fails.clear()
    moved.back()
    assert torch.equal(tensor, torch.arange(6.0))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="memory is pinned for CUDA, which is not there")
def test_pinned_memory_is_pinned_again(tmp_path):
    tensor = torch.ones(100).pin_memory()
    with it.move_off(tensor, to=tmp_path):
        assert not tensor.is_pinned()
    assert tensor.is_pinned()
