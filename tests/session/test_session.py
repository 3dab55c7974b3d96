"""Sessions: a mapping of composed objects, brought to life in phases, leaving nothing global behind."""

from __future__ import annotations

import copy
import json
import os
import random

import numpy as np
import pytest
import torch

import interpretune as it
from interpretune.session.session import compose_class
from tests.tiny import nli_rows, tiny_gpt2

RECORDER = """
    calls = []
    fail_in = None

    def note(self, phase):
        self.calls.append(phase)
        if phase == self.fail_in:
            raise RuntimeError(f"stopped in {phase}")

    @it.hookimpl
    def it_load_latent_models(self, module):
        self.note("load_latent_models")

    @it.hookimpl
    def it_prepare_data(self, datamodule, module):
        self.note("prepare_data")

    @it.hookimpl
    def it_setup_datamodule(self, datamodule, module):
        self.note("setup_datamodule")

    @it.hookimpl
    def it_setup_module(self, module, datamodule):
        self.note("setup_module")

    @it.hookimpl
    def it_configure_optimizers(self, module):
        self.note("configure_optimizers")

    @it.hookimpl
    def it_end_session(self, module, datamodule):
        self.note("end_session")
"""
PHASES = ["load_latent_models", "prepare_data", "setup_datamodule", "setup_module", "configure_optimizers"]


class MyModule(torch.nn.Module):
    def test_step(self, batch, batch_idx=0):
        labels = batch.pop("labels")
        return self(**batch).logits, labels


class MyDataModule(it.ITDataModule):
    pass


@pytest.fixture
def make_session(tmp_path, gpt2_folder):
    """Make a session around the tiny GPT-2: ``make_session("adapter", optimizer_init=...)``."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in nli_rows(4)))

    def make_session(*adapters, module_cls=MyModule, datamodule_cls=MyDataModule, shared=None, data=rows, **module):
        return it.ITSession(
            it.ITSessionConfig(
                adapter_ctx=adapters,
                module_cls=module_cls,
                datamodule_cls=datamodule_cls,
                shared_cfg=shared or it.ITSharedConfig(model_name_or_path=str(gpt2_folder), task_name="tiny"),
                datamodule_cfg=it.ITDataModuleConfig(data=data, text_fields=("premise", "hypothesis"), num_labels=2),
                module_cfg=it.ITConfig(**{"device": "cpu", **module}),
            )
        )

    return make_session


@pytest.fixture
def recorder(adapter_of):
    """A third party's adapter that notes the phases it is called in."""
    adapter_of("recorder", body=RECORDER)
    return it.build_context(("recorder",)).adapters[-1].plugin


def test_a_session_is_a_mapping(make_session):
    session = make_session()
    assert dict(session) == {"datamodule": session.datamodule, "module": session.module}
    assert len(session) == 2
    assert "model" not in session
    assert repr(session) == "ITSession(core: MyModule, MyDataModule)"


def test_an_adapter_can_rename_the_module_s_key(make_session, adapter_of):
    body = """
        @it.hookimpl
        def it_contribute_classes(self):
            return it.ClassContribution(adapter="x", module_key="model")
    """
    adapter_of("x", level="framework", body=body)
    session = make_session("x")
    assert dict(session) == {"datamodule": session.datamodule, "model": session.module}
    it.it_init(**session)
    assert session.module.datamodule is session.datamodule
    it.it_session_end(**session)


def test_classes_are_composed_and_the_user_s_are_not_changed(make_session):
    before = {cls: (dict(vars(cls)), cls.__bases__) for cls in (MyModule, MyDataModule)}
    session = make_session()
    assert type(session.module).__mro__[1] is MyModule
    assert isinstance(session.module, it.ITModule)
    assert isinstance(session.datamodule, MyDataModule)
    assert {cls: (dict(vars(cls)), cls.__bases__) for cls in before} == before
    assert it.ITModule.context is None


def test_bases_stand_behind_the_user_s_class_from_the_top_of_the_stack_down(make_session, adapter_of):
    for name, level in {"low": "model", "high": "extension"}.items():
        body = f"""
            @it.hookimpl
            def it_contribute_classes(self):
                return it.ClassContribution(adapter="{name}", module=(type("{name.title()}", (), {{"who": "{name}"}}),))
        """
        adapter_of(name, level=level, body=body)
    session = make_session("high", "low")
    names = [cls.__name__ for cls in type(session.module).__mro__[1:]]
    assert names[:4] == ["MyModule", "High", "Low", "ITModule"]
    assert session.module.who == "high"


