"""Wrong adapters: each is refused with a message that says whose it is, what is wrong and what to do."""

from __future__ import annotations

import pytest

import interpretune as it
from tests.broken_adapters.expected import REFUSED

EXPECTED = {
    "a_class": (it.AdapterSignatureError, "is the class AClass", "an adapter is an instance", "`adapter = AClass()`"),
    "a_dict_for_a_declaration": (it.AdapterSignatureError, "found {'name': 'acme'", "AdapterDeclaration(name='acme'"),
    "another_name": (it.AdapterSignatureError, "declares the name 'menagerie'", "change one of them"),
    "broken_import": (it.AdapterImportError, "ModuleNotFoundError", "a_package_that_nobody_has", "pip uninstall"),
    "conflicts_with_core": (it.StackError, "conflict with 'core' (interpretune-core", "adapter_ctx"),
    "extra_argument": (it.AdapterSignatureError, "temperature", "it_forward", "interpretune/hookspecs.py"),
    "fails_when_imported": (it.AdapterImportError, "RuntimeError: libacme.so.7 is too old", "--force-reinstall"),
    "foreign_marker": (it.AdapterSignatureError, "it_forward is not marked", "@interpretune.hookimpl"),
    "hook_of_no_name": (it.AdapterSignatureError, "zzz", "The hooks are it_contribute_classes", "it_end_session"),
    "misspelt_hook": (it.AdapterSignatureError, "it_foward", "contract 1.0", "Did you mean it_forward?"),
    "newer_contract": (it.ContractVersionError, "contract 2.0", "this core speaks 1.0", "Install a version"),
    "no_declaration": (it.AdapterSignatureError, "no AdapterDeclaration", "found None", "Add `declaration ="),
    "requires_the_absent": (it.UnknownAdapterError, "'quagga'", "requires", "pip install interpretune-quagga"),
    "stands_below_core": (it.StackError, "cycle", "acme (extension, requires nothing, before core)", "cannot all hold"),
    "unknown_level": (it.AdapterImportError, "'penthouse'", "framework, model, latents, extension"),
    "unmarked_hook": (it.AdapterSignatureError, "it_forward is not marked", "@interpretune.hookimpl"),
    "wants_to_be_first": (it.AdapterSignatureError, "it_forward", "tryfirst", "reserved for core", "`requires`"),
    "wants_to_be_last": (it.AdapterSignatureError, "it_forward", "trylast", "reserved for core", "`level`"),
    "without_self": (it.AdapterSignatureError, "it_forward(module, batch)", "without `self`", "Add `self`"),
    "wrapper_without_yield": (it.AdapterSignatureError, "it_run_step", "generator"),
    "wrong_contribution": (it.AdapterSignatureError, "{'module': ()}", "ClassContribution", "or None"),
}


def install_broken(install, name):
    target = f"tests.broken_adapters.{name}:adapter"
    install("interpretune-acme", adapters={"acme": target}, version="3.1.4")


@pytest.mark.parametrize("name", EXPECTED)
def test_a_wrong_adapter_is_refused_in_words(install, name):
    install_broken(install, name)
    error, *parts = EXPECTED[name]
    with pytest.raises(it.AdapterError) as caught:
        it.build_context(("acme",))
    assert type(caught.value) is error
    for part in ("'acme' (interpretune-acme 3.1.4)", *parts):
        assert part in str(caught.value)


@pytest.mark.parametrize("name", EXPECTED)
def test_a_wrong_adapter_that_is_not_stacked_harms_nobody(install, name):
    install_broken(install, name)
    assert it.build_context(("core",)).names == ("core",)


def test_every_broken_adapter_is_expected():
    assert set(EXPECTED) == set(REFUSED)
