"""Sessions, models and edits that several threads and tasks use at the same time."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import copy
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import interpretune as it
from interpretune.activations import replaced_method
from interpretune.activations.edits import CARRIED, in_place
from interpretune.analysis import (
    Add,
    AnalysisBackend,
    Edit,
    HuggingFaceBackend,
    LatentRows,
    ModelInputs,
    Scale,
    run_with_interventions,
)
from interpretune.backends.interventions import generate_with_interventions, interventions_in_place
from interpretune.replay import attribute, blocks_below_skipped, columns_only
from tests.many_threads import WAIT, all_from_eight_threads, run_together, three_calls
from tests.sessions import STACKS, make_session
from tests.tiny import tiny_gpt2, tiny_llama
from tests.tiny_latents import RandomDictionary, activations_of

MODELS = {"gpt2": tiny_gpt2, "llama": tiny_llama}
PLACE = "layers.1.resid_post"


def dictionaries() -> list[RandomDictionary]:
    return [RandomDictionary("blocks.1.hook_resid_post"), RandomDictionary("blocks.0.hook_mlp_out", seed=1)]


def inputs_of(seed: int = 0) -> ModelInputs:
    tokens = torch.randint(4, 90, (3, 9), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(tokens)
    mask[0, :4] = mask[2, :1] = 0
    return ModelInputs(tokens, mask)


def users_own(model: Any, inputs: ModelInputs) -> Tensor:
    """A forward that knows nothing of the library."""
    with torch.no_grad():
        output = model(inputs.tokens, attention_mask=inputs.attention_mask)
    return getattr(output, "logits", output)


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> Any:
    return MODELS[request.param]().requires_grad_(False)


class Paused:
    """An edit that stops in the middle of a forward until it is told to go on."""

    def __init__(self) -> None:
        self.reached, self.go_on = threading.Event(), threading.Event()

    def __call__(self, activations: Tensor) -> Tensor:
        self.reached.set()
        assert self.go_on.wait(WAIT)
        return activations + 1

    @contextlib.contextmanager
    def during(self, work: Callable[[], Any]) -> Iterator[list[Any]]:
        """Run a block while another thread's work waits in this edit; what it returned is in the list afterwards."""
        results: list[Any] = []
        thread = threading.Thread(target=lambda: results.append(work()), daemon=True)
        thread.start()
        try:
            assert self.reached.wait(WAIT)
            yield results
        finally:
            self.go_on.set()
            thread.join(WAIT)


@pytest.mark.parametrize(("stack", "kind"), [*zip(STACKS, ("gpt2", "llama", "gpt2"), strict=False), ("core", "llama")])
def test_eight_threads_on_one_session_get_right_numbers(tmp_path: Any, stack: str, kind: str) -> None:
    session = make_session(tmp_path, kind, stack, latent_models=dictionaries())
    module = session.module
    batch = {
        name: value for name, value in next(iter(session.datamodule.test_dataloader())).items() if name != "labels"
    }

    def plain() -> Tensor:
        with torch.no_grad():
            output = module(**batch)
        return getattr(output, "logits", output)

    inputs = ModelInputs.from_batch(batch)
    before = users_own(module.model, inputs)
    all_from_eight_threads(three_calls(module.backend, inputs, module.latent_models, plain))
    assert torch.equal(users_own(module.model, inputs), before)


@pytest.mark.parametrize("stack", STACKS)
def test_own_forwards_are_plain_while_others_ablate(tmp_path: Any, stack: str) -> None:
    """Replays skip blocks, swap attention, narrow the unembedding and spare work, all on the model that is shared."""
    session = make_session(tmp_path, "llama", stack, latent_models=dictionaries())
    module, inputs, other = session.module, inputs_of(), inputs_of(1)
    _, _, ablation = three_calls(module.backend, inputs, module.latent_models, lambda: inputs.tokens)
    expected = users_own(module.model, other)
    columns = torch.tensor([3, 5])

    def analyse() -> None:
        for _ in range(2):
            ablation()
            prefill = module.backend.prefill(inputs, module.latent_models)
            attribute(prefill, lambda logits, _: logits[:, 0].sum(), list(prefill.latents), columns)
            module.backend.capture(inputs, ["layers.0.resid_mid"])

    done = threading.Event()

    def watched() -> None:
        try:
            analyse()
        finally:
            done.set()

    def own() -> int:
        runs = 0
        while not done.is_set() or not runs:
            assert torch.equal(users_own(module.model, other), expected)
            runs += 1
        return runs

    run_together(watched, own, own)
    assert torch.equal(users_own(module.model, other), expected)


# --------------------------------------------------------------------------------------------------- one other thread


