"""Finding adapters in metadata, reading declarations from source, importing on demand."""

from __future__ import annotations

import sys

import pytest

import interpretune as it
from interpretune.plugins.discovery import find_adapter

GOOD = """
    import interpretune as it

    class Acme:
        declaration = it.AdapterDeclaration(name="acme", level="latents", requires=("core",), contract="1.0")

    adapter = Acme()
"""


def test_adapters_are_found_without_import(install):
    install(
        "acme-tools", adapters={"acme": "acme_mod:adapter"}, version="4.5", acme_mod="raise RuntimeError('imported')"
    )
    found = it.installed_adapters()["acme"]
    assert (found.distribution, found.version, found.target) == ("acme-tools", "4.5", "acme_mod:adapter")
    assert "acme_mod" not in sys.modules


def test_core_registers_through_the_same_group_and_the_listing_is_sorted(install):
    install("acme-tools", adapters={"aaa": "acme_mod:adapter", "zzz": "acme_mod:adapter"})
    names = list(it.installed_adapters())
    assert names == sorted(names)
    assert it.installed_adapters()["core"].distribution == "interpretune-core"


def test_the_declaration_is_read_from_source_without_import(install):
    install("acme-tools", adapters={"acme": "acme_mod:adapter"}, acme_mod=GOOD + "    raise RuntimeError('imported')\n")
    declaration = it.installed_adapters()["acme"].read_declaration()
    assert declaration == it.AdapterDeclaration(name="acme", level="latents", requires=("core",), contract="1.0")
    assert "acme_mod" not in sys.modules


@pytest.mark.parametrize(
    "parents", [("acme_pkg/__init__.py", "acme_pkg/deep/__init__.py"), ()], ids=["package", "namespace"]
)
def test_the_declaration_in_a_submodule_is_read_without_importing_its_parents(install, parents):
    files = {**dict.fromkeys(parents, "raise RuntimeError('imported')"), "acme_pkg/deep/it.py": GOOD}
    install("acme-tools", adapters={"acme": "acme_pkg.deep.it:adapter"}, files=files)
    assert it.installed_adapters()["acme"].read_declaration().level is it.Level.latents
    assert not [name for name in sys.modules if name.startswith("acme_pkg")]


@pytest.mark.parametrize(
    "source",
    [
        "this is not python",
        "import interpretune as it\nNAME = 'acme'\nd = it.AdapterDeclaration(name=NAME, level='model', contract='1.0')",
        "import interpretune as it\nd = it.AdapterDeclaration(name='another', level='model', contract='1.0')",
        "import interpretune as it\nd = it.AdapterDeclaration(name='acme', level='no such level', contract='1.0')",
    ],
)
def test_a_declaration_that_cannot_be_read_is_none(install, source):
    install("acme-tools", adapters={"acme": "acme_mod:adapter"}, acme_mod=source)
    assert it.installed_adapters()["acme"].read_declaration() is None


def test_the_declaration_of_a_missing_module_is_none(install):
    install("acme-tools", adapters={"acme": "acme_gone.deep:adapter"})
    assert it.installed_adapters()["acme"].read_declaration() is None


def test_core_s_own_declaration_can_be_read():
    declaration = it.installed_adapters()["core"].read_declaration()
    assert declaration == it.AdapterDeclaration(name="core", level="framework", contract="1.0")


def test_two_distributions_with_one_name_are_refused(install):
    install("acme-one", adapters={"acme": "acme_one:adapter"}, version="1.0")
    install("acme-two", adapters={"acme": "acme_two:adapter"}, version="2.0")
    with pytest.raises(it.DuplicateAdapterError) as caught:
        it.installed_adapters()
    for part in ("'acme'", "acme-one 1.0", "acme-two 2.0", "acme_one:adapter", "pip uninstall acme-one"):
        assert part in str(caught.value)


def test_an_unknown_name_lists_what_is_installed_and_the_nearest(install):
    install("acme-tools", adapters={"acme_probe": "acme_mod:adapter"})
    with pytest.raises(it.UnknownAdapterError) as caught:
        find_adapter("acme_prob")
    message = str(caught.value)
    for part in (
        "'acme_prob'",
        "core",
        "acme_probe",
        "Did you mean 'acme_probe'?",
    ):
        assert part in message
    assert "pip install" not in message


def test_an_unknown_name_without_a_near_one_suggests_none():
    with pytest.raises(it.UnknownAdapterError) as caught:
        find_adapter("qqqqqq")
    assert "Did you mean" not in str(caught.value)
    assert "pip install interpretune-qqqqqq`" in str(caught.value)


def test_a_broken_import_names_its_distribution_and_keeps_its_cause(install):
    install(
        "acme-tools", adapters={"acme": "acme_mod:adapter"}, version="4.5", acme_mod="raise RuntimeError('no GPU here')"
    )
    with pytest.raises(it.AdapterImportError) as caught:
        it.installed_adapters()["acme"].load()
    for part in (
        "'acme' (acme-tools 4.5)",
        "acme_mod:adapter",
        "RuntimeError: no GPU here",
        "pip uninstall acme-tools",
    ):
        assert part in str(caught.value)
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_a_missing_attribute_is_an_import_error(install):
    install("acme-tools", adapters={"acme": "acme_mod:adaptor"}, acme_mod=GOOD)
    with pytest.raises(it.AdapterImportError, match="acme_mod:adaptor") as caught:
        it.installed_adapters()["acme"].load()
    assert isinstance(caught.value.__cause__, AttributeError)


def test_adapter_attributes_are_the_installed_names(install):
    install("acme-tools", adapters={"acme": "acme_mod:adapter"}, acme_mod="raise RuntimeError('imported')")
    assert it.Adapter.acme == "acme"
    assert isinstance(it.Adapter.acme, it.Adapter)
    assert hash(it.Adapter.acme) == hash("acme")
    assert {"core", "acme"} <= set(dir(it.Adapter))
    assert "acme_mod" not in sys.modules


def test_a_wrong_adapter_attribute_lists_the_right_ones(install):
    install("acme-tools", adapters={"acme": "acme_mod:adapter"})
    with pytest.raises(AttributeError, match="Installed: .*acme.*core") as caught:
        _ = it.Adapter.acmee
    assert isinstance(caught.value, it.UnknownAdapterError)
    assert not hasattr(it.Adapter, "acmee")


def test_a_declaration_refuses_names_and_levels_that_cannot_be():
    with pytest.raises(it.ConfigurationError, match="'upstairs'.*framework, model, latents, extension"):
        it.AdapterDeclaration(name="acme", level="upstairs", contract="1.0")
    with pytest.raises(ValueError, match="name"):
        it.AdapterDeclaration(name="Acme Tools", level="model", contract="1.0")


@pytest.mark.parametrize(("contract", "spoken"), [("1.0", True), ("0.9", False), ("2.0", False), ("1.1", False)])
def test_contract_versions(contract, spoken):
    assert it.CONTRACT_VERSION == "1.0"
    assert it.AdapterDeclaration(name="acme", level="model", contract=contract).speaks_current_contract is spoken
