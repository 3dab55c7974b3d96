"""``interpretune doctor``: whatever is broken becomes a verdict, and the others go on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

import interpretune as it
from interpretune.cli.doctor_report import as_text
from interpretune.cli.main import main
from interpretune.testing import RULES
from interpretune.testing.conformance import suite_of
from interpretune.testing.doctor import (
    FAILED,
    NOT_CHECKED,
    PASSED,
    SKIPPED,
    Diagnosis,
    Verdict,
    adapters_to_check,
    check_suite,
    diagnose,
    rules_named,
)
from interpretune.testing.rules import importing
from tests.other_process import run_script

NO_NETWORK = """
import socket

def refuse(self, address):
    raise AssertionError(f"a connection to {address}")

socket.socket.connect = refuse
"""


def verdicts_on(adapter: str) -> list[Verdict]:
    """Of all rules but those of imports, which start a process."""
    with tempfile.TemporaryDirectory() as folder:
        rules = [rule for rule in RULES.values() if rule.function.__module__ != importing.__name__]
        return list(check_suite(suite_of(adapter), Path(folder), rules))


def outcomes(adapter: str) -> dict[str, str]:
    return {verdict.rule.id: verdict.outcome for verdict in verdicts_on(adapter)}


def failures(adapter: str) -> dict[str, str]:
    return {verdict.rule.id: verdict.message for verdict in verdicts_on(adapter) if verdict.outcome == FAILED}


def run_doctor(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """In a process without pytest, without a network, and with an empty home."""
    (tmp_path / "home").mkdir()
    (tmp_path / "pytest.py").write_text("raise ImportError('pytest is not installed')")
    (tmp_path / "sitecustomize.py").write_text(NO_NETWORK)
    hidden = ("INTERPRETUNE_CACHE", "HF_HOME", "HF_DATASETS_CACHE", "HF_HUB_OFFLINE", "XDG_CACHE_HOME")
    env = {name: value for name, value in os.environ.items() if name not in hidden}
    return subprocess.run(
        [sys.executable, "-m", "interpretune.cli.main", "doctor", *arguments],
        env={**env, "HOME": str(tmp_path / "home"), "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


SLOW = ("analysis_modes", "larger_batch", "many_layers", "release", "runner", "stacking", "threads")
"""Files of rules that take seconds, or import all other adapters, and need nothing that the others do not."""


def test_core_is_sound_without_pytest_network_or_home(tmp_path):
    """By the rules of frameworks and one of most files; the example ``hello`` keeps the others, on core's model."""
    first = {rule.function.__module__.rpartition(".")[2]: rule.id for rule in reversed(RULES.values())}
    some = {first[file] for file in first if file not in SLOW}
    names = [name for name, rule in RULES.items() if "framework" in rule.levels or name in some]
    run = run_doctor(tmp_path, "core", "--json", *(f"--rule={name}" for name in names))
    assert run.returncode == 0, run.stderr[-2000:]
    report = json.loads(run.stdout)
    assert report["failed"] == 0
    (about,) = report["adapters"]
    assert about["adapter"] == "core"
    assert [item["rule"] for item in about["verdicts"]] == names
    assert sum(item["verdict"] == PASSED for item in about["verdicts"]) > len(names) - 10
    assert all(item["message"] for item in about["verdicts"] if item["verdict"] == SKIPPED)
    files = [file for file in (tmp_path / "home").rglob("*") if file.is_file()]
    assert files == []


@pytest.fixture
def variables_put_back(monkeypatch):
    """The command sets them for its process, which is ours here."""
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_CACHE", "INTERPRETUNE_CACHE", "TQDM_DISABLE"):
        monkeypatch.setenv(name, os.environ.get(name, "1"))


def test_a_broken_adapter_is_a_table_and_an_exit_status(install, variables_put_back, capsys):
    install("interpretune-acme", adapters={"acme": "acme:adapter"}, acme="import a_package_that_nobody_has")
    assert main(["doctor", "acme"]) == 1
    printed = capsys.readouterr().out
    assert "acme (interpretune-acme 1.2.3): 3 passed, 1 failed" in printed
    assert "acme: importable: Adapter 'acme' (interpretune-acme 1.2.3)" in printed
    assert "docs/adapters/rules.md#importable" in printed
    hidden = {verdict.rule.id: verdict.outcome for verdict in diagnose("acme").verdicts}
    count = sum(outcome == NOT_CHECKED for outcome in hidden.values())
    assert count > 50
    assert f"1 failed, {count} not checked" in printed
    (told,) = [line for line in printed.splitlines() if "not checked, as they build on it" in line]
    assert f"({count}): " in told
    assert {"session-runs", "forward-agrees"} <= set(told.partition("): ")[2].split(", "))


