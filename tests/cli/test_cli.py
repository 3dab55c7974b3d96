"""The command line: what programs may read, exit statuses, and what is imported."""

import json
import subprocess
import sys

import pytest

import interpretune as it
from interpretune.cli.main import EXIT_ERROR, EXIT_INTERRUPTED, main


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
    assert states["broken"] == "broken: broken_mod.py cannot be read as Python: SyntaxError: invalid syntax"


DECLARED = "import interpretune as it\n\nclass A:\n    declaration = it.AdapterDeclaration({})\n\nadapter = A()\n"


def break_entry_points(site, text):
    file = next(site.glob("*.dist-info")) / "entry_points.txt"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())


@pytest.mark.parametrize(
    ("source", "state"),
    [
        (f"x = {'(' * 5000}{')' * 5000}", "broken: acme_mod.py cannot be read as Python: "),
        (f"x = {'-' * 100_000}1", "broken: acme_mod.py cannot be read as Python: "),
        ("x = 1\0", "broken: acme_mod.py cannot be read as Python: "),
        (DECLARED.format("name='acme', level='model'"), "broken: its declaration is refused: TypeError"),
        (DECLARED.format("name='acme', level='model', contract='1'"), "broken: its declaration is refused: ValueError"),
        (DECLARED.format("name='acme', level='attic', contract='1.0'"), "broken: its declaration is refused: Conf"),
        (DECLARED.format("name='acme', level='model', contract='1.0', requires=5"), "broken: its declaration is "),
        (DECLARED.format("name=NAME, level='model', contract='1.0'"), "declaration not readable: acme_mod.py has no l"),
    ],
    ids=["brackets", "signs", "nul", "no contract", "contract", "level", "requires", "computed"],
)
def test_adapters_lists_a_broken_source_and_goes_on(install, adapter_of, capsys, source, state):
    install("acme-tools", adapters={"acme": "acme_mod:adapter"}, acme_mod=source)
    adapter_of("zebra")
    assert main(["adapters", "--json"]) == 0
    states = {row["name"]: row["state"] for row in json.loads(capsys.readouterr().out)}
    assert states["acme"].startswith(state)
    assert states["core"] == states["zebra"] == "ready"


@pytest.mark.parametrize(
    "text",
    ["[interpretune.adapters]\nacme\n", b"[interpretune.adapters]\nacme = acme_mod:\xff\n"],
    ids=["no equals sign", "not utf-8"],
)
def test_adapters_lists_malformed_entry_points_and_goes_on(install, adapter_of, capsys, text):
    break_entry_points(install("acme-tools", adapters={}), text)
    adapter_of("zebra")
    assert main(["adapters", "--json"]) == 0
    rows = {row["distribution"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["acme-tools"]["version"] == "1.2.3"
    assert rows["acme-tools"]["state"].startswith("broken: entry_points.txt: ")
    assert rows["interpretune-zebra"]["state"] == rows["interpretune-core"]["state"] == "ready"
    assert main(["explain", "zebra"]) == 0
    assert main(["explain", "acme"]) == EXIT_ERROR
    assert "entry points of acme-tools 1.2.3 (entry_points.txt: " in capsys.readouterr().err


def test_malformed_entry_points_of_others_are_none_of_ours(install, capsys):
    break_entry_points(install("acme-tools", adapters={}), "[console_scripts]\nacme\n")
    assert main(["adapters", "--json"]) == 0
    assert "acme-tools" not in capsys.readouterr().out


def test_adapters_lists_a_name_with_two_owners_and_goes_on(adapter_of, install, capsys):
    adapter_of("acme")
    install("acme-fork", adapters={"acme": "acme_fork:adapter"}, acme_fork="adapter = None")
    assert main(["adapters", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    states = [row["state"] for row in rows if row["name"] == "acme"]
    assert states == ["broken: registered by acme-fork and interpretune-acme"] * 2
    assert next(row["state"] for row in rows if row["name"] == "core") == "ready"


@pytest.mark.parametrize(
    "source",
    [
        "import sys\nsys.exit(0)",
        "class Stop(BaseException):\n    pass\n\nraise Stop('no')",
        "class A:\n    @property\n    def declaration(self):\n        raise SystemExit(0)\n\nadapter = A()",
        DECLARED.format("name='acme', level='model', contract='1.0'")
        + "A.it_setup_module = property(lambda self: 1 / 0)\n",
    ],
    ids=["exits", "base exception", "declaration raises", "attribute raises"],
)
def test_an_adapter_that_stops_the_program_is_named(install, capsys, source):
    install("acme-tools", adapters={"acme": "acme_mod:adapter"}, acme_mod=source)
    assert main(["explain", "acme"]) == EXIT_ERROR
    assert "Adapter 'acme' (acme-tools 1.2.3)" in capsys.readouterr().err


def test_an_interrupt_while_an_adapter_is_imported_is_an_interrupt(install):
    install("acme-tools", adapters={"acme": "acme_mod:adapter"}, acme_mod="raise KeyboardInterrupt")
    assert main(["explain", "acme"]) == EXIT_INTERRUPTED


def test_adapters_imports_no_adapter_and_no_torch():
    code = (
        "import sys; from interpretune.cli.main import main; main(['adapters']); "
        "print([m for m in sys.modules if m.split('.')[0] in "
        "('torch', 'transformers') or m == 'interpretune.adapters.core' or m.startswith('interpretune_')])"
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

    monkeypatch.setattr("interpretune.plugins.stack.build_context", interrupt)
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
    assert "folder for results (default: interpretune-demo)" in text
    assert "(default: None)" not in text


def test_what_is_noted_at_an_error_is_told(monkeypatch, capsys):
    def fail(options):
        error = it.AnalysisError("no room")
        error.add_note("and a second one")
        raise error

    monkeypatch.setattr("interpretune.cli.main._adapters", fail)
    assert main(["adapters"]) == EXIT_ERROR
    assert capsys.readouterr().err == "error: AnalysisError: no room\nand a second one\n"