def test_a_class_that_cannot_be_composed_is_refused(make_session):
    with pytest.raises(
        it.ConfigurationError, match=r"(?s)Module cannot be composed with ITModule.*Let the module class"
    ):
        make_session(module_cls=torch.nn.Module)


def test_phases_run_in_order(make_session, recorder):
    session = make_session("recorder")
    assert recorder.calls == PHASES[:1]
    it.it_init(**session)
    assert recorder.calls == PHASES
    it.it_session_end(**session)
    assert recorder.calls == [*PHASES, "end_session"]


def test_core_prepares_and_sets_up_before_other_adapters(make_session, adapter_of):
    adapter_of(
        "witness",
        body="""
        @it.hookimpl
        def it_setup_datamodule(self, datamodule, module):
            datamodule.rows_seen = len(datamodule.dataset["validation"])

        @it.hookimpl
        def it_setup_module(self, module, datamodule):
            module.datamodule_seen = module.datamodule
        """,
    )
    session = make_session("witness")
    it.it_init(**session)
    assert session.datamodule.rows_seen == 4
    assert session.module.datamodule_seen is session.datamodule


@pytest.mark.parametrize("phase", PHASES[1:])
def test_a_failing_phase_ends_the_session_and_the_error_goes_on(make_session, recorder, phase):
    session = make_session("recorder")
    recorder.fail_in = phase
    with pytest.raises(RuntimeError, match=f"stopped in {phase}"):
        it.it_init(**session)
    assert recorder.calls == [*PHASES[: PHASES.index(phase) + 1], "end_session"]


def test_interrupting_a_phase_ends_the_session(make_session, recorder):
    class Interrupted(MyModule):
        def setup(self, *args, **kwargs):
            raise KeyboardInterrupt

    session = make_session("recorder", module_cls=Interrupted)
    with pytest.raises(KeyboardInterrupt):
        it.it_init(**session)
    assert recorder.calls[-1] == "end_session"


@pytest.mark.parametrize("function", [it.it_init, it.it_session_end])
def test_a_session_needs_both_parts(make_session, function):
    with pytest.raises(it.ConfigurationError, match=rf"{function.__name__}\(\*\*session\)"):
        function(module=make_session().module)


def test_a_module_made_without_a_session_says_so():
    with pytest.raises(it.ConfigurationError, match="made without a session.*ITSession"):
        it.ITModule(it.ITConfig())


def test_the_caller_s_configurations_are_not_changed(make_session, gpt2_folder):
    shared = it.ITSharedConfig(model_name_or_path=str(gpt2_folder), tokenizer_kwargs={"model_input_names": ["input"]})
    session = make_session(shared=shared)
    cfg = session.session_cfg
    it.it_init(**session)
    assert shared == it.ITSharedConfig(
        model_name_or_path=str(gpt2_folder), tokenizer_kwargs={"model_input_names": ["input"]}
    )
    assert cfg.module_cfg == it.ITConfig(device="cpu")
    assert cfg.datamodule_cfg.dataset_path is None
    assert cfg.datamodule_cfg.model_name_or_path == ""
    assert session.datamodule.itdm_cfg.model_name_or_path == str(gpt2_folder)


def global_state() -> dict:
    return {
        "grad mode": torch.is_grad_enabled(),
        "default dtype": torch.get_default_dtype(),
        "torch's random numbers": torch.get_rng_state().tolist(),
        "python's random numbers": random.getstate(),
        "numpy's random numbers": repr(np.random.get_state()),
        "environment": dict(os.environ),
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


@pytest.mark.parametrize("source", ["folder", "configuration"])
def test_nothing_global_is_changed(make_session, source):
    before = global_state()
    session = make_session(**({"hf_config": tiny_gpt2().config} if source == "configuration" else {}))
    it.it_init(**session)
    session.module.run_step("test_step", next(iter(session.datamodule.test_dataloader())))
    it.it_session_end(**session)
    after = global_state()
    assert {name: after[name] == before[name] for name in before} == dict.fromkeys(before, True)


def logits_of(session) -> torch.Tensor:
    batch = next(iter(session.datamodule.test_dataloader()))
    return session.module.run_step("test_step", batch)[0]


def test_a_second_session_with_another_stack_does_not_touch_the_first(make_session, adapter_of):
    adapter_of(
        "doubling",
        level="model",
        body="""
        @it.hookimpl(wrapper=True)
        def it_forward(self, module, batch):
            output = yield
            output.logits = 2 * output.logits
            return output
        """,
    )
    first = make_session()
    it.it_init(**first)
    expected = logits_of(first)
    second = make_session("doubling")
    it.it_init(**second)
    torch.testing.assert_close(logits_of(second), 2 * expected)
    it.it_session_end(**second)
    torch.testing.assert_close(logits_of(first), expected)
    assert first.context.names == ("core",)
    assert type(first.module) is not type(second.module)


def test_parameters_are_frozen_unless_something_trains_them(make_session):
    adamw = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.25}}
    assert not any(parameter.requires_grad for parameter in make_session().module.parameters())
    assert all(parameter.requires_grad for parameter in make_session(optimizer_init=adamw).module.parameters())
    assert all(parameter.requires_grad for parameter in make_session(freeze=False).module.parameters())


