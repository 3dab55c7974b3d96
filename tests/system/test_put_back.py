"""What is changed for a time is put back, whoever is done first and whatever interrupts it."""

import copy
import gc
import os
import pickle
import sys
import threading
import weakref
from pathlib import Path

import pytest
import torch
from torch import nn

import interpretune as it
from interpretune.analysis import frozen_parameters
from interpretune.system import put_back
from interpretune.system.put_back import random_state_put_back, with_own_draws
from interpretune.system.torch_state import eval_mode
from tests.many_threads import WAIT, run_together
from tests.other_process import run_script
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


def is_my_turn_over():
    """Whether another thread could draw."""
    turn = put_back._turn

    def asks():
        if turn.is_waited_for() or not turn.lock.acquire(blocking=False):
            return False
        turn.lock.release()
        return True

    return run_together(asks)[0]


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
            assert is_my_turn_over(), event
            del kept
        finally:
            sys.settrace(outer)
    put_back._renew()  # tracing interrupts at the end of `with lock:` too, before the lock is given back
    assert event > 20
    assert torch.equal(torch.get_rng_state(), before)


# ----------------------------------------------------------------------------------------------------- draws in threads


def test_two_models_asked_from_each_other_s_draws_do_not_hang():
    """One thread draws for a model and asks another; the other holds that one's lock and wants to draw."""
    models, both = [nn.Linear(1, 1), nn.Linear(1, 1)], threading.Barrier(2, timeout=WAIT)

    def asks_the_other():
        with it.model_lock(models[0]):
            return with_own_draws(ask)

    def ask():
        torch.manual_seed(1)
        both.wait()
        with it.model_lock(models[1]):
            return torch.rand(2)

    def holds_the_other():
        with it.model_lock(models[1]):
            both.wait()
            return with_own_draws(lambda: torch.rand(2, generator=torch.manual_seed(2)))

    before = torch.get_rng_state()
    found = run_together(asks_the_other, holds_the_other)
    assert torch.equal(torch.get_rng_state(), before)
    for seed, numbers in enumerate(found, 1):
        assert torch.equal(numbers, torch.rand(2, generator=torch.Generator().manual_seed(seed)))


@pytest.mark.parametrize("nested", [False, True])
def test_draws_do_not_depend_on_other_threads(nested):
    """Weights of a model, steps of a loop, operations of an analysis, one within the other, and a model they share."""
    shared = nn.Linear(1, 1)

    def draw(seed):
        torch.manual_seed(seed)
        numbers = []
        for _ in range(6):
            with it.model_lock(shared):
                numbers.append(torch.rand(2))
            if nested:
                inner = with_own_draws(lambda: torch.rand(2, generator=torch.manual_seed(seed + 10)))
                assert torch.equal(inner, torch.rand(2, generator=torch.Generator().manual_seed(seed + 10)))
        return torch.stack(numbers)

    def in_block(seed):
        with random_state_put_back():
            return draw(seed)

    ways = [in_block, lambda seed: with_own_draws(lambda: draw(seed))] * 2
    before = torch.get_rng_state()
    alone = [way(seed) for seed, way in enumerate(ways)]
    for _ in range(30):
        found = run_together(*[lambda way=way, seed=seed: way(seed) for seed, way in enumerate(ways)])
        assert all(map(torch.equal, found, alone))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_long_block_lets_others_draw():
    model, drawn = nn.Linear(1, 1), threading.Event()

    def loop():
        torch.manual_seed(3)
        with random_state_put_back():
            begun.wait()
            for _ in range(10**7):
                with it.model_lock(model):  # each step of a loop asks for its model
                    if drawn.is_set():
                        return True
        return False

    def draws():
        begun.wait()
        with_own_draws(drawn.set)

    begun = threading.Barrier(2, timeout=WAIT)
    assert run_together(loop, draws)[0]


def test_an_interrupt_while_waiting_leaves_the_draws_of_others():
    """Nothing is put in the place of what another draws from, and the turn is not kept."""
    model, waits, goes = nn.Linear(1, 1), threading.Event(), threading.Event()

    class Interrupted:
        def acquire(self, blocking=True):
            if not blocking:
                return False
            waits.set()
            assert goes.wait(WAIT)
            raise KeyboardInterrupt

        def release(self):
            raise AssertionError

    lock = it.model_lock(model)
    lock.locks = ((0, Interrupted()),)

    def interrupted():
        def work():
            torch.manual_seed(4)
            with lock:
                pass

        with pytest.raises(KeyboardInterrupt):
            with_own_draws(work)

    def draws():
        assert waits.wait(WAIT)
        return with_own_draws(seeded)

    def seeded():
        torch.manual_seed(5)
        goes.set()
        return torch.rand(2)

    before = torch.get_rng_state()
    found = run_together(interrupted, draws)[1]
    assert torch.equal(found, torch.rand(2, generator=torch.Generator().manual_seed(5)))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_process_waits_for_no_thread_of_its_parent():
    run_script(Path(__file__).with_name("forked_while_held.py"))


# ---------------------------------------------------------------------------------------------------------------- locks


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


@pytest.mark.parametrize("kept", [lambda m: [m], lambda m: (1, m), lambda m: {"a": [{"b": m}]}, lambda m: {m}])
def test_wrappers_share_the_lock_of_what_they_keep_in_a_list(kept):
    model, wrapper = nn.Linear(2, 2), nn.Module()
    wrapper.models = kept(model)
    wrapper.itself = [wrapper, [wrapper]]
    assert it.model_lock(wrapper) is it.model_lock(model)


def is_free(model):
    """Whether another thread could take the lock of a model."""

    def asks():
        taken = [lock.acquire(blocking=False) for _, lock in it.model_lock(model).locks]
        for got, (_, lock) in zip(taken, it.model_lock(model).locks, strict=True):
            if got:
                lock.release()
        return all(taken)

    return run_together(asks)[0]


def test_a_wrapper_of_several_models_holds_the_locks_of_all():
    a, b, new = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)
    locks = [it.model_lock(a), it.model_lock(b)]
    assert locks[0] is not locks[1]
    both, again = nn.ModuleList([b, a, new]), nn.ModuleList([a, b])
    with it.model_lock(b):
        it.model_lock(both)
        assert not is_free(b)  # it is the lock that is held
        assert not is_free(both)
        assert is_free(a)
    assert [it.model_lock(a), it.model_lock(b)] == locks
    assert it.model_lock(both).locks == it.model_lock(again).locks  # in one order
    for item in (both, again, new):
        with it.model_lock(item), it.model_lock(a):
            assert not any(map(is_free, (a, b, both, again, new)))
        assert all(map(is_free, (a, b, both, again, new)))
