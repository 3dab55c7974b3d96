"""What cannot be replayed takes the plain loop with one warning, wrong replays are found, nothing is left behind."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import pytest
import torch
from attrs import evolve
from torch import Tensor

from interpretune.analysis import HuggingFaceBackend, LatentRows, ModelInputs, Prefill, ablate, activation_name
from interpretune.backends import hugging_face_replay
from interpretune.errors import AnalysisError, NotFiniteError, ReplayRefusedError
from interpretune.replay import ablate_from, self_check
from interpretune.replay.ablation import ablate_everywhere
from interpretune.replay.gradients import attribute, gradient_edges, integrated_gradients
from tests.replay.ablated_rows import ATOL, Row, active_rows, reference, rows_of, worst_error
from tests.tiny_architectures import REFUSED, backend_of, batch_of, dictionary, make_model
from tests.tiny_latents import RandomDictionary

LOWER, UPPER = dictionary("blocks.1.hook_resid_post", 1), dictionary("blocks.2.hook_mlp_out", 2)
LOW, HIGH = map(activation_name, (LOWER, UPPER))
INPUTS = batch_of((9, 4, 12), "left")


@cache
def model(kind: str) -> Any:
    return make_model(kind, torch.float32 if kind == "gpt_oss" else torch.float64)


def new_backend(kind: str = "llama") -> HuggingFaceBackend:
    """Backends remember what they were warned of and what they have checked: every test has its own."""
    return backend_of(model(kind))


@contextlib.contextmanager
def one_warning(reason: str) -> Iterator[None]:
    with pytest.warns(UserWarning, match=f"{reason}.*whole forward for each row instead") as seen:
        yield
    assert len(seen) == 1


# ----------------------------------------------------------------------------------------------------------- refusals

REASONS = {
    "bloom": "BloomForCausalLM has an attention of its own",
    "falcon": "FalconForCausalLM has an attention of its own",
    "mamba": "MambaForCausalLM has an attention of its own",
    "gpt_oss": "GptOssAttention has parts that a replay does not know: s_aux",
    "bert": "not causal: another third token changes its logits",
    "llama4": "blocks of the kind chunked_attention",
}


@pytest.mark.parametrize("kind", REFUSED)
def test_refused_architectures_warn_once_and_take_the_plain_loop(kind: str) -> None:
    backend, inputs = new_backend(kind), batch_of((9, 9), "left")
    item = dictionary(":".join(backend.module_and_side("blocks.1.hook_resid_post")), 1).to(backend.model.dtype)
    with one_warning(REASONS[kind]):
        prefill = backend.prefill(inputs, [item])
    assert prefill.kept is None
    assert backend.prefill(inputs, [item]).kept is None  # a second warning would be an error
    name = activation_name(item)
    rows: list[Row] = [(p, {name: {i: 0.0}}) for p, i in (prefill.latents[name] > 0).nonzero().tolist()[::3]]
    wanted = reference(backend.model, inputs, [item], prefill.points, rows)
    atol = {"gpt_oss": 2e-4, "llama4": 1e-8}.get(kind, ATOL)  # Llama 4 rotates in float32
    torch.testing.assert_close(ablate(prefill, rows_of(rows)), wanted, rtol=0, atol=atol)
    assert (wanted - prefill.logits[rows_of(rows).points]).abs().max() > 10 * atol
    with pytest.raises(ReplayRefusedError, match="keeps nothing to replay from"):
        attribute(prefill, lambda logits, _: logits.sum(), [name])


def test_batches_with_further_inputs_take_the_plain_loop() -> None:
    backend = new_backend("gpt2")
    kinds = {"token_type_ids": torch.randint(3, 90, INPUTS.tokens.shape, generator=torch.Generator().manual_seed(0))}
    inputs = evolve(INPUTS, extra=kinds)
    with one_warning(r"The batch has further inputs \(token_type_ids\)"):
        prefill = backend.prefill(inputs, [LOWER])
    assert backend.prefill(inputs, [LOWER]).kept is None
    assert backend.prefill(INPUTS, [LOWER]).kept is not None  # it says nothing of other batches
    rows = active_rows(prefill, LOW)

    def without(row: int) -> Tensor:
        point, latent = int(rows.points[row]), int(rows.changes[LOW].latents[row])

        def zero(latents: Tensor) -> Tensor:
            latents = latents.clone()
            latents[point, prefill.points.positions[point], latent] = 0
            return latents

        return backend.run_spliced(inputs, [LOWER], {LOW: zero}).answer_logits[point]

    with torch.no_grad():
        wanted = torch.stack([without(row) for row in range(len(rows))])
    torch.testing.assert_close(ablate(prefill, rows), wanted, rtol=0, atol=ATOL)
    plain = new_backend("gpt2").prefill(INPUTS, [LOWER])
    assert (plain.logits - prefill.logits).abs().max() > 1e-3


def test_latent_models_outside_of_all_blocks_are_refused_by_name() -> None:
    outside = dictionary("model.norm:out", 3)
    backend = new_backend()
    with one_warning("model.norm:out lies in no block"):
        prefill = backend.prefill(INPUTS, [outside, LOWER])
    assert prefill.kept is None
    assert ablate(prefill, active_rows(prefill, LOW)).isfinite().all()
    assert backend.prefill(INPUTS, [LOWER]).kept is not None  # without it, tokens can be replayed


def test_a_model_with_dropout_in_training_is_refused() -> None:
    backend = backend_of(make_model("gpt2"))
    backend.model.train()
    with one_warning("does not repeat itself"):
        assert backend.prefill(INPUTS, [LOWER]).kept is None


def test_bfloat16_is_held_to_a_tolerance_of_its_own_which_is_reported() -> None:
    backend = backend_of(make_model("llama", torch.bfloat16))
    items = [dictionary("blocks.1.hook_resid_post", 1).bfloat16(), dictionary("blocks.2.hook_mlp_out", 2).bfloat16()]
    prefill = backend.prefill(INPUTS, items)
    assert prefill.kept is not None
    check = backend.replays.checks()[0]
    assert 1e-4 < check.max_abs_error <= check.tolerance < 0.1 * prefill.logits.abs().max()


def test_latents_that_a_row_names_twice_are_refused() -> None:
    prefill = new_backend().prefill(INPUTS, [LOWER])
    rows = LatentRows.sets(LOW, torch.tensor([0, 1]), [torch.tensor([3]), torch.tensor([5, 6, 5])])
    with pytest.raises(AnalysisError, match="Row 1 sets latent 5 at blocks.1.hook_resid_post.hook_sae_acts_post twice"):
        ablate(prefill, rows)


# --------------------------------------------------------------------------------------------------------- self-check


def ignores_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    visible = hugging_face_replay.visible_slots
    monkeypatch.setattr(
        hugging_face_replay,
        "visible_slots",
        lambda mask, points, window: visible(torch.ones_like(mask), points, window),
    )


def forgets_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    visible = hugging_face_replay.visible_slots
    monkeypatch.setattr(hugging_face_replay, "visible_slots", lambda mask, points, _: visible(mask, points, None))


def sees_the_token_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hugging_face_replay, "attend", lambda *args: args[2].repeat_interleave(2, dim=1))


def scales_wrongly(monkeypatch: pytest.MonkeyPatch) -> None:
    attend = hugging_face_replay.attend
    monkeypatch.setattr(hugging_face_replay, "attend", lambda *args: attend(*args[:6], 1.01 * args[6], *args[7:]))


def gives_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    attend = hugging_face_replay.attend
    monkeypatch.setattr(hugging_face_replay, "attend", lambda *args: attend(*args) * torch.nan)


@pytest.mark.parametrize(
    "defect", [ignores_padding, forgets_the_window, sees_the_token_alone, scales_wrongly, gives_nan]
)
def test_the_self_check_finds_wrong_replays(
    defect: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    backend, inputs = new_backend("mistral"), batch_of((12, 3, 4), "left")  # padding in a bucket, within the window
    defect(monkeypatch)
    with one_warning("Replayed logits differ from those of whole forwards by"):
        prefill = backend.prefill(inputs, [LOWER, UPPER])
    assert prefill.kept is None
    assert not backend.replays.checks()[0].passed
    assert backend.prefill(inputs, [LOWER, UPPER]).kept is None
    rows = active_rows(prefill, LOW)
    unchecked = new_backend("mistral").prefill(inputs, [LOWER, UPPER], self_check=False)
    if defect is gives_nan:
        with pytest.raises(NotFiniteError):
            ablate(unchecked, rows)
    else:
        assert not (ablate(unchecked, rows) - ablate(prefill, rows)).abs().max() < 1e-3
    monkeypatch.undo()
    right = new_backend("mistral").prefill(inputs, [LOWER, UPPER])
    torch.testing.assert_close(ablate(prefill, rows), ablate(right, rows), rtol=0, atol=ATOL)


def test_the_self_check_looks_at_every_latent_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replays from the lower one are right; those that start at the upper one's place are wrong."""
    upper = dictionary("blocks.3.hook_resid_post", 3)
    replay = hugging_face_replay.HuggingFaceReplay.replay

    def wrong(engine: Any, prefix: Any, rows: Any, start: int, *rest: Any) -> Tensor:
        return replay(engine, prefix, rows, start, *rest) + (0.01 if start == 4 else 0)

    monkeypatch.setattr(hugging_face_replay.HuggingFaceReplay, "replay", wrong)
    with one_warning("Replayed logits differ"):
        assert new_backend().prefill(INPUTS, [LOWER, upper]).kept is None


