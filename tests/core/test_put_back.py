"""What is changed for a time is put back, whoever is done first and whatever interrupts it."""

import copy
import gc
import pickle
import sys
import weakref

import pytest
import torch
from torch import nn

import interpretune as it
from interpretune.analysis import frozen_parameters
from interpretune.system import put_back
from interpretune.system.put_back import random_state_put_back, with_own_draws
from interpretune.system.torch_state import eval_mode
from tests.tiny import tiny_llama


@pytest.mark.parametrize("first_out", [0, 1])
@pytest.mark.parametrize(
    ("change", "read"),
    [
        (eval_mode, lambda model: model.training),
        (frozen_parameters, lambda model: model.weight.requires_grad),
    ],
)
def test_flags_come_back_in_any_order(change, read, first_out):
    model = nn.Linear(2, 2)
    blocks = [change(model), change(model)]
    for block in blocks:
        block.__enter__()
    blocks.pop(first_out).__exit__(None, None, None)
    assert not read(model)
    blocks.pop().__exit__(None, None, None)
    assert read(model)


@pytest.mark.parametrize("first_out", [0, 1])
def test_the_random_state_comes_back_in_any_order(first_out):
    before = torch.get_rng_state()
    blocks = [random_state_put_back(), random_state_put_back()]
    for seed, block in enumerate(blocks):
        block.__enter__()
        torch.manual_seed(seed)
    blocks.pop(first_out).__exit__(None, None, None)
    blocks.pop().__exit__(None, None, None)
    assert torch.equal(torch.get_rng_state(), before)


def test_an_interrupt_at_any_line_puts_the_random_state_back():
    before, event = torch.get_rng_state(), 0

    def work():
        torch.manual_seed(3)
        return torch.rand(2)

    def trace(frame, kind, _):
        nonlocal seen
        if frame.f_code.co_filename != put_back.__file__:
            return None
        seen += kind in ("call", "line")
        if seen == event:
            sys.settrace(None)
            raise KeyboardInterrupt
        return trace

    outer, interrupted = sys.gettrace(), True
    while interrupted:
        seen, event = 0, event + 1
        try:
            sys.settrace(trace)
            with_own_draws(work)
            interrupted = False
        except KeyboardInterrupt as error:
            kept = error  # with its traceback and all frames
            assert torch.equal(torch.get_rng_state(), before), event
            del kept
        finally:
            sys.settrace(outer)
    assert event > 20
    assert torch.equal(torch.get_rng_state(), before)


def test_wrappers_share_the_lock_of_what_they_wrap():
    model = tiny_llama()
    lock = it.model_lock(model)
    assert it.model_lock(nn.ModuleList([model])) is lock
    assert it.model_lock(model.model) is lock
    hidden = nn.Module()
    vars(hidden)["wrapped"] = model
    assert it.model_lock(hidden) is lock
    assert it.model_lock(copy.deepcopy(model)) is not lock
    assert it.model_lock(pickle.loads(pickle.dumps(model))) is not lock
    wrapper = nn.ModuleList([inner := nn.Linear(2, 2)])
    assert it.model_lock(wrapper) is it.model_lock(inner)  # the wrapper came first


def test_a_lock_keeps_no_model():
    model = nn.Linear(2, 2)
    with it.model_lock(model):
        gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
