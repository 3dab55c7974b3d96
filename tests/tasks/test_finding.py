"""Tasks of installed packages, and the command that lists them."""

from __future__ import annotations

import json
import sys

import pytest

import interpretune as it
from interpretune.cli.main import EXIT_ERROR, main
from interpretune.tasks import find_task, offered_tasks

GROUP = "interpretune.tasks"
COLORS = """
    from interpretune.questions import PromptRow
    from interpretune.tasks import Task

    def make(part):
        return [PromptRow(f"Grass {part} is", (" green", " red"))]

    task = Task("colors", "The color of things.", make)
"""


def listed(capsys) -> dict[str, dict]:
    assert main(["tasks", "--json"]) == 0
    return {row["name"]: row for row in json.loads(capsys.readouterr().out)}


def test_tasks_of_others_are_found_without_import(install):
    install("acme", group=GROUP, entries={"colors": "acme_mod:task"}, acme_mod=COLORS)
    offer = offered_tasks()["colors"]
    assert (offer.distribution, offer.version, offer.target) == ("acme", "1.2.3", "acme_mod:task")
    assert "acme_mod" not in sys.modules
    assert [row.prompt for row in find_task("colors").held_out()] == ["Grass held_out is"]


@pytest.mark.parametrize(
    ("name", "source", "told"),
    [
        ("colors", "raise SystemExit(3)", r"'colors' \(acme 1.2.3, acme_mod:task\) cannot be imported: SystemExit: 3"),
        ("colors", "other = 1", r"cannot be imported: AttributeError"),
        ("colors", "task = 1", r"is a int; its entry point must name a Task"),
        ("hues", COLORS, r"calls itself 'colors'; the two names must be equal"),
        ("colors", COLORS.replace("return [", "return [1 / 0, "), r"cannot be made: ZeroDivisionError"),
    ],
    ids=["leaves", "absent", "number", "name", "rows"],
)
def test_a_broken_task_is_listed_and_others_go_on(install, capsys, name, source, told):
    install("acme", group=GROUP, entries={name: "acme_mod:task"}, acme_mod=source)
    with pytest.raises((it.TaskError, it.DataError), match=told):
        find_task(name).held_out()
    rows = listed(capsys)
    assert rows[name]["state"].startswith("broken: ")
    assert rows["agreement"]["state"] == "ready"


def test_a_name_of_two_distributions_is_refused(install, capsys):
    for distribution in ("acme", "other"):
        module = f"{distribution}_mod"
        install(distribution, group=GROUP, entries={"colors": f"{module}:task"}, **{module: COLORS})
    with pytest.raises(it.TaskError, match=r"'colors' is offered by \w+ and \w+\. Uninstall one of them"):
        find_task("colors")
    assert listed(capsys)["colors"]["state"].startswith("broken: The task 'colors' is offered by ")


def test_nobody_takes_the_place_of_a_task_of_core(install):
    install("acme", group=GROUP, entries={"ioi": "acme_mod:task"}, acme_mod=COLORS)
    with pytest.raises(it.TaskError, match=r"offered by interpretune-core and acme"):
        find_task("ioi")
    assert find_task("capitals").name == "capitals"


def test_entry_points_that_cannot_be_read_are_listed(install, capsys):
    site = install("acme", group=GROUP, entries={"colors": "acme_mod:task"})
    next(site.glob("*.dist-info/entry_points.txt")).write_text(f"[{GROUP}]\ncolors\n")
    rows = listed(capsys)
    assert rows["?"]["distribution"] == "acme"
    assert rows["?"]["state"].startswith("broken: entry_points.txt: ")
    with pytest.raises(it.TaskError, match=r"The entry points of acme 1.2.3 .* cannot be read"):
        find_task("colors")


def test_an_unknown_task_names_the_nearest():
    with pytest.raises(it.TaskError, match=r"no task 'agreements'\. Tasks: agreement, .* Did you mean 'agreement'\?"):
        find_task("agreements")


def test_the_list_shows_a_row_of_each_task(capsys):
    rows = listed(capsys)
    assert list(rows)[:7] == ["agreement", "ioi", "greater_than", "capitals", "entailment", "rte", "boolq"]
    assert rows["agreement"]["example"]["answers"] == [" are", " is"]
    assert rows["rte"]["example"] is None
    assert rows["rte"]["state"] == "rows are downloaded"
    assert main(["tasks"]) == 0
    out = capsys.readouterr().out
    assert " -> ' are' (not ' is')" in out


def test_rows_of_a_task_are_shown(capsys):
    assert main(["tasks", "ioi", "--rows", "3", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["prompt"] for row in rows] == [row.prompt for row in find_task("ioi").held_out(3)]
    assert main(["tasks", "ioi", "--rows", "2"]) == 0
    out = capsys.readouterr().out
    assert rows[1]["corrupted"] in out
    assert rows[2]["prompt"] not in out


def test_the_command_says_what_is_wrong(capsys):
    assert main(["tasks", "attic"]) == EXIT_ERROR
    assert "There is no task 'attic'" in capsys.readouterr().err
    assert main(["tasks", "capitals", "--rows", "100"]) == EXIT_ERROR
    assert "has 72 rows of held_out; 100 are asked for" in capsys.readouterr().err