def test_an_import_that_fails(install):
    install("interpretune-acme", adapters={"acme": "acme:adapter"}, acme="raise SystemExit('no licence')")
    found = outcomes("acme")
    assert [name for name, outcome in found.items() if outcome == FAILED] == ["importable"]
    assert "no licence" in failures("acme")["importable"]


@pytest.mark.parametrize(
    ("requirement", "words"),
    [
        ("quagga>=2", "quagga>=2, which is not installed"),
        ("pluggy>=99", "requires pluggy>=99; pluggy 1"),
        ("quagga>=2; extra == 'zoo'", ""),
        ("pluggy>=1", ""),
    ],
)
def test_a_requirement_that_is_missing_or_of_another_version(install, tmp_path, requirement, words):
    site = install("interpretune-acme", adapters={"acme": "acme:adapter"}, acme="import quagga")
    metadata = next(site.glob("*.dist-info")) / "METADATA"
    metadata.write_text(f"{metadata.read_text()}Requires-Dist: {requirement}\n")
    [verdict] = check_suite(suite_of("acme"), tmp_path / "bench", [RULES["requirements-installed"]])
    assert verdict.outcome == (FAILED if words else PASSED)
    assert words in verdict.message


def test_a_required_adapter_that_is_missing(adapter_of):
    adapter_of("acme", requires=("absent",))
    assert "'absent'" in failures("acme")["requirements-installed"]


def test_a_name_with_two_owners_is_their_failure_and_stops_sessions_of_all(install, adapter_of):
    adapter_of("acme")
    install("acme-fork", adapters={"acme": "acme_fork:adapter"}, acme_fork="adapter = None")
    found = failures("acme")
    assert list(found) == ["name-is-unique"]
    assert "acme-fork 1.2.3 and by interpretune-acme 1.2.3" in found["name-is-unique"]
    of_core = verdicts_on("core")
    assert [item.message for item in of_core if item.outcome == FAILED] == []
    assert {item.outcome for item in of_core if item.rule.id == "importable"} == {PASSED}
    reasons = {item.message for item in of_core if item.rule.id == "session-runs"}
    assert "DuplicateAdapterError" in next(iter(reasons))


def test_another_contract(adapter_of):
    adapter_of("acme", contract="9.0")
    assert list(failures("acme")) == ["contract-version"]


def test_a_suite_that_is_none(install):
    declared = "it.AdapterDeclaration(name='acme', level='zzz', contract='1.0')"
    source = f"import interpretune as it\n\nclass A:\n    declaration = {declared}\n"
    site = install("interpretune-acme", adapters={"acme": "acme:adapter"}, acme=source)
    entry_points = next(site.glob("*.dist-info")) / "entry_points.txt"
    entry_points.write_text(f"{entry_points.read_text()}\n[interpretune.conformance]\nacme = json:JSONDecoder\n")
    found = failures("acme")
    assert "JSONDecoder" in found["suite-loads"]
    assert "'zzz'" in found["importable"]


def test_all_installed_adapters_or_one_that_is(adapter_of):
    adapter_of("acme")
    assert {"acme", "core"} <= set(adapters_to_check())
    assert adapters_to_check("acme") == ["acme"]
    with pytest.raises(it.UnknownAdapterError, match="Did you mean 'acme'"):
        adapters_to_check("acne")


RAISES_IN_FORWARDS = """
@it.hookimpl
def it_forward(self, module, batch):
    raise RuntimeError("the cable is cut")
"""