class NaiveBackend(HuggingFaceBackend):
    """A backend of somebody else: plain torch hooks, written without a thought of threads."""

    @contextlib.contextmanager
    def hooked(self, edits: Mapping[str, Edit]) -> Iterator[None]:
        handles = []
        for name, edit in edits.items():
            path, side = self.module_and_side(name)
            module, edit = self.modules[path], in_place(edit) if side == CARRIED else edit
            if side == "out":
                handles.append(module.register_forward_hook(lambda _, args, out, edit=edit: self.changed(out, edit)))
            else:
                handles.append(module.register_forward_pre_hook(lambda _, args, edit=edit: (edit(args[0]), *args[1:])))
        yield
        for handle in handles:
            handle.remove()

    @staticmethod
    def changed(output: Any, edit: Edit) -> Any:
        return (edit(output[0]), *output[1:]) if isinstance(output, tuple) else edit(output)


@pytest.mark.parametrize("backend_class", [HuggingFaceBackend, NaiveBackend])
def test_own_forward_is_plain_while_an_edit_waits(model: Any, backend_class: type[AnalysisBackend]) -> None:
    backend, inputs, paused = backend_class(model), inputs_of(), Paused()
    plain = users_own(model, inputs)
    edits = {PLACE: paused, "layers.2.mlp_out": torch.tanh, "layers.2.resid_pre": torch.tanh}
    with paused.during(lambda: backend.forward(inputs, edits)) as found:
        assert torch.equal(users_own(model, inputs), plain)
    paused.reached.clear()
    assert torch.equal(found[0], backend.forward(inputs, edits))
    assert not torch.allclose(found[0], plain, atol=1e-3)


def test_third_party_backends_take_turns(model: Any) -> None:
    backend, inputs = NaiveBackend(model), inputs_of()
    all_from_eight_threads(three_calls(backend, inputs, dictionaries(), lambda: backend.run(inputs)), rounds=2)


def test_own_forward_is_plain_while_a_replay_waits(model: Any) -> None:
    backend, inputs, paused = HuggingFaceBackend(model), inputs_of(), Paused()
    latent_models, plain = dictionaries(), users_own(model, inputs_of(1))
    low = activations_of(latent_models[1])
    prefill = backend.prefill(inputs, latent_models)
    rows = LatentRows.single(low, (prefill.latents[low] > 0).nonzero())
    columns = torch.tensor([3, 5])
    expected = backend.ablate(prefill, rows, columns)
    encode = latent_models[0].encode
    latent_models[0].encode = lambda x: encode(x + 0 * paused(x))
    with paused.during(lambda: backend.ablate(prefill, rows, columns)) as found:
        assert torch.equal(users_own(model, inputs_of(1)), plain)
    torch.testing.assert_close(found[0], expected)


def test_others_get_the_very_tensors_of_the_model(model: Any) -> None:
    """Also where an edit is made in place, for the skip connection too, or of flat heads."""
    backend, inputs = HuggingFaceBackend(model), inputs_of()
    seen: dict[str, list[Any]] = {"alone": [], "beside": []}
    run = "alone"

    def note(module: nn.Module, args: Any, output: Any) -> None:
        seen[run].append((type(output), args[0] if args else None))

    handles = [module.register_forward_hook(note) for module in model.modules()]
    names = [name for name in backend.hook_point_names() if ":" not in name]
    backend.check_hook_points(names)
    seen["alone"].clear()
    users_own(model, inputs)
    with interventions_in_place(backend, inputs, [Scale(at=name, factor=0.0) for name in names]):
        run = "beside"
        [logits] = run_together(lambda: users_own(model, inputs))
        with torch.no_grad():
            model(inputs.tokens)  # for the count of edits
    for handle in handles:
        handle.remove()
    assert torch.equal(logits, users_own(model, inputs))
    for (kind, given), (same, again) in zip(seen["alone"], seen["beside"], strict=False):
        assert kind is same
        assert given is None or torch.equal(given, again)


def test_gradients_pass_other_threads_edits(model: Any) -> None:
    backend, inputs, paused = HuggingFaceBackend(model), inputs_of(), Paused()

    def gradient() -> Tensor:
        embedded = model.get_input_embeddings()(inputs.tokens).detach().requires_grad_()
        logits = model(inputs_embeds=embedded, attention_mask=inputs.attention_mask).logits
        return torch.autograd.grad(logits.sum(), embedded)[0]

    expected = gradient()
    with paused.during(lambda: backend.forward(inputs, {PLACE: paused, "layers.2.resid_mid": torch.tanh})):
        assert torch.equal(gradient(), expected)


