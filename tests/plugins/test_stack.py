"""Computing the stack from declarations, refusing what cannot be stacked, and the execution context."""

from __future__ import annotations

import itertools
import traceback

import attrs
import pytest
import torch
from hypothesis import given, settings, strategies as st

import interpretune as it
from interpretune.plugins.declaration import Level
from interpretune.plugins.discovery import InstalledAdapter
from interpretune.plugins.stack import HOOK_NAMES, StackedAdapter, build_context, order_stack
from interpretune.session.session import compose_class

LOADS_MODEL = """
    @it.hookimpl
    def it_load_model(self, module):
        return None
"""


def refusal(error: type[Exception], *names: str) -> str:
    with pytest.raises(error) as caught:
        build_context(names)
    return str(caught.value)


def test_core_alone():
    assert build_context(()).names == ("core",)
    assert build_context(("core", "core")).names == ("core",)


def test_levels_order_the_stack_whatever_the_names(adapter_of):
    for name, level in {"aa": "extension", "bb": "latents", "cc": "model", "dd": "framework"}.items():
        adapter_of(name, level=level)
    assert build_context(("aa", "bb", "cc", "dd")).names == ("core", "dd", "cc", "bb", "aa")


def test_within_a_level_requirements_order_and_ties_go_by_name(adapter_of):
    adapter_of("aa", requires=("cc",))
    adapter_of("bb")
    adapter_of("cc")
    names = build_context(("bb", "aa", "cc")).names
    assert names.index("cc") < names.index("aa")
    assert set(names) == {"core", "aa", "bb", "cc"}
    assert names == build_context(("cc", "aa", "bb")).names


def test_within_a_level_before_and_after_order_what_is_stacked(adapter_of):
    adapter_of("aa", after=("cc", "absent"))
    adapter_of("bb")
    adapter_of("cc", before=("bb",))
    adapter_of("low", level="model", before=("aa",))
    orders = {build_context(names).names for names in itertools.permutations(("aa", "bb", "cc", "low"))}
    assert orders == {("core", "low", "cc", "aa", "bb")}
    assert build_context(("aa", "bb")).names == ("core", "aa", "bb")
    assert "interpretune-aa 1.2.3, after cc, absent" in str(build_context(("aa",)))


def test_before_makes_the_outer_wrapper(adapter_of):
    body = """
    @it.hookimpl(wrapper=True)
    def it_run_step(self, module, step_name, step):
        return "{name}(" + (yield) + ")"
    """
    adapter_of("aa", body=body.format(name="aa"))
    adapter_of("zz", before=("aa",), body=body.format(name="zz"))
    context = build_context(("aa", "zz"))
    assert context.hook.it_run_step(module=None, step_name="test_step", step=lambda: "step") == "zz(aa(step))"


@pytest.mark.parametrize(
    ("one", "two", "parts"),
    [
        ({"before": ("two",)}, {"before": ("one",)}, ["requires nothing, before two", "before one"]),
        ({"after": ("two",)}, {"requires": ("one",)}, ["after two", "two (extension, requires one)"]),
        ({"before": ("two",)}, {"level": "model"}, ["one (extension", "before two", "two (model"]),
        ({"before": ("core",)}, {}, ["before core", "core (framework"]),
    ],
)
def test_an_order_that_cannot_be_is_refused_with_its_circle(adapter_of, one, two, parts):
    adapter_of("one", **one)
    adapter_of("two", **two)
    message = refusal(it.StackError, "one", "two")
    assert all(part in message for part in ["cycle", "`before` (below)", *parts]), message


def test_an_adapter_before_itself_is_refused():
    with pytest.raises(it.ConfigurationError, match="'acme' declares before='acme', which is itself"):
        it.AdapterDeclaration(name="acme", level="extension", contract="1.0", before=("acme",))


def test_requirements_are_added_transitively(adapter_of):
    adapter_of("top", level="extension", requires=("middle",))
    adapter_of("middle", level="latents", requires=("bottom",))
    adapter_of("bottom", level="model")
    assert build_context(("top",)).names == ("core", "bottom", "middle", "top")


