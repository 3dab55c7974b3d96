"""Several threads, and interrupts, while nnsight's edits are on a model."""

import gc
import sys
import threading

import pytest
import torch

from interpretune.analysis import (
    LatentRows,
    ModelInputs,
    Scale,
    activation_name,
    interventions_in_place,
    run_with_interventions,
)
from interpretune.testing import RandomDictionary, tiny_llama
from interpretune_nnsight import NNsightBackend, backend

WAIT = 60
EDITS = {"layers.1.mlp_out": torch.tanh, "layers.0.resid_mid": torch.sin}


def inputs_of(seed=0):
    tokens = torch.randint(4, 50, (2, 6), generator=torch.Generator().manual_seed(seed))
    return ModelInputs(tokens, torch.ones_like(tokens))


def what_modules_hold(model):
    return [{key: dict(v) if isinstance(v, dict) else v for key, v in vars(item).items()} for item in model.modules()]


@pytest.fixture
def model():
    return tiny_llama().requires_grad_(False)


def test_eight_threads_get_right_numbers(model):
    each, inputs, before = NNsightBackend(model), inputs_of(), what_modules_hold(model)
    models = [RandomDictionary("layers.1.resid_post", 32, seed=0)]
    name = activation_name(models[0])

    def ablation():
        prefill = each.prefill(inputs, models)
        return each.ablate(prefill, LatentRows.single(name, (prefill.latents[name] > 0).nonzero()))

    calls = [
        lambda: model(inputs.tokens).logits,
        lambda: run_with_interventions(each, inputs, [Scale(at="layers.1.resid_mid", factor=0.5)]),
        ablation,
    ]
    expected = [call() for call in calls]
    begin, errors = threading.Barrier(8, timeout=WAIT), []

    def work(first):
        begin.wait()
        try:
            for step in range(len(calls)):
                which = (first + step) % len(calls)
                torch.testing.assert_close(calls[which](), expected[which], rtol=0, atol=1e-6)
        except BaseException as error:  # noqa: BLE001 - raised below
            errors.append(error)

    threads = [threading.Thread(target=work, args=(index,), daemon=True) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    assert not any(thread.is_alive() for thread in threads)
    assert not errors, errors
    assert what_modules_hold(model) == before
    assert torch.equal(calls[0](), expected[0])


def test_blocks_of_two_threads_end_in_any_order(model):
    each, inputs, before = NNsightBackend(model), inputs_of(), what_modules_hold(model)
    plain = model(inputs.tokens).logits
    begin, end, found = threading.Barrier(2, timeout=WAIT), threading.Barrier(2, timeout=WAIT), {}

    def first():
        with interventions_in_place(each, inputs, [Scale(at="layers.1.mlp_out", factor=0.0)]):
            begin.wait()
            begin.wait()
            found["first"] = model(inputs.tokens).logits
        end.wait()

    def second():
        begin.wait()
        with interventions_in_place(each, inputs, [Scale(at="layers.1.mlp_out", factor=0.5)]):
            begin.wait()
            end.wait()  # the other block has ended
            found["second"] = model(inputs.tokens).logits

    threads = [threading.Thread(target=work, daemon=True) for work in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    for name, factor in (("first", 0.0), ("second", 0.5)):
        with interventions_in_place(each, inputs, [Scale(at="layers.1.mlp_out", factor=factor)]):
            assert torch.equal(found[name], model(inputs.tokens).logits)
        assert not torch.allclose(found[name], plain)
    assert torch.equal(model(inputs.tokens).logits, plain)
    assert what_modules_hold(model) == before


def interrupted(work, event):
    """Do work and raise KeyboardInterrupt at one line or call of the backend's file; None: there are not so many."""
    seen = 0

    def trace(frame, kind, _):
        nonlocal seen
        if frame.f_code.co_filename != backend.__file__:
            return None
        if kind in ("call", "line"):
            seen += 1
            if seen == event:
                sys.settrace(None)
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    except KeyboardInterrupt as error:
        return error
    finally:
        sys.settrace(before)
    return None


def test_an_interrupt_at_any_line_leaves_no_replaced_forward(model):
    each, inputs = NNsightBackend(model), inputs_of()
    edited, plain, before = each.forward(inputs, EDITS), each.run(inputs), what_modules_hold(model)
    event = 1
    while (error := interrupted(lambda: each.forward(inputs, EDITS), event)) is not None:
        del error
        if what_modules_hold(model) != before:
            gc.collect()  # whoever holds the traceback of an interrupted generator holds the generator
        assert what_modules_hold(model) == before, event
        assert torch.equal(each.forward(inputs, EDITS), edited), event
        event += 1 if event < 40 else 3
    assert event > 50
    assert torch.equal(each.run(inputs), plain)