def test_a_classifier_answers_for_its_own_batch_only() -> None:
    from transformers import LlamaForSequenceClassification

    from interpretune.models.answer_pooling import pooled_at_answer

    torch.manual_seed(0)
    model = LlamaForSequenceClassification(tiny_llama().config).eval()
    model.config.pad_token_id = 0
    inputs = inputs_of()
    plain = users_own(model, inputs)
    shifted = torch.ones_like(inputs.tokens)
    shifted[:, 5:] = 0
    with pooled_at_answer(model, inputs.tokens, shifted):
        [found] = run_together(lambda: users_own(model, inputs))
        assert not torch.allclose(users_own(model, inputs), plain)
    assert torch.equal(found, plain)


# ------------------------------------------------------------------------------------------------------ asyncio's tasks


def test_tasks_of_one_thread_see_their_own_edits(model: Any) -> None:
    backend, inputs = HuggingFaceBackend(model), inputs_of()
    plain = users_own(model, inputs)
    steps = [Add(at=PLACE, value=torch.linspace(-size, size, 32)) for size in (1, 2)]
    expected = []
    for step in steps:
        with interventions_in_place(backend, inputs, [step]):
            expected.append((users_own(model, inputs), backend.forward(inputs, {})))

    async def one(step: Add, mine: asyncio.Event, others: asyncio.Event) -> list[Tensor]:
        with interventions_in_place(backend, inputs, [step]):
            mine.set()
            await others.wait()
            inside = [users_own(model, inputs), await asyncio.to_thread(users_own, model, inputs)]
            inside.append(await asyncio.to_thread(backend.forward, inputs, {}))
            await asyncio.sleep(0)
        return [*inside, users_own(model, inputs)]

    async def both() -> list[list[Tensor]]:
        first, second = asyncio.Event(), asyncio.Event()
        return list(await asyncio.gather(one(steps[0], first, second), one(steps[1], second, first)))

    for found, wanted in zip(asyncio.run(both()), expected, strict=True):
        assert torch.equal(found[0], wanted[0])
        assert torch.equal(found[1], wanted[0])  # a thread with a copy of the task's context belongs to it
        assert torch.equal(found[2], wanted[1])
        assert torch.equal(found[3], plain)


def test_a_new_thread_within_a_block_is_not_edited(model: Any) -> None:
    backend, inputs = HuggingFaceBackend(model), inputs_of()
    plain = users_own(model, inputs)
    with interventions_in_place(backend, inputs, [Scale(at=PLACE, factor=0.0)]):
        edited, context = users_own(model, inputs), contextvars.copy_context()
        found = run_together(lambda: users_own(model, inputs), lambda: context.run(users_own, model, inputs))
    assert torch.equal(found[0], plain)
    assert torch.equal(found[1], edited)
    assert torch.equal(context.run(users_own, model, inputs), plain)


def test_blocks_may_end_in_any_order(model: Any) -> None:
    backend, inputs = HuggingFaceBackend(model), inputs_of()
    plain = users_own(model, inputs)
    with torch.no_grad():
        expected = run_with_interventions(backend, inputs, [Scale(at=PLACE, factor=0.5)])
    first = interventions_in_place(backend, inputs, [Scale(at=PLACE, factor=0.0)])
    second = interventions_in_place(backend, inputs, [Scale(at=PLACE, factor=0.5)])
    first.__enter__()
    second.__enter__()
    users_own(model, inputs)
    first.__exit__(None, None, None)
    with torch.no_grad():
        found = backend.run(inputs)
    second.__exit__(None, None, None)
    torch.testing.assert_close(found, expected)
    assert torch.equal(users_own(model, inputs), plain)


# ------------------------------------------------------------------------------------------------------ what is swapped


def what_modules_hold(model: nn.Module) -> list[Any]:
    return [{key: dict(v) if isinstance(v, dict) else v for key, v in vars(item).items()} for item in model.modules()]


def test_replaced_methods_are_put_back_in_any_order(model: Any) -> None:
    head, given = model.get_output_embeddings(), torch.ones(2, 32)
    before, plain = what_modules_hold(model), model.get_output_embeddings()(torch.ones(2, 32))
    begin, end = threading.Barrier(2, timeout=WAIT), threading.Barrier(2, timeout=WAIT)

    def first() -> Tensor:
        with replaced_method(head, "forward", lambda x: x + 1):
            begin.wait()
            found = head(given)
        end.wait()
        assert torch.equal(head(given), plain)
        return found

    def second() -> Tensor:
        begin_later = contextlib.ExitStack()
        begin.wait()
        begin_later.enter_context(replaced_method(head, "forward", lambda x: x + 2))
        end.wait()
        with begin_later:
            return head(given)

    found = run_together(first, second)
    assert torch.equal(found[0], given + 1)
    assert torch.equal(found[1], given + 2)
    assert what_modules_hold(model) == before


def test_a_method_of_a_module_s_own_comes_back() -> None:
    linear = nn.Linear(2, 2)
    linear.forward = own = torch.cos
    with replaced_method(linear, "forward", torch.sin):
        assert linear(torch.zeros(2)).tolist() == [0, 0]
    assert vars(linear)["forward"] is own