def test_optimizers_and_schedulers_are_built(make_session):
    scheduler = {"class_path": "torch.optim.lr_scheduler.StepLR", "init_args": {"step_size": 3}}
    session = make_session(
        optimizer_init={"class_path": "torch.optim.SGD", "init_args": {"lr": 0.25}}, lr_scheduler_init=scheduler
    )
    it.it_init(**session)
    setup = session.module.optimizers_and_schedulers
    assert [type(each).__name__ for each in (setup.optimizers[0], setup.schedulers[0].scheduler)] == ["SGD", "StepLR"]
    assert setup.optimizers[0].defaults["lr"] == 0.25
    it.it_session_end(**session)
    assert session.module.optimizers_and_schedulers is None


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"optimizer_init": {"init_args": {}}}, ("optimizer_init has no class_path", "torch.optim.AdamW")),
        ({"optimizer_init": {"class_path": "torch.optim.Adem"}}, ("optimizer_init names 'torch.optim.Adem'",)),
        (
            {"optimizer_init": {"class_path": "torch.optim.SGD"}, "freeze": True},
            ("no parameter requires", "freeze=False"),
        ),
    ],
)
def test_optimizers_that_cannot_be_built(make_session, settings, parts):
    session = make_session(**settings)
    with pytest.raises(it.ConfigurationError) as caught:
        it.it_init(**session)
    for part in parts:
        assert part in str(caught.value)


def test_answers_become_tokens_in_setup(make_session):
    generative = it.GenerativeClassificationConfig(enabled=True, answers=("Yes", "No"))
    session = make_session(generative_step_cfg=generative)
    with pytest.raises(it.ConfigurationError, match=r"answers=.*it_init"):
        _ = session.module.answer_token_ids
    it.it_init(**session)
    module, encode = session.module, session.datamodule.tokenizer.encode
    expected = [encode(word, add_special_tokens=False)[0] for word in ("Yes", "No")]
    assert module.answer_token_ids.tolist() == expected
    batch = next(iter(session.datamodule.test_dataloader()))
    assert module.answer_tokens(batch).tolist() == [expected] * len(batch["labels"])
    own = torch.tensor([[[4, -1], [5, -1], [6, -1]], [[7, -1], [8, -1], [-1, -1]]])
    assert module.answer_tokens({"answer_tokens": own}).tolist() == [[4, 5, 6], [7, 8, -1]]
    own[1, 0, 1] = 9
    with pytest.raises(it.DataError, match=r"Row 1 .* several tokens.*question"):
        module.answer_tokens({"answer_tokens": own})
    ids, labels = module.labels_to_ids(torch.tensor([1, 0, 1]))
    assert ids.tolist() == [expected[1], expected[0], expected[1]]
    assert labels.tolist() == [1, 0, 1]
    logits = torch.randn(2, 3, len(session.datamodule.tokenizer), generator=torch.Generator().manual_seed(0))
    for shape in (logits, tuple(logits.unbind(dim=1))):
        assert torch.equal(module.standardize_logits(shape), logits[..., expected])
    assert torch.equal(module.standardize_logits(logits[:, -1]), logits[:, -1:, expected])
    assert module.answer_columns.tolist() == expected
    with pytest.MonkeyPatch.context() as patch:  # a class's own way may read all logits
        patch.setattr(type(module), "standardize_logits", lambda _, logits: logits)
        assert module.answer_columns is None


