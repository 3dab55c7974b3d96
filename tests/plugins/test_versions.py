"""An adapter whose libraries are installed in versions that it does not work with is refused before its import."""

from __future__ import annotations

import json
import sys

import pytest

import interpretune as it
from interpretune.cli.main import main
from interpretune.operations import find_operation
from interpretune.system.requirements import unmet_requirements

ADAPTER = """
    import interpretune as it

    class Acme:
        declaration = it.AdapterDeclaration(name="acme", level="model", contract="1.0")

    adapter = Acme()
"""
RANGE = "acme-lens<5,>=3.9"  # as build tools sort it


def install_adapter(install, *requires: str, source: str = ADAPTER) -> None:
    install("interpretune-acme", adapters={"acme": "acme_mod:adapter"}, requires=requires, acme_mod=source)


@pytest.mark.parametrize("version", ["3.8", "5.0.0", "5.1", "3.9.0b1"])
def test_a_version_outside_the_range_is_refused_before_the_import(install, version):
    install("acme-lens", version=version)
    install_adapter(install, RANGE, source="raise RuntimeError('imported')")
    with pytest.raises(it.AdapterImportError) as caught:
        it.build_context(("acme",))
    assert str(caught.value) == (
        "Adapter 'acme' (interpretune-acme 1.2.3): interpretune-acme 1.2.3 needs acme-lens>=3.9,<5, and acme-lens "
        f"{version} is installed. Run `pip install \"acme-lens>=3.9,<5\"`, or leave 'acme' out of adapter_ctx."
    )
    assert "acme_mod" not in sys.modules


@pytest.mark.parametrize("version", ["3.9", "3.9.0+cpu", "4.3.0", "4.4.0.dev1", "not.a.version", ""])
def test_versions_within_the_range_and_those_that_cannot_be_compared_are_stacked(install, version):
    install("acme-lens", version=version)
    install_adapter(install, RANGE)
    assert it.build_context(("acme",)).names == ("core", "acme")


def test_what_cannot_be_compared_is_left_to_the_import(install):
    """Extras that nobody asked for, other systems, addresses, lines that are no requirement, and what is not there."""
    install("acme-lens", version="1.0")
    install_adapter(
        install,
        'acme-lens>=3.9; extra == "lens"',
        'acme-lens>=3.9; python_version < "3"',
        "acme-lens @ file:///somewhere",
        "acme-lens (and more)",
        "not-installed-anywhere>=2",
    )
    assert it.build_context(("acme",)).names == ("core", "acme")


def test_what_is_imported_is_not_looked_at_again(install):
    install_adapter(install, RANGE)
    it.build_context(("acme",))
    install("acme-lens", version="5.0")  # goes with the next process
    assert it.build_context(("acme",)).names == ("core", "acme")


def test_an_import_that_fails_says_which_library_is_too_new_for_another(install):
    """SAELens with TransformerLens 4: the adapter's own requirements are met."""
    install("acme-base", version="4.3.0")
    install("acme-lens", version="4.0", requires=["acme-base<4,>=2.16"])
    install_adapter(install, RANGE, source="from acme_base import Gone")
    with pytest.raises(it.AdapterImportError) as caught:
        it.build_context(("acme",))
    assert "ModuleNotFoundError: No module named 'acme_base' (acme-lens 4.0 needs acme-base>=2.16,<4, and " in str(
        caught.value
    )
    assert 'acme-base 4.3.0 is installed. Run `pip install "acme-base>=2.16,<4"`)' in str(caught.value)


def test_requirements_that_ask_for_each_other_end(install):
    install("acme-one", requires=["acme-two>=2"])
    install("acme-two", requires=["acme-one>=2"])
    assert [str(item) for item in unmet_requirements("acme-one", indirect=True)] == [
        "acme-one 1.2.3 needs acme-two>=2, and acme-two 1.2.3 is installed",
        "acme-two 1.2.3 needs acme-one>=2, and acme-one 1.2.3 is installed",
    ]
    assert unmet_requirements("no-distribution-of-this-name") == []


def test_operations_of_packages_are_refused_alike(install):
    install("acme-lens", version="5.0")
    install(
        "acme-operations",
        group="interpretune.operations",
        entries={"count": "acme_ops:count"},
        requires=[RANGE],
        acme_ops="raise RuntimeError('imported')",
    )
    with pytest.raises(it.PlanError, match=r'acme-lens>=3.9,<5, and acme-lens 5.0 is installed. Run `pip install "acm'):
        find_operation("count")


def test_the_list_of_adapters_tells_without_an_import(install, capsys):
    install("acme-lens", version="5.0")
    install_adapter(install, RANGE, source=ADAPTER + "    raise RuntimeError('imported')\n")
    assert main(["adapters", "--json"]) == 0
    rows = {row["name"]: row["state"] for row in json.loads(capsys.readouterr().out)}
    assert rows["acme"] == "needs acme-lens>=3.9,<5, 5.0 is installed"
    assert rows["core"] == "ready"
