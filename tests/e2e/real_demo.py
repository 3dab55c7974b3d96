"""The demo on the real model, which answers well, and whose top units change answers: ``make soak-demo``."""

import json
import os

from interpretune.cli.main import main


def test_the_real_model_is_right_and_its_top_units_change_answers(tmp_path, capsys):
    cache = os.environ.get("INTERPRETUNE_TEST_CACHE", str(tmp_path / "cache"))
    arguments = ["demo", "--json", "--limit", "8", "--output", str(tmp_path / "out"), "--cache-dir", cache]
    assert main(arguments) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["found"] is True
    [held_out] = told["held_out"]
    assert held_out["share_correct"] > 0.9
    flipped = {(item["name"], item["control"]): item["flipped"] for item in held_out["changes"]}
    assert flipped["corrupted", False] > flipped["corrupted", True]