def test_a_default_model_is_added_where_no_other_is_named(adapter_of):
    adapter_of("latents", level="latents", default_model="usual")
    adapter_of("usual", level="model", requires=("below",))
    adapter_of("below", level="framework")
    adapter_of("other", level="model")
    assert build_context(("latents",)).names == ("core", "below", "usual", "latents")
    assert build_context(("latents", "usual")).names == ("core", "below", "usual", "latents")
    assert build_context(("latents", "other")).names == ("core", "other", "latents")
    assert build_context(("latents", "huggingface")).names == ("core", "huggingface", "latents")
    assert "interpretune-latents 1.2.3, usual by default" in str(build_context(("latents",)))


def test_a_default_model_that_is_not_installed_leaves_the_model_to_core(adapter_of):
    adapter_of("latents", level="latents", default_model="absent")
    assert build_context(("latents",)).names == ("core", "latents")
    adapter_of("others", level="latents", default_model="present")
    adapter_of("present", level="model")
    assert build_context(("latents", "others")).names == ("core", "present", "latents", "others")
    adapter_of("purist", conflicts=("present",))
    assert build_context(("others", "purist")).names == ("core", "others", "purist")


def test_two_default_models_want_a_choice(adapter_of):
    adapter_of("aa", level="latents", default_model="first")
    adapter_of("bb", level="latents", default_model="second")
    adapter_of("first", level="model")
    adapter_of("second", level="model")
    message = refusal(it.StackError, "aa", "bb")
    for part in ("'aa' (interpretune-aa 1.2.3) 'first'", "'bb' (interpretune-bb 1.2.3) 'second'", "adapter_ctx"):
        assert part in message
    assert build_context(("aa", "bb", "second")).names == ("core", "second", "aa", "bb")


def test_the_plain_model_and_another_are_refused(adapter_of):
    adapter_of("other", level="model", body=LOADS_MODEL)
    assert "'huggingface' and 'other' both implement it_load_model" in refusal(it.StackError, "huggingface", "other")


def test_adapter_objects_and_strings_name_the_same_stack(adapter_of):
    adapter_of("acme")
    assert build_context((it.Adapter.core, it.Adapter.acme)).names == build_context(("acme",)).names


def test_one_bare_string_is_one_adapter():
    assert build_context("core").names == ("core",)


def test_a_missing_requirement_says_who_wants_it(adapter_of):
    adapter_of("top", requires=("absent",), version="7.0")
    message = refusal(it.UnknownAdapterError, "top")
    assert "'absent', which 'top' (interpretune-top 7.0) requires" in message


def test_an_adapter_that_is_not_asked_for_is_not_imported(install):
    install("acme-tools", adapters={"acme": "acme_mod:adapter"}, acme_mod="raise RuntimeError('imported')")
    assert build_context(("core",)).names == ("core",)


def test_a_conflict_names_both_sides(adapter_of):
    adapter_of("one", conflicts=("two",), version="1.1")
    adapter_of("two", version="2.2")
    message = refusal(it.StackError, "two", "one")
    for part in ("'one' (interpretune-one 1.1)", "'two' (interpretune-two 2.2)", "conflict", "adapter_ctx"):
        assert part in message
    assert build_context(("one",)).names == ("core", "one")


def test_a_conflict_with_an_added_requirement_is_found(adapter_of):
    adapter_of("top", requires=("base",))
    adapter_of("base", level="model")
    adapter_of("enemy", conflicts=("base",))
    assert "'base'" in refusal(it.StackError, "top", "enemy")


def test_a_cycle_is_shown(adapter_of):
    adapter_of("one", requires=("two",))
    adapter_of("two", requires=("one",))
    message = refusal(it.StackError, "one")
    for part in ("cycle", "one (extension, requires two)", "two (extension, requires one)"):
        assert part in message


def test_a_requirement_against_the_levels_is_a_cycle(adapter_of):
    adapter_of("low", level="model", requires=("high",))
    adapter_of("high", level="extension")
    message = refusal(it.StackError, "low")
    assert "low (model, requires high)" in message
    assert "high (extension, requires nothing)" in message


def test_two_owners_of_the_model_are_refused_and_one_is_not(adapter_of):
    adapter_of("one", level="model", body=LOADS_MODEL)
    adapter_of("two", level="model", body=LOADS_MODEL)
    message = refusal(it.StackError, "two", "one")
    assert "'one' and 'two' both implement it_load_model" in message
    assert build_context(("one",)).names == ("core", "one")


