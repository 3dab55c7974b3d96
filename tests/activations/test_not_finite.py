"""Numbers that are not finite: refused on every way in with rows, place and cause, or kept from arising."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import interpretune as it
from interpretune import NotFiniteError
from interpretune.analysis import (
    AnalysisBatch,
    AnalysisCache,
    AnalysisCfg,
    AnalysisRunner,
    HuggingFaceBackend,
    LatentRows,
    LatentValues,
    ModelInputs,
    SetTo,
    ablate,
    activation_name,
    attribute,
    calc_activation_summary,
    calculate_latent_metrics,
    compute_correct,
    count_answers,
    display_ref_vs_sae_logit_diffs,
    generate_with_interventions,
    integrated_gradients,
    measure_latent_quality,
    plot_latent_effects,
    run_analysis,
    run_with_interventions,
)
from interpretune.analysis.cache import FIELDS
from interpretune.store import StoreWriter
from tests.sessions import padded, unpadded_rows
from tests.tiny_architectures import make_model
from tests.tiny_latents import RandomDictionary

HOOK = "blocks.1.hook_resid_post.hook_sae_acts_post"


def rows_of(*lengths: int) -> list[Tensor]:
    return [torch.randint(3, 100, (n,), generator=torch.Generator().manual_seed(n)) for n in lengths]


def dictionary(block: int = 1, seed: int = 3) -> RandomDictionary:
    return RandomDictionary(f"blocks.{block}.hook_resid_post", seed=seed)


# ------------------------------------------------------------------------------------- what the model can do otherwise


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma2", "gemma3"])
def test_eager_attention_in_float64_gives_unpadded_numbers(kind: str, side: str) -> None:
    """Padding that sees nothing, before the row or beyond a window, gets NaN in transformers itself."""
    model, rows = make_model(kind), rows_of(4, 14, 7)
    model.set_attn_implementation("eager")
    batch = padded(rows, side, 0)
    with torch.no_grad():
        of_itself = model(**batch).logits[batch["attention_mask"] == 1]
    assert bool(of_itself.isfinite().all()) == ((kind, side) == ("llama", "right"))
    backend, item = HuggingFaceBackend(model), dictionary().double()
    name = activation_name(item)
    together = backend.prefill(ModelInputs.from_batch(batch), [item], self_check=False)
    latent = int(together.latents[name].amin(0).argmax())
    pairs = torch.tensor([[i, latent] for i in range(len(rows))])
    ablated = backend.ablate(together, LatentRows.single(name, pairs))
    gradients = attribute(together, lambda logits, _: logits.square().sum(), [name])[name]
    run = backend.run(ModelInputs.from_batch(batch))
    for i, row in enumerate(rows):
        alone = ModelInputs.from_batch(padded([row], side, 0))
        one = backend.prefill(alone, [item], self_check=False)
        close = {"rtol": 0, "atol": 1e-6}
        torch.testing.assert_close(run[i], backend.run(alone)[0], **close)
        torch.testing.assert_close(together.logits[i], one.logits[0], **close)
        without = backend.ablate(one, LatentRows.single(name, torch.tensor([[0, latent]])))
        torch.testing.assert_close(ablated[i], without[0], **close)
        wanted = attribute(one, lambda logits, _: logits.square().sum(), [name])[name]
        torch.testing.assert_close(gradients[i], wanted[0], rtol=1e-5, atol=1e-5)
    assert not any(block._forward_pre_hooks for block in model.model.layers)


# ------------------------------------------------------------------------------------------------- every way in refuses


@pytest.fixture(scope="module")
def clean(session_of: Callable[..., it.ITSession]) -> it.ITSession:
    return session_of("llama", "core", "left")


@pytest.fixture
def session(clean: it.ITSession) -> Any:
    """A session in which one word has no embedding; it stands in some rows only."""
    clean.module.latent_models = [dictionary()]
    weights = clean.module.model.get_input_embeddings().weight
    before = weights.detach().clone()
    rows = [set(tokens.tolist()) for tokens, _ in unpadded_rows(clean)]
    word = next(t for t in sorted(set.union(*rows)) if 0 < sum(t in row for row in rows) <= 3 and t in rows[4])
    with torch.no_grad():
        weights[word] = torch.nan
    yield clean, [i for i, row in enumerate(rows) if word in row]
    with torch.no_grad():
        weights.copy_(before)
    clean.module.latent_models = []


def test_analyses_name_the_rows_of_the_split(session: Any, tmp_path: Path) -> None:
    one, rows = session
    first = min(rows) // 3
    here = [row for row in rows if row // 3 == first]
    wanted = rf"Logits are not finite in .* of the split \(batch {first}\) \({', '.join(map(str, here))}\)\. .*weights"
    for mode in ("clean_no_sae", "clean_w_sae", "ablation", "attr_patching"):
        with pytest.raises(NotFiniteError, match=wanted) as caught:
            run_analysis(**one, analysis_cfg=AnalysisCfg(mode=mode))
        assert caught.value.rows == tuple(here)
        with pytest.raises(NotFiniteError, match=wanted):
            AnalysisRunner(**one, root=tmp_path).run({"a": mode})


def test_forwards_of_every_kind_name_the_rows(session: Any) -> None:
    one, rows = session
    backend, item = one.module.backend, one.module.latent_models[0]
    batch = padded([tokens for tokens, _ in unpadded_rows(one)], "left", one.datamodule.tokenizer.pad_token_id)
    inputs, name = ModelInputs.from_batch(batch), activation_name(item)
    ways = {
        "run": lambda: backend.run(inputs),
        "forward": lambda: backend.forward(inputs, {}),
        "run_with_cache": lambda: backend.run_with_cache(inputs, ["layers.1.resid_post"]),
        "run_spliced": lambda: backend.run_spliced(inputs, [item]),
        "prefill": lambda: backend.prefill(inputs, [item]),
        "gradients": lambda: backend.gradients(inputs, [item], lambda logits: logits.sum(), [name]),
        "interventions": lambda: run_with_interventions(
            backend, inputs, [SetTo(at=name, latents=[0], value=1.0)], [item]
        ),
    }
    for way, call in ways.items():
        with pytest.raises(NotFiniteError) as caught:
            call()
        assert list(caught.value.rows) == rows, way


def test_generation_names_the_rows(session: Any) -> None:
    one, rows = session
    batch = padded([tokens for tokens, _ in unpadded_rows(one)], "left", one.datamodule.tokenizer.pad_token_id)
    change = [SetTo(at=HOOK, latents=[0], value=0.0)]
    for generate in (
        lambda: one.module.it_generate(batch, max_new_tokens=1),
        lambda: generate_with_interventions(
            one.module.backend, one.module.it_generate, batch, change, one.module.latent_models, max_new_tokens=1
        ),
    ):
        with pytest.raises(NotFiniteError, match="begin at new token 1") as caught:
            generate()
        assert list(caught.value.rows) == rows


def test_quality_of_latent_models_names_the_rows(session: Any) -> None:
    one, rows = session
    first = [row for row in rows if row // 3 == min(rows) // 3]
    with pytest.raises(NotFiniteError) as caught:
        measure_latent_quality(one.module.backend, one.module.latent_models, one.datamodule.test_dataloader())
    assert list(caught.value.rows) == [row % 3 for row in first]


# ---------------------------------------------------------------------------------------------------- places and causes


@pytest.fixture(scope="module")
def backend() -> HuggingFaceBackend:
    return HuggingFaceBackend(make_model("llama"))


@pytest.fixture(scope="module")
def inputs() -> ModelInputs:
    return ModelInputs.from_batch(padded(rows_of(4, 9, 7), "left", 0))


def spoiled(row: int, position: int, value: float = torch.nan) -> Callable[[Tensor], Tensor]:
    def put(activations: Tensor) -> Tensor:
        changed = activations.clone()
        changed[row, position] = value
        return changed

    return put


def test_the_place_and_what_writes_there_are_named(backend: HuggingFaceBackend, inputs: ModelInputs) -> None:
    edits = {"blocks.2.hook_mlp_out": spoiled(1, 5)}
    with pytest.raises(NotFiniteError, match=r"begins at layers\.2\.mlp_out\. That is where a latent model") as caught:
        backend.forward(inputs, edits, inputs.answers)
    assert caught.value.rows == (1,)


def test_padding_that_spreads_is_named_as_the_cause(backend: HuggingFaceBackend, inputs: ModelInputs) -> None:
    hook = backend.modules["model.layers.1.self_attn"].register_forward_hook(
        lambda _, __, output: (spoiled(0, 2)(output[0]), *output[1:])
    )
    try:
        with pytest.raises(
            NotFiniteError, match=r"in padding at layers\.1\.attn_out and reaches real tokens at layers\.2"
        ):
            backend.run(inputs)
    finally:
        hook.remove()


def test_an_overflow_of_float16_is_named_as_the_cause(inputs: ModelInputs) -> None:
    model = make_model("llama", torch.float16)
    with torch.no_grad():
        model.model.layers[2].mlp.down_proj.weight.fill_(6e4)
    with pytest.raises(NotFiniteError, match=r"overflow of float16, which ends at 6\.55e\+04.*bfloat16 or float32"):
        HuggingFaceBackend(model).run(inputs)


def test_ablated_logits_name_latents_and_rows(backend: HuggingFaceBackend, inputs: ModelInputs) -> None:
    item = dictionary().double()
    name = activation_name(item)
    clean = backend.prefill(inputs, [item], self_check=False)
    latent = int(clean.latents[name][1].argmax())
    rows = LatentRows.single(name, torch.tensor([[0, latent], [1, latent], [1, 0]]))
    rows.changes[name].values[1] = torch.inf
    for naive in (False, True):
        with pytest.raises(NotFiniteError) as caught:
            ablate(clean, rows, naive=naive)
        assert caught.value.rows == (1,)
        if not naive:
            assert f"latents [{latent}] of {name} to [inf]" in str(caught.value)


def test_gradients_that_are_not_finite_name_the_rows(backend: HuggingFaceBackend, inputs: ModelInputs) -> None:
    item = dictionary().double()
    name = activation_name(item)
    clean = backend.prefill(inputs, [item], self_check=False)

    def root(logits: Tensor, points: Tensor) -> Tensor:
        first = logits[:, 0] - logits[:, 0].detach()
        return torch.where(points == 2, first.abs().sqrt(), first).sum()

    for call in (attribute, integrated_gradients):
        with pytest.raises(NotFiniteError, match=r"radients at .*Look at the objective") as caught:
            call(clean, root, [name])
        assert 2 in caught.value.rows
    with pytest.raises(NotFiniteError, match="Gradients at"):
        backend.gradients(inputs, [item], lambda logits: root(logits, torch.arange(3)), [name])


def test_latents_that_are_nan_are_not_taken_for_inactive(backend: HuggingFaceBackend, inputs: ModelInputs) -> None:
    """With an error term nothing of them reaches the logits, and NaN > 0 is false."""
    item = dictionary().double()
    item.use_error_term = True
    encode = item.encode
    item.encode = lambda x: encode(x).masked_fill(torch.arange(x.shape[0]).reshape(-1, 1, 1) == 1, torch.nan)
    with pytest.raises(NotFiniteError, match=f"Latents of {activation_name(item)}") as caught:
        backend.prefill(inputs, [item], self_check=False)
    assert caught.value.rows


# ------------------------------------------------------------------------------------------------------ what is no harm


def test_nan_in_padding_after_attention_harms_nothing(backend: HuggingFaceBackend, inputs: ModelInputs) -> None:
    wanted = backend.run(inputs)
    found = backend.forward(inputs, {"layers.3.mlp_out": spoiled(0, 1)})
    assert not found[0, 1].isfinite().any()
    torch.testing.assert_close(inputs.answers.of(found), wanted, rtol=0, atol=1e-12)


def test_nan_in_padding_stays_out_of_quality(clean: it.ITSession) -> None:
    module = clean.module
    module.latent_models = [dictionary()]
    wanted = measure_latent_quality(module.backend, module.latent_models, clean.datamodule.test_dataloader())
    block = module.model.model.layers[2].mlp
    masks: list[Tensor] = []
    before = module.model.register_forward_pre_hook(
        lambda _, __, kwargs: masks.append(kwargs["attention_mask"].bool()), with_kwargs=True
    )
    hook = block.register_forward_hook(lambda _, __, output: output.masked_fill(~masks[-1].unsqueeze(-1), torch.nan))
    try:
        module.latent_models = [RandomDictionary("blocks.2.hook_resid_post", seed=3)]
        found = measure_latent_quality(module.backend, module.latent_models, clean.datamodule.test_dataloader())
    finally:
        hook.remove()
        before.remove()
    reference = measure_latent_quality(module.backend, module.latent_models, clean.datamodule.test_dataloader())
    module.latent_models = []
    assert found == reference
    assert wanted != found


@pytest.mark.parametrize("banned", ["a word", "an answer"])
def test_tokens_that_a_model_rules_out_are_no_error(clean: it.ITSession, banned: str) -> None:
    module = clean.module
    module.latent_models = [dictionary()]
    ids = module.answer_token_ids.tolist()
    token = ids[1] if banned == "an answer" else next(t for t in range(60) if t not in ids)
    wanted = run_analysis(**clean, analysis_cfg=AnalysisCfg(mode="ablation"))
    head = module.model.get_output_embeddings()
    hook = head.register_forward_hook(
        lambda _, __, logits: (
            logits.masked_fill(torch.arange(logits.shape[-1]) == token, -torch.inf) if logits.shape[-1] > 2 else logits
        )
    )
    try:
        if banned == "an answer":
            with pytest.raises(NotFiniteError, match=r"Logits of the answers .* of the split \(batch 0\) \(0, 1, 2\)"):
                run_analysis(**clean, analysis_cfg=AnalysisCfg())
            return
        found = run_analysis(**clean, analysis_cfg=AnalysisCfg(mode="ablation"))
    finally:
        hook.remove()
        module.latent_models = []
    for one, other in zip(found.effects, wanted.effects, strict=True):
        torch.testing.assert_close(one[HOOK].values, other[HOOK].values, rtol=0, atol=1e-5)


# ---------------------------------------------------------------------------------------------------------- old results


def results(**changes: Tensor) -> AnalysisBatch:
    numbers = {"logit_diffs": torch.zeros(3), "activations": torch.ones(3, 2), "effects": torch.ones(3, 2), **changes}
    latents = torch.tensor([1, 4])
    per_latent = {name: {HOOK: LatentValues(latents, numbers.pop(name), 9)} for name in ("activations", "effects")}
    labels = torch.tensor([0, 1, 0])
    return AnalysisBatch(labels=labels, orig_labels=labels, preds=labels, **per_latent, **numbers)


SPOILED = {
    "logit_diffs": torch.tensor([0.0, torch.nan, 0.0]),
    "activations": torch.tensor([[1, 1], [1, torch.inf], [1, 1.0]]),
    "effects": torch.tensor([[1, 1], [torch.nan, 1], [1, 1.0]]),
}


@pytest.mark.parametrize("field", SPOILED)
def test_caches_refuse_results_that_are_not_finite(field: str) -> None:
    cache = AnalysisCache()
    batch = {"input_ids": torch.ones(3, 2, dtype=torch.long), "attention_mask": torch.ones(3, 2)}
    for save in (
        lambda: cache.save(results(**{field: SPOILED[field]}), batch),
        lambda: cache.append(results(**{field: SPOILED[field]})),
    ):
        with pytest.raises(NotFiniteError, match=rf"{field} are not finite in 1 row of the batch \(1\)"):
            save()
    assert not cache.batches


def old_store(field: str) -> AnalysisCache:
    """What a version without these checks stored: three batches, and NaN in row 7."""
    batches = [results().as_fields(), results().as_fields(), results(**{field: SPOILED[field]}).as_fields()]
    store, writer = StoreWriter.in_memory([FIELDS[name] for name in FIELDS if name in batches[0]])
    for index, values in enumerate(batches):
        writer.write(index, range(3 * index, 3 * index + 3), {name: values[name] for name in store.fields})
    return AnalysisCache.of(store)


@pytest.mark.parametrize(
    ("field", "summary"),
    [
        ("logit_diffs", compute_correct),
        ("logit_diffs", count_answers),
        ("logit_diffs", lambda cache: display_ref_vs_sae_logit_diffs(cache, cache)),
        ("activations", calc_activation_summary),
        ("effects", calculate_latent_metrics),
        ("effects", plot_latent_effects),
    ],
)
def test_summaries_of_old_stores_refuse_nan_and_name_rows(field: str, summary: Callable[..., Any]) -> None:
    with pytest.raises(NotFiniteError, match=rf"{field} are not finite in 1 row of the analysis \(7\).*stored"):
        summary(old_store(field))


def test_errors_keep_their_rows_between_processes() -> None:
    error = NotFiniteError("Logits", [3, 5], "It begins at layers.1.resid_post.")
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.rows) == (str(error), (3, 5))
    assert copy.copy(error).of == "the batch"
