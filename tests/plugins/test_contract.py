"""The public contract: hook signatures, the import discipline, and a core that knows no adapter by name."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import interpretune
import interpretune.adapters.core
from interpretune import hookspecs
from interpretune.plugins.stack import HOOK_NAMES, build_context

HOOKS = {
    "it_contribute_classes": (),
    "it_configure_latents": ("request",),
    "it_load_model": ("module",),
    "it_load_latent_models": ("module",),
    "it_prepare_data": ("datamodule", "module"),
    "it_setup_datamodule": ("datamodule", "module"),
    "it_setup_module": ("module", "datamodule"),
    "it_configure_optimizers": ("module",),
    "it_name_parameters": ("module",),
    "it_move_batch": ("module", "batch"),
    "it_forward": ("module", "batch"),
    "it_generate": ("module", "batch", "generation_kwargs"),
    "it_run_step": ("module", "step_name", "step"),
    "it_log": ("module", "metrics", "options"),
    "it_run_loop": ("module", "datamodule", "loop", "loop_cfg"),
    "it_create_backend": ("module",),
    "it_contribute_operations": ("module",),
    "it_open_analysis": ("module", "analysis"),
    "it_run_analysis": ("module", "analysis"),
    "it_close_analysis": ("module", "analysis"),
    "it_report_session": ("module",),
    "it_end_session": ("module", "datamodule"),
}
"""Changing this dictionary changes the contract: raise CONTRACT_VERSION and tell the authors of adapters."""

FIRST_RESULT = {
    "it_load_model",
    "it_configure_optimizers",
    "it_move_batch",
    "it_forward",
    "it_generate",
    "it_run_step",
    "it_run_loop",
    "it_create_backend",
    "it_run_analysis",
    "it_configure_latents",
}

CORE_SOURCE = Path(interpretune.__file__).parent
EARLY_IMPORTS = """
import sys
import interpretune as it
assert "core" in it.installed_adapters()
assert it.Adapter.core == "core"
it.AdapterDeclaration(name="acme", level="model", contract="1.0")
it.hookspec, it.hookimpl, it.ConfigurationError, it.ClassContribution
print(*sorted(name.partition(".")[0] for name in sys.modules))
"""


def test_the_signatures_of_the_hooks_are_the_contract():
    found = {name: tuple(inspect.signature(getattr(hookspecs, name)).parameters) for name in HOOK_NAMES}
    assert found == HOOKS
    assert tuple(found) == tuple(HOOKS), "hooks stand in the order in which they happen"


def test_which_hooks_stop_at_the_first_result():
    hook = build_context(()).hook
    assert {name for name in HOOK_NAMES if getattr(hook, name).spec.opts["firstresult"]} == FIRST_RESULT


@pytest.mark.parametrize("name", HOOKS)
def test_every_hook_says_when_it_is_called_and_how_results_combine(name):
    text = " ".join((inspect.getdoc(getattr(hookspecs, name)) or "").split())
    assert "Called" in text
    expected = "First result" if name in FIRST_RESULT else r"Collected|All run"
    assert re.search(expected, text)


def test_importing_interpretune_imports_neither_torch_nor_any_adapter():
    run = subprocess.run([sys.executable, "-c", EARLY_IMPORTS], capture_output=True, text=True, check=True)
    loaded = set(run.stdout.split())
    assert "interpretune" in loaded
    assert not loaded & {"torch", "transformers", "datasets", "numpy", "pandas", "evaluate", "plotly"}
    assert not [name for name in loaded if name.startswith("interpretune_")]


def test_every_public_name_can_be_imported():
    for name in interpretune.__all__:
        assert getattr(interpretune, name) is not None


def test_core_s_source_names_no_adapter():
    names = re.compile("|".join(["transformer_?lens", "sae_?lens", "lightning", "nnsight"]), re.IGNORECASE)
    files = [file for pattern in ("*.py", "*.pyi") for file in CORE_SOURCE.rglob(pattern)]
    assert len(files) > 20
    assert [f"{file.name}: {hit}" for file in files for hit in names.findall(file.read_text(encoding="utf-8"))] == []


@pytest.mark.parametrize(
    ("written_for", "core_speaks", "stacks"),
    [("1.0", "1.0", True), ("1.0", "1.7", True), ("1.7", "1.0", False), ("1.0", "2.0", False), ("2.0", "1.9", False)],
)
def test_an_adapter_of_an_older_minor_version_stacks_and_no_other(
    adapter_of, monkeypatch, written_for, core_speaks, stacks
):
    adapter_of("old", contract=written_for)
    monkeypatch.setattr(interpretune.adapters.core.CoreAdapter, "declaration", core_declaration(core_speaks))
    for module in (interpretune.plugins.declaration, interpretune.plugins.stack):
        monkeypatch.setattr(module, "CONTRACT_VERSION", core_speaks)
    if stacks:
        assert build_context(("old",)).names == ("core", "old")
    else:
        with pytest.raises(interpretune.ContractVersionError, match=f"contract {written_for}.*speaks {core_speaks}"):
            build_context(("old",))


@pytest.mark.parametrize(("written_for", "stacks"), [("1.0", False), ("1.1", True)])
def test_a_hook_that_came_later_needs_its_contract(adapter_of, monkeypatch, written_for, stacks):
    monkeypatch.setattr(interpretune.adapters.core.CoreAdapter, "declaration", core_declaration("1.1"))
    monkeypatch.setattr(interpretune.plugins.declaration, "CONTRACT_VERSION", "1.1")
    monkeypatch.setattr(interpretune.plugins.stack, "INTRODUCED_IN", {**hookspecs.INTRODUCED_IN, "it_log": "1.1"})
    adapter_of("acme", contract=written_for, body="@it.hookimpl\ndef it_log(self, metrics):\n    pass")
    if stacks:
        assert build_context(("acme",)).names == ("core", "acme")
    else:
        with pytest.raises(
            interpretune.AdapterSignatureError, match="it_log, which came with contract 1.1.*contract 1.0"
        ):
            build_context(("acme",))


def test_every_hook_says_since_when_there_is_one():
    assert list(hookspecs.INTRODUCED_IN) == list(interpretune.plugins.stack.HOOK_NAMES)
    page = (Path(__file__).parents[2] / "docs" / "adapters" / "hooks.md").read_text(encoding="utf-8")
    told = re.findall(r"^```python\ndef (it_\w+)\([^\n]*\n```\n\nSince (\d+\.\d+)\. ", page, re.MULTILINE)
    assert dict(told) == dict(hookspecs.INTRODUCED_IN)
    assert all(
        interpretune.AdapterDeclaration(name="core", level="framework", contract=interpretune.CONTRACT_VERSION).knows(v)
        for v in hookspecs.INTRODUCED_IN.values()
    )


def test_a_declaration_says_for_which_contract_it_was_written():
    with pytest.raises(TypeError, match="contract"):
        interpretune.AdapterDeclaration(name="acme", level="model")


def core_declaration(contract):
    return interpretune.AdapterDeclaration(name="core", level="framework", contract=contract)


@pytest.mark.parametrize("deprecated", ["hook", "argument"])
def test_what_is_deprecated_warns_those_who_implement_it_and_nobody_else(adapter_of, monkeypatch, deprecated):
    advice = DeprecationWarning("goes with contract 2.0; implement it_run_step")
    options = hookspecs.it_name_parameters.interpretune_spec
    if deprecated == "hook":
        monkeypatch.setitem(options, "warn_on_impl", advice)
    else:
        monkeypatch.setitem(options, "warn_on_impl_args", {"module": advice})
    adapter_of("wordy", body="@it.hookimpl\ndef it_name_parameters(self, module):\n    return {}")
    adapter_of("silent")
    assert build_context(("silent",)).names == ("core", "silent")
    with pytest.warns(DeprecationWarning, match=r"contract 2\.0; implement it_run_step"):
        context = build_context(("wordy",))
    assert context.hook.it_name_parameters(module=None) == [{}]


def test_an_argument_added_later_may_be_left_out(adapter_of):
    adapter_of("brief", body="@it.hookimpl\ndef it_forward(self):\n    return 17")
    assert build_context(("brief",)).hook.it_forward(module=None, batch={}) == 17