@pytest.mark.parametrize("side", ["left", "right"])
def test_forward_and_generation_account_for_padding(make_session, gpt2_folder, side):
    shared = it.ITSharedConfig(model_name_or_path=str(gpt2_folder), tokenizer_kwargs={"padding_side": side})
    session = make_session(shared=shared)
    it.it_init(**session)
    module, datamodule = session.module, session.datamodule
    batch = next(iter(datamodule.test_dataloader()))
    batch.pop("labels")
    assert 0 < batch["attention_mask"].sum() < batch["attention_mask"].numel()
    logits = module(**batch).logits
    generated = module.it_generate(batch, max_new_tokens=1).logits[0]
    reference = tiny_gpt2()
    for row, features in enumerate(datamodule.dataset["validation"]):
        alone = reference(torch.tensor([features["input_ids"]])).logits[0]
        torch.testing.assert_close(logits[row][batch["attention_mask"][row] == 1], alone, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(generated[row], alone[-1], rtol=1e-4, atol=1e-4)


def test_metrics_are_logged_and_state_is_kept(make_session):
    module = make_session().module
    module.log("loss", torch.tensor(0.5), prog_bar=True)
    module.log_dict({"accuracy": 1, "loss": 0.25})
    assert module.logged_metrics == {"loss": 0.25, "accuracy": 1.0}
    module.global_step += 1
    assert (module.global_step, module.current_epoch) == (1, 0)


def test_an_unknown_step_is_refused(make_session):
    with pytest.raises(it.ConfigurationError, match="MyModule has no tset_step. Define it"):
        make_session().module.run_step("tset_step")


def test_batches_of_any_nesting_move_to_the_device(make_session):
    module = make_session().module.to("meta")
    batch = {"tokens": torch.ones(2), "rest": [(torch.ones(1), "text")]}
    given = copy.deepcopy(batch)
    moved = module.batch_to_device(batch)
    assert moved["tokens"].device.type == moved["rest"][0][0].device.type == "meta"
    assert moved["rest"][0][1] == "text"
    assert batch["tokens"].device == given["tokens"].device


def test_several_rows_without_a_mask_are_refused(gpt2_folder):
    session = it.ITSession(it.ITSessionConfig(shared_cfg=it.ITSharedConfig(model_name_or_path=str(gpt2_folder))))
    import torch

    with pytest.raises(it.DataError, match="attention_mask"):
        session.module(input_ids=torch.ones(2, 3, dtype=torch.long))


@pytest.mark.parametrize("wrong", [dict, torch.nn.Linear(1, 1), None])
def test_what_is_no_module_class_is_refused(wrong):
    with pytest.raises(it.ConfigurationError, match=r"(?s)module_cls is .*derives from ITModule"):
        compose_class(wrong, "module", it.build_context(("core",)))


def test_a_mapping_is_no_loop_configuration(make_session):
    session = make_session()
    with pytest.raises(it.ConfigurationError, match=r"validate got a dict as loop_cfg. Write loop_cfg=LoopConfig"):
        it.validate(**session, loop_cfg={"limit_val_batches": 1})


def test_a_request_for_latent_models_becomes_fields(adapter_of, gpt2_folder):
    from tests.tiny_latents import RandomDictionary

    body = """
    @it.hookimpl
    def it_configure_latents(self, request):
        from tests.tiny_latents import RandomDictionary
        return {"latent_models": [RandomDictionary(name) for name in request.hook_points]}
    """
    adapter_of("acme", level="latents", body=body)

    def session(adapter, **settings):
        cfg, before = it.ITConfig(device="cpu", **settings), list(settings.get("latent_models", ()))
        shared = it.ITSharedConfig(model_name_or_path=str(gpt2_folder))
        request = it.LatentRequest(layers=[1])
        found = it.ITSession(
            it.ITSessionConfig(adapter_ctx=adapter, shared_cfg=shared, module_cfg=cfg, latents=request)
        )
        assert list(cfg.latent_models) == before
        return found

    [latents] = session("acme").module.latent_models
    assert latents.hook_point == "blocks.1.hook_resid_post"
    with pytest.raises(it.ConfigurationError, match=r"None of the stacked adapters \(core\) supplies"):
        session("core")
    with pytest.raises(it.ConfigurationError, match="module_cfg sets 'latent_models', and so does the answer"):
        session("acme", latent_models=[RandomDictionary("layers.0.resid_post")])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "no release and no layers"),
        ({"ids": ["a"]}, "ids are those of a release"),
        ({"release": "a", "ids": ["a"], "layers": [1]}, "by layers and by ids"),
        ({"layers": [-1]}, r"LatentRequest.layers is \[-1\]"),
    ],
)
def test_a_request_for_latent_models_that_says_little_is_refused(fields, message):
    with pytest.raises(it.ConfigurationError, match=message):
        it.LatentRequest(**fields)