def test_a_failing_rule_says_which_rules_it_hides(adapter_of, tmp_path):
    adapter_of("acme", level="model", contract="1.0", body=RAISES_IN_FORWARDS)
    names = ["session-runs", "deterministic", "sessions-stay-apart", "results-arrive", "forward-agrees", "one-row"]
    verdicts = list(check_suite(suite_of("acme"), tmp_path / "bench", rules_named([*names, "loops-evaluate"])))
    diagnosis = Diagnosis("acme", "interpretune-acme 1.2.3", verdicts)
    assert {item.rule.id: item.because for item in verdicts if item.outcome == NOT_CHECKED} == {
        "sessions-stay-apart": ("deterministic",),
        "forward-agrees": ("deterministic",),
        "one-row": ("deterministic", "results-arrive"),
    }
    assert diagnosis.as_dict()["not_checked"] == {
        "deterministic": ["sessions-stay-apart", "forward-agrees", "one-row"],
        "results-arrive": ["one-row"],
    }
    text = as_text([diagnosis])
    assert "not checked, as they build on it (3): sessions-stay-apart, forward-agrees, one-row" in text
    assert "interpretune doctor acme --rule sessions-stay-apart" in text
    assert "1 passed, 2 failed, 3 not checked, 1 skipped" in text


def test_a_rule_is_checked_alone_whatever_it_builds_on(adapter_of):
    adapter_of("acme", level="model", contract="1.0", body=RAISES_IN_FORWARDS)
    asked = rules_named(["logits-where-asked", "deterministic", "splicing-agrees"])
    diagnosis = diagnose("acme", rules=asked)
    assert [(item.rule.id, item.outcome) for item in diagnosis.verdicts] == [
        ("deterministic", FAILED),
        ("logits-where-asked", PASSED),
        ("splicing-agrees", PASSED),
    ]
    assert diagnosis.as_dict()["builds_on"]["logits-where-asked"] == ["sessions-stay-apart"]
    assert "logits-where-asked was checked alone; it builds on sessions-stay-apart" in as_text([diagnosis])


def test_rules_from_the_command_line_and_in_json(adapter_of, variables_put_back, capsys):
    adapter_of("acme", level="model", contract="1.0", body=RAISES_IN_FORWARDS)
    rules = ["--rule", "logits-where-asked", "--rule", "importable"]
    assert main(["doctor", "acme", *rules, "--json"]) == 0
    (about,) = json.loads(capsys.readouterr().out)["adapters"]
    assert [item["rule"] for item in about["verdicts"]] == ["importable", "logits-where-asked"]
    assert about["builds_on"] == {"importable": [], "logits-where-asked": ["sessions-stay-apart"]}


def test_a_rule_that_does_not_exist_is_refused_with_the_nearest():
    with pytest.raises(it.ConfigurationError, match="no rule 'forward-agree'. Nearest: forward-agrees"):
        rules_named(["importable", "forward-agree"])
    with pytest.raises(it.ConfigurationError, match=r"no rule 'zzz'. All of them are in docs/adapters/rules.md"):
        rules_named(["zzz"])


def test_tests_of_hidden_rules_are_listed_by_pytest(install, tmp_path):
    site = install("interpretune-acme", adapters={"acme": "acme:adapter"}, acme="raise RuntimeError('broken')")
    suite = "from interpretune.testing import AdapterConformance\n\n\nclass TestAcme(AdapterConformance):\n"
    (tmp_path / "test_acme.py").write_text(f"{suite}    adapter = 'acme'\n")
    arguments = ["-q", "-p", "no:cacheprovider", "-c", os.devnull, str(tmp_path / "test_acme.py")]
    script = tmp_path / "run_pytest.py"
    script.write_text(f"import sys, pytest\nsys.path.insert(0, {str(site)!r})\nsys.exit(pytest.main({arguments}))\n")
    printed, _ = run_script(script, returncode=1)
    assert "1 failed" in printed
    (told,) = [line for line in printed.splitlines() if line.startswith("TestAcme: not checked")]
    names = told.partition("): ")[2].split(", ")
    assert told.startswith(f"TestAcme: not checked, as they build on importable ({len(names)}): ")
    assert {"session-runs", "forward-agrees"} <= set(names)


def test_text_groups_what_was_skipped_by_its_reason():
    text = as_text([diagnose("huggingface", rules=rules_named(["latent-models-attach", "latent-models-decode"]))])
    assert text.count("only for adapters of the level latents; this is model") == 1
    assert "Skipped" in text
