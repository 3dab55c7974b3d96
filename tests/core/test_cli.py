"""The command line: what programs may read, exit statuses, and what is imported."""

import json
import subprocess
import sys

import pytest

from interpretune.cli import EXIT_ERROR, EXIT_INTERRUPTED, main


def test_adapters_as_json_has_every_column_and_names_a_missing_requirement(adapter_of, capsys):
    adapter_of("acme", level="latents", requires=("nowhere",))
    assert main(["adapters", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["core"]["state"] == "ready"
    assert rows["acme"] == {
        "name": "acme",
        "level": "latents",
        "distribution": "interpretune-acme",
        "version": "1.2.3",
        "requires": ["nowhere"],
        "state": "missing nowhere",
    }


def test_adapters_marks_declarations_that_cannot_be_read_or_spoken(install, adapter_of, capsys):
    adapter_of("future", contract="9.0")
    install("interpretune-broken", adapters={"broken": "broken_mod:adapter"}, broken_mod="def oops(:\n")
    assert main(["adapters", "--json"]) == 0
    states = {row["name"]: row["state"] for row in json.loads(capsys.readouterr().out)}
    assert states["future"] == "contract 9.0 not spoken"
    assert states["broken"] == "declaration not readable"


def test_adapters_imports_no_adapter_and_no_torch():
    code = (
        "import sys; from interpretune.cli import main; main(['adapters']); "
        "print([m for m in sys.modules if m.split('.')[0] in "
        "('torch', 'transformers') or m == 'interpretune.core_adapter' or m.startswith('interpretune_')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]"), done.stdout


def test_explain_prints_the_stack_and_who_answers(adapter_of, capsys):
    adapter_of("acme", body="@it.hookimpl\ndef it_log(self, metrics):\n    pass")
    assert main(["explain", "acme"]) == 0
    shown = capsys.readouterr().out
    assert "interpretune-acme 1.2.3" in shown
    assert any(line.split() == ["it_log", "core,", "acme"] for line in shown.splitlines())
    assert main(["explain", "acme", "--json"]) == 0
    parsed = json.loads(capsys.readouterr().out)
    assert [item["name"] for item in parsed["stack"]] == ["core", "acme"]
    assert parsed["hooks"]["it_log"] == ["core", "acme"]


def test_an_explained_error_exits_with_1_on_standard_error(capsys):
    assert main(["explain", "cora"]) == EXIT_ERROR
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "UnknownAdapterError" in printed.err
    assert "Did you mean 'core'?" in printed.err


def test_a_wrong_command_line_exits_with_2():
    with pytest.raises(SystemExit) as stopped:
        main(["explain"])
    assert stopped.value.code == 2


def test_interruption_exits_with_130(monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("interpretune.stack.build_context", interrupt)
    assert main(["explain", "core"]) == EXIT_INTERRUPTED
    assert "nothing is half-written" in capsys.readouterr().err


def test_numbers_below_1_and_an_output_that_cannot_be_written_are_refused_at_once(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["demo", "--batch-size", "0"])
    assert "0 is not a number from 1" in capsys.readouterr().err
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert main(["demo", "--adapters", "core", "--output", str(blocked / "out")]) == EXIT_ERROR
    assert "--output" in capsys.readouterr().err


def test_help_shows_each_default_once(capsys):
    with pytest.raises(SystemExit):
        main(["demo", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "rows in a batch (default: 4)" in text
    assert "(default: None)" not in text