def test_an_error_in_one_thread_leaves_the_others_right(model: Any) -> None:
    backend, inputs = HuggingFaceBackend(model), inputs_of()
    latent_models, before = dictionaries(), what_modules_hold(model)
    low = activations_of(latent_models[1])
    prefill = backend.prefill(inputs, latent_models)
    rows = LatentRows.single(low, (prefill.latents[low] > 0).nonzero())
    expected, plain = backend.ablate(prefill, rows), users_own(model, inputs)
    encode, fails = latent_models[0].encode, threading.local()

    def sometimes(activations: Tensor) -> Tensor:
        if getattr(fails, "here", False):
            raise OverflowError
        return encode(activations)

    latent_models[0].encode = sometimes

    def failing() -> None:
        fails.here = True
        for _ in range(5):
            with pytest.raises(OverflowError):
                backend.ablate(prefill, rows)

    def sound() -> None:
        for _ in range(5):
            torch.testing.assert_close(backend.ablate(prefill, rows), expected)

    run_together(failing, sound, failing, sound)
    assert torch.equal(users_own(model, inputs), plain)
    assert what_modules_hold(model) == before


def test_a_model_is_copied_and_saved_while_others_run_it(model: Any, tmp_path: Any) -> None:
    backend, inputs, paused = HuggingFaceBackend(model), inputs_of(), Paused()
    plain, blocks = users_own(model, inputs), list(backend.blocks[1])

    def waits() -> None:
        hidden = torch.zeros(3, 9, 32)
        with (
            blocks_below_skipped(blocks, 2, hidden, in_tuple=False),
            columns_only(model.get_output_embeddings(), torch.tensor([1])),
            replaced_method(blocks[2], "forward", lambda x, *_, **__: paused(x)),
        ):
            users_own(model, inputs)

    with paused.during(waits):
        copied = copy.deepcopy(model)
        model.save_pretrained(tmp_path)
        torch.save(model, tmp_path / "model.pt")
        assert torch.equal(users_own(model, inputs), plain)
    loaded = torch.load(tmp_path / "model.pt", weights_only=False)
    for other in (copied, loaded):
        assert torch.equal(users_own(other, inputs), plain)
        other.get_output_embeddings().weight.data.zero_()
        assert not users_own(other, inputs).any()
    assert torch.equal(users_own(model, inputs), plain)


def test_generation_is_steered_for_its_caller_alone(tmp_path: Any) -> None:
    session = make_session(tmp_path, "llama", latent_models=dictionaries())
    module = session.module
    batch = {
        name: value for name, value in next(iter(session.datamodule.test_dataloader())).items() if name != "labels"
    }
    options = {"max_new_tokens": 3, "do_sample": False}
    steering = [Add(at=PLACE, value=torch.linspace(-3, 3, 32))]

    def steered() -> Tensor:
        return torch.stack(
            generate_with_interventions(module.backend, module.it_generate, batch, steering, **options).logits
        )

    def plain() -> Tensor:
        return torch.stack(module.it_generate(batch, **options).logits)

    def own() -> Tensor:
        output = module.model.generate(
            batch["input_ids"],
            attention_mask=batch["attention_mask"],
            output_logits=True,
            return_dict_in_generate=True,
            pad_token_id=0,
            **options,
        )
        return torch.stack(output.logits)

    works: list[Callable[[], Tensor]] = [steered, plain, own, steered]
    expected = [work() for work in works]
    assert not torch.allclose(expected[0], expected[1])
    for found, wanted in zip(run_together(*works), expected, strict=True):
        assert torch.equal(found, wanted)


def test_two_sessions_on_one_model_take_turns(tmp_path: Any) -> None:
    model = tiny_llama()
    modules = [
        make_session(tmp_path / name, "llama", latent_models=dictionaries(), hf_model=model, **settings).module
        for name, settings in (("one", {}), ("other", {}))
    ]
    assert modules[0].model is modules[1].model
    inputs = inputs_of()
    calls = []
    for module in modules:
        calls += three_calls(module.backend, inputs, module.latent_models, partial(module.backend.run, inputs))
    all_from_eight_threads(calls, rounds=1)


def test_errors_say_which_edits_never_ran_in_a_foreign_thread(model: Any) -> None:
    """A backend that runs the model in a thread of its own, without the caller's context, gets no silent result."""

    class Elsewhere(HuggingFaceBackend):
        def run_model(self, inputs: ModelInputs, keep: Tensor | None, **options: Any) -> Tensor:
            [logits] = run_together(lambda: super(Elsewhere, self).run_model(inputs, keep, **options))
            return logits

    with pytest.raises(it.HookPointError, match="never ran the hook points"):
        Elsewhere(model).forward(inputs_of(), {"layers.1.resid_post": torch.tanh})