def test_after_a_failed_self_check_nothing_comes_from_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Effects are differences to the clean logits: these must be those of whole forwards too."""
    engine = hugging_face_replay.HuggingFaceReplay
    run, replay = engine.prefill, engine.replay

    def wrong_prefill(self: Any, inputs: ModelInputs, edits: Any, *rest: Any) -> Any:
        return run(self, inputs, {**edits, "layers.0.resid_pre": lambda residual: 1.1 * residual}, *rest)

    monkeypatch.setattr(engine, "prefill", wrong_prefill)
    monkeypatch.setattr(engine, "replay", lambda *args: replay(*args) + 1)
    seen: dict[int, Tensor] = {}

    def observe(latents: Tensor, _: ModelInputs, examples: Tensor) -> None:
        seen.update(zip(examples.tolist(), latents, strict=True))

    with one_warning("Replayed logits differ"):
        prefill = new_backend().prefill(INPUTS, [LOWER, UPPER], observers={HIGH: observe})
    plain = new_backend().run_spliced(INPUTS, [LOWER, UPPER], record=[HIGH])
    torch.testing.assert_close(prefill.logits, plain.answer_logits, rtol=0, atol=ATOL)
    for example, latents in seen.items():
        wanted = plain.activations[HIGH][example, -len(latents) :]  # a bucket has less padding on the left
        torch.testing.assert_close(latents, wanted, rtol=0, atol=ATOL)
    assert sorted(seen) == [0, 1, 2]


def test_the_self_check_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(self_check, "compare_with_plain_loop", None)
    backend = new_backend()
    assert backend.prefill(INPUTS, [LOWER], self_check=False).kept is not None
    assert backend.replays.checks() == []


def test_the_self_check_runs_once_for_a_set_of_latent_models_and_again_for_much_longer_texts() -> None:
    backend = new_backend()

    def checks(length: int, *models: RandomDictionary) -> int:
        assert worst_error(backend.prefill(batch_of((length, 3), "left"), models)) < ATOL
        return len(backend.replays.checks())

    assert [checks(n, LOWER, UPPER) for n in (6, 6, 3, 12, 13, 26)] == [1, 1, 1, 1, 2, 2]
    assert [checks(n, LOWER) for n in (6, 6)] == [3, 3]
    for check in backend.replays.checks():
        assert check.passed
        assert check.rows >= 2
        assert check.max_abs_error < ATOL < check.tolerance


def test_where_nothing_was_active_nothing_was_checked() -> None:
    backend, item = new_backend(), dictionary("blocks.1.hook_resid_post", 1)
    bias = item.b_enc.detach().clone()
    item.b_enc.data.fill_(-100)
    assert backend.prefill(INPUTS, [item]).kept is not None
    assert backend.replays.checks() == []
    item.b_enc.data.copy_(bias)
    backend.prefill(INPUTS, [item])
    assert len(backend.replays.checks()) == 1


# ---------------------------------------------------------------------------------------------------- nothing is left


def state_of(model: Any) -> dict[str, Any]:
    parts = dict(model.named_modules())
    return {
        "hooks": {
            n: (len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for n, m in parts.items()
        },
        "replaced": {name for name, part in parts.items() if "forward" in part.__dict__},
        "attention": {n: part.config._attn_implementation for n, part in parts.items() if hasattr(part, "config")},
        "flags": {name: parameter.requires_grad for name, parameter in model.named_parameters()},
        "gradients": {name for name, parameter in model.named_parameters() if parameter.grad is not None},
        "grad mode": torch.is_grad_enabled(),
    }


@contextlib.contextmanager
def left_as_it_was(model: Any) -> Iterator[None]:
    for i, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(i % 2 == 0)
    before = state_of(model)
    yield
    assert state_of(model) == before
    assert not before["replaced"]
    with pytest.raises(LookupError):
        hugging_face_replay._running.get()


RUNS: dict[str, Callable[[Prefill], Any]] = {
    "ablate": lambda filled: ablate(filled, active_rows(filled, LOW), torch.tensor([3, 4])),
    "everywhere": lambda filled: ablate_everywhere(filled, active_rows(filled, LOW)),
    "from": lambda filled: ablate_from(filled, active_rows(filled, LOW)),
    "attribute": lambda filled: attribute(filled, lambda logits, _: logits.sum(), [LOW, HIGH]),
    "integrate": lambda filled: integrated_gradients(filled, lambda logits, _: logits.sum(), [LOW], steps=2),
    "edges": lambda filled: gradient_edges(filled, LOW, HIGH),
}


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_replays_leave_the_model_as_it_was(kind: str, run: str) -> None:
    backend = new_backend(kind)
    with left_as_it_was(backend.model):
        prefill = backend.prefill(INPUTS, [LOWER, UPPER])
        layers = prefill.kept.prefix.layers  # type: ignore[union-attr]
        before = [[part.clone() for part in (*layer.keys, *layer.values)] for layer in layers.values()]
        RUNS[run](prefill)
        for layer, parts in zip(layers.values(), before, strict=True):
            assert all(map(torch.equal, (*layer.keys, *layer.values), parts))


class FailsOnSingleTokens(RandomDictionary):
    """Runs in whole forwards and fails in replays."""

    def encode(self, activations: Tensor) -> Tensor:
        if activations.shape[1] == 1:
            raise ZeroDivisionError
        return super().encode(activations)


@pytest.mark.parametrize("run", [run for run in RUNS if run != "everywhere"])
def test_replays_that_fail_leave_the_model_as_it_was(run: str) -> None:
    backend = new_backend()
    failing = FailsOnSingleTokens(UPPER.hook_point, seed=2).double()
    with left_as_it_was(backend.model):
        prefill = backend.prefill(INPUTS, [LOWER, failing], self_check=False)
        with pytest.raises(ZeroDivisionError):
            RUNS[run](prefill)
    assert worst_error(backend.prefill(INPUTS, [LOWER, UPPER])) < ATOL


# ------------------------------------------------------------------------------------------------------- side by side


def test_prefills_of_several_models_and_batches_do_not_disturb_each_other() -> None:
    llama, mistral = new_backend(), new_backend("mistral")
    other: ModelInputs = batch_of((5, 11), "right", seed=9)
    prefills = [
        backend.prefill(inputs, models)
        for backend in (llama, mistral)
        for inputs, models in ((INPUTS, [LOWER, UPPER]), (other, [LOWER]), (other, [UPPER]))
    ]
    for _ in range(2):
        for prefill in prefills:
            assert worst_error(prefill) < ATOL


def test_two_threads_do_not_disturb_each_other() -> None:
    kinds = ("mistral", "gpt2")
    models = {kind: make_model(kind) for kind in kinds}
    wanted = {}
    for kind, plain in models.items():
        prefill = backend_of(plain).prefill(INPUTS, [LOWER, UPPER])
        wanted[kind] = ablate(prefill, active_rows(prefill, LOW), naive=True)

    def work(kind: str) -> list[Tensor]:
        results = []
        for _ in range(5):
            prefill = backend_of(models[kind]).prefill(INPUTS, [LOWER, UPPER])
            assert prefill.kept is not None
            results += [ablate(prefill, active_rows(prefill, LOW), row_budget=budget) for budget in (3, None)]
        return results

    with ThreadPoolExecutor(2) as pool:
        for kind, results in zip(kinds, pool.map(work, kinds), strict=True):
            for found in results:
                torch.testing.assert_close(found, wanted[kind], rtol=0, atol=ATOL)