def test_other_first_result_hooks_may_have_many_owners_and_the_lowest_but_core_answers(adapter_of):
    for name, level in {"low": "model", "high": "extension"}.items():
        adapter_of(name, level=level, body=f"@it.hookimpl\ndef it_forward(self, module, batch):\n    return '{name}'")
    context = build_context(("high", "low"))
    assert context.hook.it_forward(module=None, batch={}) == "low"
    assert dict(context.answers())["it_forward"] == ("low", "high", "core")


def test_collected_hooks_run_core_first(adapter_of):
    for name, level in {"low": "model", "high": "extension"}.items():
        adapter_of(
            name,
            level=level,
            body=f"@it.hookimpl\ndef it_contribute_classes(self):\n    return it.ClassContribution(adapter='{name}')",
        )
    context = build_context(("high", "low"))
    assert [item.adapter for item in context.contributions] == ["core", "low", "high"]


def test_wrappers_nest_with_the_lowest_outermost(adapter_of):
    for name, level in {"low": "model", "high": "extension"}.items():
        adapter_of(
            name,
            level=level,
            body=f"""
            @it.hookimpl(wrapper=True)
            def it_run_step(self, module, step_name, step):
                return "{name}(" + (yield) + ")"
            """,
        )
    context = build_context(("high", "low"))
    assert context.hook.it_run_step(module=None, step_name="test_step", step=lambda: "step") == "low(high(step))"
    assert dict(context.answers())["it_run_step"] == ("low (wrapper)", "high (wrapper)", "core")


def test_errors_of_implementations_come_without_frames_of_pluggy(adapter_of):
    adapter_of(
        "acme", body="@it.hookimpl(wrapper=True)\ndef it_run_step(self, module, step_name, step):\n    return (yield)"
    )

    def step() -> None:
        try:
            raise KeyError("first")
        except KeyError:
            raise ValueError("of a step")  # noqa: B904 - whose context stays

    hook = build_context(("acme",)).hook
    with pytest.raises(ValueError, match="of a step") as caught:
        hook.it_run_step(module=None, step_name="test_step", step=step)
    frames = traceback.extract_tb(caught.value.__traceback__)
    assert not any("pluggy" in frame.filename for frame in frames)
    assert [frame.name for frame in frames[-2:]] == ["it_run_step", "step"]
    assert isinstance(caught.value.__context__, KeyError)
    assert not caught.value.__suppress_context__


def test_a_step_that_recurses_without_end_fails_as_it_would_alone():
    def step() -> None:
        step()

    with pytest.raises(RecursionError) as caught:
        build_context(()).hook.it_run_step(module=None, step_name="test_step", step=step)
    assert caught.value.__context__ is None
    assert traceback.extract_tb(caught.value.__traceback__)[-1].name == "step"


def test_two_contexts_in_one_process_are_independent(adapter_of):
    adapter_of("acme", body="@it.hookimpl\ndef it_forward(self, module, batch):\n    return 'acme'")
    plain = build_context(("core",))
    stacked = build_context(("acme",))
    assert dict(plain.answers())["it_forward"] == ("core",)
    assert dict(stacked.answers())["it_forward"] == ("acme", "core")
    assert plain.hook is not stacked.hook


def test_a_context_is_frozen():
    context = build_context(())
    for name in ("adapters", "hook", "contributions"):
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            setattr(context, name, ())
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        context.adapters[0].declaration.name = "other"


def test_the_printed_context_shows_the_stack_and_who_answers(adapter_of):
    adapter_of(
        "acme",
        level="model",
        requires=("core",),
        version="9.8.7",
        body="""
        @it.hookimpl
        def it_forward(self, module, batch):
            return None

        @it.hookimpl
        def it_contribute_classes(self):
            return it.ClassContribution(adapter="acme", module=(TheAdapter,))
        """,
    )
    lines = [" ".join(line.split()) for line in str(build_context(("acme",))).splitlines()]
    core_version = it.installed_adapters()["core"].version
    assert f"core framework interpretune-core {core_version}" in lines
    assert "acme model interpretune-acme 9.8.7, requires core" in lines
    assert "it_forward acme, core" in lines
    assert "it_report_session -" in lines
    assert "module your class, TheAdapter (acme), ITModule (core)" in lines
    assert "datamodule_cfg your mixin, -" in lines
    assert all(any(line.startswith(f"{name} ") for line in lines) for name in HOOK_NAMES)


