"""Configuration classes are composed from whatever is stacked, and nothing of the caller's is changed."""

from __future__ import annotations

import copy
import pickle
from dataclasses import dataclass, field, fields

import pytest

import interpretune as it
from interpretune.plugins.stack import build_context
from interpretune.session.composition import apply_shared, compose_datamodule_cfg, compose_module_cfg
from tests.tiny import tiny_tokenizer

PROBE = """
    from dataclasses import dataclass, field

    import interpretune as it

    @dataclass(kw_only=True)
    class ProbeConfig:
        probe_width: int = 7
        probe_names: list = field(default_factory=list)

    @dataclass(kw_only=True)
    class ProbeDataConfig:
        probe_columns: tuple = ()

    class Probe:
        declaration = it.AdapterDeclaration(name="probe", level="extension", contract="1.0")

        @it.hookimpl
        def it_contribute_classes(self):
            return it.ClassContribution(
                adapter="probe", module_cfg=(ProbeConfig,), datamodule_cfg=(ProbeDataConfig,)
            )

    adapter = Probe()
"""


@pytest.fixture
def probe(install):
    """A context with a third party's adapter that adds fields to both configurations."""
    install("acme-probe", adapters={"probe": "acme_probe:adapter"}, acme_probe=PROBE)
    return build_context(("probe",))


@dataclass(kw_only=True)
class Thresholds:
    low: float = 0.1
    names: list[str] = field(default_factory=list)


@dataclass(kw_only=True)
class MyConfig(it.ITConfig):
    mine: int = 1


def test_fields_of_a_third_party_s_adapter_are_composed(probe):
    cfg = it.ITConfig(model_name_or_path="m", probe_width=9)
    composed = compose_module_cfg(cfg, probe)
    assert isinstance(composed, it.ITConfig)
    assert (composed.probe_width, composed.probe_names, composed.model_name_or_path) == (9, [], "m")
    assert "ProbeConfig" in {base.__name__ for base in type(composed).__mro__}


def test_fields_of_an_adapter_reach_the_data_module_s_configuration(probe):
    composed = compose_datamodule_cfg(it.ITDataModuleConfig(eval_batch_size=3), probe, None)
    assert (composed.probe_columns, composed.eval_batch_size) == ((), 3)


def test_without_the_adapter_its_field_is_refused():
    with pytest.raises(it.ConfigurationError) as caught:
        compose_module_cfg(it.ITConfig(probe_width=9), build_context(()))
    for part in ("module_cfg sets 'probe_width'", "Stacked: core", "adapter_ctx", "model_name_or_path"):
        assert part in str(caught.value)


def test_an_unknown_field_is_refused_with_the_nearest(probe):
    with pytest.raises(it.ConfigurationError, match="'prob_width'.*Did you mean 'probe_width'.*core, probe"):
        compose_module_cfg(it.ITConfig(prob_width=9), probe)


def test_mixins_of_the_user_are_composed_and_the_class_gets_its_name(probe):
    recipe = it.AutoCompConfig(
        module_cfg_name="Mine",
        module_cfg_mixin=Thresholds,
        datamodule_cfg_name="MyData",
        datamodule_cfg_mixin=[Thresholds],
    )
    composed = compose_module_cfg(it.ITConfig(auto_comp_cfg=recipe, low=0.5, probe_width=3), probe)
    assert type(composed).__name__ == "Mine"
    assert (composed.low, composed.names, composed.probe_width) == (0.5, [], 3)
    data = compose_datamodule_cfg(it.ITDataModuleConfig(), probe, recipe)
    assert (type(data).__name__, data.low) == ("MyData", 0.1)


def test_the_user_s_mixin_comes_before_the_adapter_s(probe):
    @dataclass(kw_only=True)
    class Wider:
        probe_width: int = 100

    recipe = it.AutoCompConfig(module_cfg_mixin=Wider)
    assert compose_module_cfg(it.ITConfig(auto_comp_cfg=recipe), probe).probe_width == 100


def test_a_mixin_that_is_no_dataclass_is_refused():
    class Plain:
        low = 0.1

    recipe = it.AutoCompConfig(module_cfg_mixin=Plain)
    with pytest.raises(it.ConfigurationError, match="Plain is not a dataclass. Decorate it"):
        compose_module_cfg(it.ITConfig(auto_comp_cfg=recipe), build_context(()))


def test_a_subclass_of_the_user_keeps_its_values_and_gains_fields(probe):
    composed = compose_module_cfg(MyConfig(mine=5, task_name="t"), probe)
    assert isinstance(composed, MyConfig)
    assert (composed.mine, composed.task_name, composed.probe_width) == (5, "t", 7)


def test_a_subclass_of_the_user_is_strict():
    with pytest.raises(TypeError, match="probe_width"):
        MyConfig(probe_width=1)


@pytest.mark.parametrize("cls", [it.ITConfig, MyConfig])
def test_the_caller_s_configuration_and_class_stay_as_they_are(probe, cls):
    cfg = cls(task_name="t")
    before, class_fields = copy.deepcopy(vars(cfg)), [item.name for item in fields(cls)]
    composed = compose_module_cfg(cfg, probe)
    apply_shared(composed, it.ITSharedConfig(model_name_or_path="m"))
    composed.probe_width = 0
    assert vars(cfg) == before
    assert [item.name for item in fields(cls)] == class_fields
    assert type(cfg) is cls


def test_without_anything_to_add_the_configuration_is_copied():
    cfg = MyConfig(mine=3)
    composed = compose_module_cfg(cfg, build_context(()))
    assert composed == cfg
    assert composed is not cfg


def test_shared_settings_are_copied_and_specific_ones_win():
    shared = it.ITSharedConfig(
        model_name_or_path="shared", task_name="shared", tokenizer_kwargs={"padding_side": "left"}
    )
    cfg = apply_shared(it.ITDataModuleConfig(task_name="specific"), shared)
    assert (cfg.model_name_or_path, cfg.task_name) == ("shared", "specific")
    assert cfg.tokenizer_kwargs == {"padding_side": "left"}


def test_every_shared_setting_is_copied():
    other = {
        "model_name_or_path": "m",
        "task_name": "t",
        "tokenizer": tiny_tokenizer(),
        "tokenizer_name": "tok",
        "tokenizer_kwargs": {"a": 1},
        "tokenizer_id_overrides": {"pad_token_id": 1},
        "trust_remote_code": True,
        "cache_dir": "c",
    }
    assert set(other) == {item.name for item in fields(it.ITSharedConfig)}
    cfg = apply_shared(it.ITConfig(), it.ITSharedConfig(**other))
    assert {name: getattr(cfg, name) for name in other} == other


def test_without_shared_settings_nothing_changes():
    assert apply_shared(it.ITConfig(task_name="t"), None).task_name == "t"


def test_a_composed_configuration_can_be_pickled(probe):
    composed = compose_module_cfg(it.ITConfig(model_name_or_path="m", probe_width=9, probe_names=["a"]), probe)
    copied = pickle.loads(pickle.dumps(composed))
    assert {item.name: getattr(copied, item.name) for item in fields(copied)} == {
        item.name: getattr(composed, item.name) for item in fields(composed)
    }
    assert isinstance(copied, it.ITConfig)
    assert type(copied).__name__ == type(composed).__name__
    assert pickle.loads(pickle.dumps(copied)).probe_width == 9
