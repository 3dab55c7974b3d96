"""Models under ``torch.compile``: analysed as if they were not, and compiled before and afterwards."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pandas as pd
import pytest
import torch
from torch import nn
from transformers import GenerationConfig

import interpretune as it
from interpretune.activations.replaced import replaced_method
from interpretune.analysis import (
    AnalysisCfg,
    HuggingFaceBackend,
    ModelInputs,
    Scale,
    content_hash,
    generate_with_interventions,
    interventions_in_place,
    run_analysis,
)
from interpretune.backends.finding import backend_of
from interpretune.system.compiled import CALL, compiled_in_place
from interpretune.testing.tiny_models import tiny_llama, tiny_tokenizer
from tests.sessions import make_session

ROWS = [
    it.PromptRow("Ada sees the red dog near the", (" house", " tree"), 0),
    it.PromptRow("Bo likes a boat and", (" Max", " Nora"), 1),
]
UNITS = [it.Heads(1), it.Vector("layers.0.mlp_out"), it.Vector("layers.1.resid_pre")]
TOKENS = torch.tensor([[5, 7, 11], [3, 4, 6]])
OFF = [Scale(at="layers.0.mlp_out", factor=0.0)]


class Compiler:
    """A backend of ``torch.compile`` that counts what it compiled, and how often that ran."""

    def __init__(self):
        self.compiled = self.ran = 0

    def __call__(self, graph, inputs):
        self.compiled += 1

        def run(*args):
            self.ran += 1
            return graph.forward(*args)

        return run


@pytest.fixture
def compiler(monkeypatch):
    monkeypatch.delenv("TORCHDYNAMO_DISABLE")
    return Compiler()


def wrapped(model, **options):
    return torch.compile(model, **options)


def whole_graph(model, **options):
    return torch.compile(model, fullgraph=True, **options)


def in_place(model, **options):
    model.compile(**options)
    return model


def wrapped_twice(model, **options):
    return torch.compile(in_place(model, **options), **options)


def blocks_in_place(model, **options):
    for block in model.model.layers:
        block.compile(fullgraph=True, **options)
    return model


def wrapped_parts(model, **options):
    for layer, block in enumerate(model.model.layers):
        block.mlp = torch.compile(block.mlp, **options)
        model.model.layers[layer] = torch.compile(block, **options)
    model.model.embed_tokens = torch.compile(model.model.embed_tokens, **options)
    model.model = torch.compile(model.model, **options)
    return model


def forwards(model, **options):
    model.forward = torch.compile(model.forward, **options)
    for block in model.model.layers:
        block.forward = torch.compile(block.forward, **options)
    return model


WAYS = [wrapped, whole_graph, in_place, wrapped_twice, blocks_in_place, wrapped_parts, forwards]


def table(model, **asked):
    return it.effects(model, tiny_tokenizer(), ROWS, units=UNITS, **asked).to_pandas()


@pytest.fixture(scope="module")
def expected():
    return table(tiny_llama().eval())


def state_of(model):
    return [(module, {**vars(module)}) for module in model.modules()]


@pytest.mark.parametrize("way", WAYS)
def test_effects_equal_those_of_the_model_that_is_not_compiled(way, compiler, expected):
    model = way(tiny_llama().eval(), backend=compiler)
    before = state_of(model)
    pd.testing.assert_frame_equal(table(model), expected)
    assert compiler.compiled == 0
    for module, attributes in before:
        assert vars(module).keys() == attributes.keys()
        assert all(vars(module)[name] is value for name, value in attributes.items() if callable(value))


@pytest.mark.parametrize("way", [in_place, wrapped_parts, forwards])
def test_a_compiled_model_has_the_content_of_its_model(way, compiler):
    model = tiny_llama().eval()
    plain = content_hash(model, "The model").sha256
    compiled = content_hash(way(model, backend=compiler), "The model")
    assert (compiled.sha256, compiled.unknown) == (plain, ())


def test_code_that_is_compiled_already_is_left_alone_and_runs_afterwards(compiler):
    """It was made without hooks, and torch would not look for any."""
    model = tiny_llama().eval()
    compiled = torch.compile(model, backend=compiler, fullgraph=True)
    plain = compiled(TOKENS).logits
    made, ran = compiler.compiled, compiler.ran
    assert made == ran == 1
    backend = backend_of(compiled, tiny_tokenizer())
    assert backend.model is model
    inputs = ModelInputs(TOKENS, torch.ones_like(TOKENS))
    with interventions_in_place(backend, inputs, OFF):
        edited = model(TOKENS).logits
        with ThreadPoolExecutor(1) as pool:
            elsewhere = pool.submit(compiled, TOKENS).result().logits
        assert (compiler.compiled, compiler.ran) == (1, 2)
    told = r"compiled with fullgraph=True, was called while .* \(compiled._orig_mod\)"
    with pytest.raises(it.AnalysisError, match=told), interventions_in_place(backend, inputs, OFF):
        compiled(TOKENS)
    assert (compiler.compiled, compiler.ran) == (1, 2)
    assert torch.equal(compiled(TOKENS).logits, plain)
    assert (compiler.compiled, compiler.ran) == (1, 3)
    assert torch.equal(elsewhere, plain)
    other = tiny_llama().eval()
    with interventions_in_place(HuggingFaceBackend(other), inputs, OFF):
        assert torch.equal(edited, other(TOKENS).logits)
    assert not torch.allclose(edited, plain)
    point = "layers.1.resid_pre"
    captured, expected = (item.capture(inputs, [point])[point] for item in (backend, HuggingFaceBackend(other)))
    assert torch.equal(captured, expected)


def test_a_wrapper_that_the_caller_makes_runs_eagerly_where_activations_are_changed(compiler):
    model, other = tiny_llama().eval(), tiny_llama().eval()
    inputs = ModelInputs(TOKENS, torch.ones_like(TOKENS))
    compiled = torch.compile(model, backend=compiler)
    with interventions_in_place(HuggingFaceBackend(model), inputs, OFF):
        edited = compiled(TOKENS).logits
    with interventions_in_place(HuggingFaceBackend(other), inputs, OFF):
        assert torch.equal(edited, other(TOKENS).logits)
    assert compiler.compiled == 0


def test_generation_that_transformers_compiles_is_changed_too(compiler):
    """With a cache of a fixed size, ``generate`` compiles the model itself."""
    model = tiny_llama().eval()
    batch = {"input_ids": TOKENS, "attention_mask": torch.ones_like(TOKENS)}
    options = {"max_new_tokens": 2, "do_sample": False, "pad_token_id": 0}

    def generate(batch, **given):
        return model.generate(**batch, **options, **given)

    backend = HuggingFaceBackend(model)
    expected = generate_with_interventions(backend, generate, batch, OFF)
    asked = []
    model.get_compiled_call = lambda config: asked.append(config) or model.__call__
    compiles = GenerationConfig(cache_implementation="static", disable_compile=False)
    model._valid_auto_compile_criteria = lambda *_: True
    generate(batch, generation_config=compiles)
    assert len(asked) == 1
    changed = generate_with_interventions(backend, generate, batch, OFF, generation_config=compiles)
    assert len(asked) == 1
    assert torch.equal(changed, expected)


def results(session):
    cfg = AnalysisCfg(mode="clean_no_sae")
    run_analysis(**session, analysis_cfg=cfg)
    return torch.cat([batch.logit_diffs for batch in cfg.analysis_cache.batches])


def test_a_session_takes_a_compiled_model_and_runs_it_compiled(tmp_path, compiler):
    plain = make_session(tmp_path, "llama", hf_model=tiny_llama().eval())
    session = make_session(tmp_path, "llama", hf_model=torch.compile(tiny_llama().eval(), backend=compiler))
    module = session.module
    assert type(module.model) is type(plain.module.model)
    assert module.state_dict().keys() == plain.module.state_dict().keys()
    assert torch.equal(results(session), results(plain))
    assert compiler.compiled == 0
    compiled = vars(module.model)["_compiled_call_impl"]
    asked = []

    def run(**batch):
        asked.append(compiled)
        return module.model._call_impl(**batch)

    vars(module.model)["_compiled_call_impl"] = run
    batch = next(iter(session.datamodule.test_dataloader()))
    del batch["labels"]
    assert torch.equal(module(**batch).logits, plain.module(**batch).logits)
    assert asked == [compiled]
    assert torch.equal(results(session), results(plain))
    assert asked == [compiled]


def test_a_session_s_module_compiles_its_model(tmp_path, compiler):
    session = make_session(tmp_path, "llama")
    session.module.compile(backend=compiler, fullgraph=True)
    assert vars(session.module.model)["_compiled_call_impl"] is not None
    assert vars(session.module).get("_compiled_call_impl") is None


def not_compiled(graph, inputs):
    raise AssertionError("compiled code was asked for")


@pytest.mark.parametrize("way", [wrapped, in_place])
@pytest.mark.parametrize("stack", ["bridge", "hooked"])
def test_models_of_transformer_lens_are_analysed_eagerly(session_of, monkeypatch, stack, way):
    pytest.importorskip("transformer_lens")
    monkeypatch.delenv("TORCHDYNAMO_DISABLE")
    model = session_of("gpt2", stack, "left").module.model
    expected = table(model)
    compiled = way(model, backend=not_compiled)
    try:
        pd.testing.assert_frame_equal(table(compiled), expected)
    finally:
        model._compiled_call_impl = None


def test_a_classifier_answers_from_the_answer_position_although_it_is_compiled(tmp_path, compiler):
    """A hook chooses the position, and padding would be read without it."""
    head = it.HFFromPretrainedConfig(model_head="transformers.AutoModelForSequenceClassification")
    session = make_session(tmp_path, "llama", num_labels=2, hf_from_pretrained_cfg=head)
    batch = next(iter(session.datamodule.test_dataloader()))
    del batch["labels"]
    expected = session.module(**batch).logits
    session.module.compile(backend=not_compiled)
    assert torch.equal(session.module(**batch).logits, expected)
    session.module.model = torch.compile(session.module.model, backend=not_compiled)
    assert torch.equal(session.module(**batch).logits, expected)


def every_part(model, **options):
    for module in model.modules():
        if type(module).forward is not torch.nn.Module.forward:
            module.compile(**options)
    return model


OTHERS = [
    it.PromptRow("Max sees the big boat near the", (" house", " tree"), 1),
    it.PromptRow("Nora likes a dog and", (" Max", " Ada"), 0),
]
PAIRS = [
    it.PromptRow("Ada sees the red dog near the", (" house", " tree"), 0, corrupted="Ada sees the big dog near the"),
]


def evidence(model):
    effects = it.effects(model, tiny_tokenizer(), ROWS, units=UNITS)
    return it.evidence_of(effects, held_out=OTHERS, top=2, cards=1, steer=1, new_tokens=2)


QUESTIONS = {
    "gradient": lambda model: table(model, method="gradient"),
    "each position": lambda model: table(model, positions="each"),
    "units on units": lambda model: it.effects_on(
        model, tiny_tokenizer(), ROWS, units=it.Heads(0), on=[it.Heads(1)], gradient=True
    ).to_pandas(),
    "edges": lambda model: it.component_edges(model, tiny_tokenizer(), PAIRS).to_pandas(),
    "lens": lambda model: it.logit_lens(model, tiny_tokenizer(), ROWS).to_pandas(),
    "directly": lambda model: it.direct_logit_attribution(model, tiny_tokenizer(), ROWS).to_pandas(),
    "evidence, and steering": lambda model: pd.DataFrame([str(evidence(model))]),
}


@pytest.mark.parametrize("ask", QUESTIONS)
def test_no_question_runs_compiled_code(ask, compiler):
    compiled = QUESTIONS[ask](every_part(tiny_llama().eval(), backend=not_compiled))
    pd.testing.assert_frame_equal(compiled, QUESTIONS[ask](tiny_llama().eval()))


def test_of_a_compiled_module_of_a_session_the_model_is_compiled(tmp_path, compiler):
    session = make_session(tmp_path, "llama", module_cls=it.ClassificationModule)
    compiled = torch.compile(session.module, backend=compiler, fullgraph=True)
    batch = next(iter(session.datamodule.test_dataloader()))
    del batch["labels"]
    with pytest.raises(torch._dynamo.exc.Unsupported, match=r"Compile its model: session.module.compile\(...\)"):
        compiled(**batch)
    loop_cfg = it.LoopConfig(limit_test_batches=0, progress=False)
    it.test(compiled, session.datamodule, loop_cfg=loop_cfg)
    assert vars(session.module.model)["_compiled_call_impl"] is not None
    assert compiler.compiled == 0


def test_a_model_that_is_compiled_while_another_runs_it_eagerly_stays_compiled() -> None:
    model = nn.Identity()

    def compiled(*args: object) -> object:
        return model._call_impl(*args)

    with replaced_method(model, CALL, model._call_impl):  # as run_eagerly does
        compiled_in_place(model, lambda call: compiled)
        compiled_in_place(model, lambda call: None)  # compiled already
    assert vars(model)[CALL] is compiled