def test_a_contribution_of_another_type_is_refused(adapter_of):
    adapter_of("acme", body="@it.hookimpl\ndef it_contribute_classes(self):\n    return {'module': ()}")
    message = refusal(it.AdapterSignatureError, "acme")
    for part in ("acme", "it_contribute_classes", "ClassContribution", "{'module': ()}"):
        assert part in message


NAMES = "abcdefgh"


def stacked(name: str, level: Level, requires: tuple[str, ...]) -> StackedAdapter:
    declaration = it.AdapterDeclaration(name=name, level=level, requires=requires, contract="1.0")
    return StackedAdapter(InstalledAdapter(name, f"{name}:adapter", f"interpretune-{name}", "1"), declaration, None)


@st.composite
def consistent_stacks(draw):
    """Adapters that require only adapters of lower levels, or earlier ones of their own level."""
    count = draw(st.integers(1, len(NAMES)))
    names = draw(st.permutations(NAMES[:count]))
    levels = sorted(
        draw(st.lists(st.sampled_from(list(Level)), min_size=count, max_size=count)), key=lambda lv: lv.rank
    )
    requires = [draw(st.sets(st.sampled_from(names[:index]))) if index else set() for index in range(count)]
    return [
        stacked("core", Level.framework, ()),
        *(stacked(*each) for each in zip(names, levels, map(tuple, requires), strict=True)),
    ]


@settings(max_examples=100, deadline=None)
@given(data=st.data(), adapters=consistent_stacks())
def test_any_order_of_the_same_adapters_gives_one_valid_stack(data, adapters):
    expected = order_stack({adapter.name: adapter for adapter in adapters})
    shuffled = data.draw(st.permutations(adapters))
    assert order_stack({adapter.name: adapter for adapter in shuffled}) == expected
    assert expected[0].name == "core"
    assert sorted(adapter.name for adapter in expected) == sorted(adapter.name for adapter in adapters)
    for lower, upper in itertools.combinations(expected, 2):
        assert lower.name == "core" or lower.declaration.level.rank <= upper.declaration.level.rank
        assert upper.name not in lower.declaration.requires


def test_any_order_of_adapter_ctx_gives_one_context(adapter_of):
    adapter_of("aa", level="extension", requires=("cc",))
    adapter_of("bb", level="extension")
    adapter_of("cc", level="model")
    adapter_of("dd", level="framework")
    contexts = [build_context(names) for names in itertools.permutations(("aa", "bb", "dd", "core"))]
    assert {context.names for context in contexts} == {("core", "dd", "cc", "aa", "bb")}
    assert len({str(context) for context in contexts}) == 1


def test_the_single_owner_of_the_model_may_be_wrapped(adapter_of):
    adapter_of("owner", level="model", body="@it.hookimpl\ndef it_load_model(self, module):\n    return module")
    adapter_of("watcher", body="@it.hookimpl(wrapper=True)\ndef it_load_model(self, module):\n    return (yield)")
    context = it.build_context(("owner", "watcher"))
    assert dict(context.answers())["it_load_model"] == ("watcher (wrapper)", "owner", "core")


class Module(torch.nn.Module):
    """A user's module."""

    def training_step(self, batch, batch_idx):
        return None


class DataModule(it.ITDataModule):
    """A user's data module."""


INSTALLED = sorted(it.installed_adapters())


@settings(max_examples=60, deadline=None)
@given(names=st.permutations(INSTALLED).flatmap(lambda order: st.integers(0, len(order)).map(lambda n: order[:n])))
def test_every_order_of_every_subset_of_the_installed_adapters_gives_one_class_hierarchy(names):
    """Equal stacks, equal composed classes, or one clear error, whichever adapters are installed here."""
    given_order, alphabetic = map(describe_stack, (names, sorted(names)))
    assert given_order == alphabetic


def describe_stack(names: list[str]) -> object:
    try:
        context = build_context(names)
        classes = [compose_class(Module, "module", context), compose_class(DataModule, "datamodule", context)]
    except it.InterpretuneError as error:
        return type(error), str(error)
    assert {"core", *names} <= set(context.names)
    for composed, user_class, last in zip(classes, (Module, DataModule), (it.ITModule, it.ITDataModule), strict=True):
        assert composed.__mro__.index(user_class) < composed.__mro__.index(last)
    return context.names, str(context), [composed.__mro__[1:] for composed in classes]
