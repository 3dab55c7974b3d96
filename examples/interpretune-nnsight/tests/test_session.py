"""Sessions with nnsight beside plain ones: the same training, the same files, and neither sees the other."""

import importlib.util

import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    LlamaConfig,
    LlamaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration as T5,
)

import interpretune as it
from interpretune.analysis import Add, generate_with_interventions
from interpretune.testing import AdapterConformance, Bench, RandomDictionary, save_tiny_model

LIGHTNING = pytest.param(
    ("lightning",),
    marks=pytest.mark.skipif(
        importlib.util.find_spec("interpretune_lightning") is None, reason="needs interpretune-lightning"
    ),
)
TINY = {"vocab_size": 20, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture
def new_session(tmp_path):
    save_tiny_model(tmp_path / "model", "llama")

    def make(*stack, **settings):
        suite = type("Suite", (AdapterConformance,), {"adapter": "nnsight", "stack": stack})()
        return Bench(suite, tmp_path).new_session(model_folder=tmp_path / "model", **settings)

    return make


@pytest.mark.parametrize("frameworks", [("core",), LIGHTNING])
def test_training_is_that_of_a_plain_session(new_session, frameworks, tmp_path):
    """Losses and weights; an analysis before and after the training leaves nothing that changes them."""
    trained = []
    for stack in (frameworks, (*frameworks, "nnsight")):
        session = new_session(*stack, optimizer_init={"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-3}})
        module = session.module
        batch = next(iter(session.datamodule.val_dataloader()))
        inputs = it.analysis.ModelInputs.from_batch(module.batch_to_device(dict(batch)))
        first = module.backend.run_with_cache(inputs, ["layers.1.resid_mid"])[1]["layers.1.resid_mid"]
        it.fit(**session, loop_cfg=it.LoopConfig(max_epochs=2, seed=0, run_dir=tmp_path / "-".join(stack)))
        last = module.backend.run_with_cache(inputs, ["layers.1.resid_mid"])[1]["layers.1.resid_mid"]
        assert not torch.allclose(first, last, atol=1e-4)
        losses = {name: torch.as_tensor(value) for name, value in module.logged_metrics.items() if "loss" in name}
        trained.append((losses, {name: value.clone() for name, value in module.state_dict().items()}, first, last))
    plain, found = trained
    assert plain[0]
    torch.testing.assert_close(found, plain, rtol=1e-6, atol=1e-6)


def test_two_sessions_on_one_model_do_not_see_each_other(new_session):
    model = save_and_load(new_session)
    plain, session = (new_session(name, hf_model=model) for name in ("core", "nnsight"))
    batch = session.module.batch_to_device(next(iter(session.datamodule.val_dataloader())))
    batch.pop("labels")
    clean = plain.module(**batch).logits
    inputs = it.analysis.ModelInputs.from_batch(batch)
    place = "layers.1.resid_mid"
    seen = []
    plain.module.backend.check_hook_points([place])
    with session.module.backend.hooked({place: lambda x: 2 * x}):
        both = plain.module.backend.forward(inputs, {place: lambda x: seen.append(x.clone()) or x})
    assert not torch.allclose(both, clean, atol=1e-3)  # of the same model, within the block
    assert torch.equal(plain.module(**batch).logits, clean)
    assert not [attribute for item in model.modules() for attribute in vars(item) if "nnsight" in attribute]


def save_and_load(new_session):
    return new_session("core").module.model


def test_generation_is_steered_as_in_a_plain_session(new_session):
    texts = []
    for name in ("core", "nnsight"):
        session = new_session(name)
        batch = session.module.batch_to_device(next(iter(session.datamodule.val_dataloader())))
        batch.pop("labels")
        steering = Add(at="blocks.1.hook_resid_mid", value=torch.linspace(-3, 3, 32))
        options = {"max_new_tokens": 3, "do_sample": False}
        steered = generate_with_interventions(
            session.module.backend, session.module.it_generate, dict(batch), [steering], **options
        )
        free = session.module.it_generate(dict(batch), **options)
        texts.append((torch.stack(steered.logits), torch.stack(free.logits)))
        assert not torch.allclose(*texts[-1], atol=1e-2)
    torch.testing.assert_close(texts[1], texts[0])


def test_latent_models_without_a_save_of_their_own_are_saved_as_in_a_plain_session(new_session):
    """nnsight gives every object a method ``save``, which is no format of a latent model's."""
    from interpretune.latents import HasSave

    session = new_session("nnsight", latent_models=[RandomDictionary("layers.1.mlp_out", 32)])
    assert not isinstance(session.module.latent_models[0], HasSave)


@pytest.mark.parametrize(
    "model",
    [
        lambda: LlamaForSequenceClassification(LlamaConfig(**TINY, pad_token_id=0)),
        lambda: BertForMaskedLM(BertConfig(**TINY)),
        lambda: T5(T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)),
    ],
)
def test_a_model_that_is_no_causal_language_model_is_refused(new_session, model):
    made = model()
    with pytest.raises(it.ModelLoadError, match=f"causal language models, and {type(made).__name__} is none"):
        new_session("nnsight", hf_model=made)
