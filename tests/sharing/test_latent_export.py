"""Cards of latents for other tools: valid by their formats, the same numbers, all or nothing."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from attrs import evolve
from safetensors.numpy import load, load_file
from torch import Tensor

import interpretune as it
from interpretune.cli.main import main
from interpretune.evidence import Evidence, PromptTokens
from interpretune.sharing import neuronpedia
from interpretune.sharing.delphi import delphi_files
from interpretune.sharing.exported_latents import ExportedLatents
from interpretune.testing.tiny_models import tiny_llama, tiny_tokenizer
from tests.tiny_latents import RandomDictionary

ANSWERS = (" house", " tree")
ROWS = [
    it.PromptRow("Ada sees the red dog near the", ANSWERS, 1),
    it.PromptRow("Bo likes a boat and the", ANSWERS, 0),
    it.PromptRow("Max has the", ANSWERS, 0),
]
PAGE = "https://www.neuronpedia.org/tiny-2/2-res-abc/{latent}"
TABLES = json.loads(Path(__file__).with_name("neuronpedia_tables.json").read_text())


class Linear(RandomDictionary):
    def decoder_rows(self, latents: Tensor) -> Tensor:
        return self.w_dec[latents]


def dictionaries() -> list[Linear]:
    return [Linear("layers.1.resid_post"), Linear("layers.2.resid_post", d_sae=16, seed=1, url=PAGE)]


@pytest.fixture(scope="module")
def effects(tmp_path_factory: pytest.TempPathFactory) -> it.Effects:
    store = tmp_path_factory.mktemp("export") / "store"
    found = it.effects(tiny_llama(), tiny_tokenizer(), ROWS, units=dictionaries(), store=store)
    it.evidence_of(found, cards=12, top=1, steer=0)
    return found


def rows_in(path: Path) -> list[dict[str, Any]]:
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return [json.loads(line) for line in text.decode().splitlines()]


def tables_in(source: Path) -> dict[str, list[dict[str, Any]]]:
    """Rows of each table of a source, as Neuronpedia's import looks for them."""
    files = [*source.glob("*.jsonl"), *source.glob("*/*.jsonl.gz")]
    return {(file.parent.name if file.suffix == ".gz" else file.stem): rows_in(file) for file in files}


def test_what_neuronpedia_imports_is_valid_by_its_tables(effects, tmp_path):
    for source in it.export_latents(effects, tmp_path / "out", "neuronpedia"):
        found = tables_in(source)
        assert found.keys() == {"release", "model", "sourceset", "source", "features", "activations"}
        for table, rows in found.items():
            check = jsonschema.Draft202012Validator({"$ref": f"#/$defs/{table}", "$defs": TABLES["$defs"]})
            for row in rows:
                check.validate(row)
            assert len({tuple(row) for row in rows}) == 1  # the import takes its columns from the first row
        [model], [release], [own], [told] = (found[name] for name in ("model", "release", "sourceset", "source"))
        assert (own["modelId"], own["releaseName"]) == (model["id"], release["name"])
        assert (told["modelId"], told["setName"], told["id"]) == (model["id"], own["name"], source.name)
        assert source.parent.name == model["id"]
        keys = [(row["modelId"], row["layer"], row["index"]) for row in found["features"]]
        assert len({*keys}) == len(keys)
        assert {(row["modelId"], row["layer"], row["index"]) for row in found["activations"]} <= {*keys}
        assert len({row["id"] for row in found["activations"]}) == len(found["activations"])


def test_neuronpedia_gets_the_numbers_of_the_cards(effects, tmp_path):
    cards = {(card.units, str(card.unit)): card for card in Evidence.of(effects.store).cards}
    sources = it.export_latents(effects, tmp_path / "out", "neuronpedia")
    features = 0
    for source, model in zip(sorted(sources, key=lambda path: path.name), dictionaries(), strict=True):
        found = tables_in(source)
        for row in found["features"]:
            features += 1
            card = cards[model.name, row["index"]]
            assert row["frac_nonzero"] == card.share_active
            assert sum(row["freq_hist_data_bar_heights"]) == sum(card.counts) * card.share_active
            assert sum(row["logits_hist_data_bar_heights"]) == len(tiny_tokenizer())
            assert row["pos_values"] == sorted(row["pos_values"], reverse=True)
            told = {item.token: item.value for item in (*card.promoted_direct, *card.suppressed_direct)}
            assert told == dict(
                zip(row["pos_str"] + row["neg_str"], row["pos_values"] + row["neg_values"], strict=True)
            )
            if told:  # it is active at some answer position
                low, high = row["logits_hist_data_bar_values"][0], row["logits_hist_data_bar_values"][-1]
                assert low < high
                assert high <= row["pos_values"][0] or not row["pos_values"]
            shown = [each for each in found["activations"] if each["index"] == row["index"]]
            assert [each["values"] for each in shown] == [list(prompt.activations) for prompt in card.prompts]
            assert ["".join(each["tokens"]) for each in shown] == ["".join(prompt.tokens) for prompt in card.prompts]
            assert shown[0]["maxValue"] == row["maxActApprox"] == shown[0]["values"][shown[0]["maxValueTokenIndex"]]
            assert f"{card.unit}: {card.mean_effect:.4g} (" in found["source"][0]["notes"]
    assert features == len(cards) == 12


def test_sources_are_named_as_their_pages_or_as_told(effects, tmp_path):
    found = it.export_latents(effects, tmp_path / "own", "neuronpedia")
    assert [path.relative_to(tmp_path / "own").as_posix() for path in found] == [
        "llama/1-resid_post",
        "tiny-2/2-res-abc",
    ]
    names = {"model_id": "mine-1.5b", "source_set": "run-7", "creator_id": "somebody"}
    found = it.export_latents([effects.store.folder], tmp_path / "told", "neuronpedia", **names)
    assert [path.name for path in found] == ["1-run-7", "2-run-7"]
    assert {path.parent.name for path in found} == {"mine-1.5b"}
    assert rows_in(found[0] / "source.jsonl")[0]["creatorId"] == "somebody"


def test_delphi_reads_what_plain_hooks_see(effects, tmp_path):
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    ids = [tokenizer(row.prompt)["input_ids"] for row in ROWS]
    folders = it.export_latents(effects, tmp_path / "latents", "delphi")
    cards = Evidence.of(effects.store).cards
    assert [folder.name for folder in folders] == ["layers.1.resid_post", "layers.2.resid_post"]
    for folder, coder in zip(folders, dictionaries(), strict=True):
        config = json.loads((folder / "config.json").read_text())
        tokens, records = read_as_delphi(folder, coder.d_sae)
        assert tokens.shape == (len(ROWS), config["cache_ctx_len"]) == (3, 32)
        assert {*records} == {card.unit for card in cards if card.units == coder.name}
        for row, (prompt, context) in enumerate(zip(ids, tokens, strict=True)):
            assert context.tolist() == prompt + [tokenizer.pad_token_id] * (32 - len(prompt))
            seen = latents_of(model, coder, prompt)
            for latent, examples in records.items():
                expected = np.zeros(32)
                expected[: len(prompt)] = seen[:, latent]
                assert examples.get(row, np.zeros(32)) == pytest.approx(expected, rel=1e-4, abs=1e-5)


def read_as_delphi(folder: Path, width: int) -> tuple[Any, dict[int, dict[int, Any]]]:
    """Contexts, and the activations in each window of 32 tokens by latent, as ``LatentDataset`` takes them apart."""
    tokens, records = None, {}
    for file in folder.glob("*.safetensors"):
        first, last = map(int, file.stem.split("_"))
        assert (first, last) == (0, width - 1)
        data = load_file(file)
        tokens, locations = data["tokens"], data["locations"].astype(np.int64)
        flat = locations[:, 0] * tokens.shape[1] + locations[:, 1]
        for latent in np.unique(locations[:, 2]):
            own = locations[:, 2] == latent
            windows = records.setdefault(int(latent) + first, {})
            for at, value in zip(flat[own], data["activations"][own], strict=True):
                windows.setdefault(int(at) // 32, np.zeros(32))[at % 32] = value
    return tokens, records


@torch.no_grad()
def latents_of(model: Any, coder: Linear, ids: list[int]) -> Any:
    """``[pos, d_sae]`` with all dictionaries before it spliced in."""
    first, second = dictionaries()
    seen = {}

    def replace(item: Linear) -> Any:
        def hook(_: Any, __: Any, output: Any) -> Any:
            x = output[0] if isinstance(output, tuple) else output
            seen[item.hook_point] = item.encode(x)
            decoded = item.decode(seen[item.hook_point])
            return (decoded, *output[1:]) if isinstance(output, tuple) else decoded

        return hook

    handles = [model.model.layers[i].register_forward_hook(replace(item)) for i, item in ((1, first), (2, second))]
    model(input_ids=torch.tensor([ids]))
    for handle in handles:
        handle.remove()
    return seen[coder.hook_point][0].numpy()


def test_the_command_exports_stores(effects, tmp_path, capsys):
    store = str(effects.store.folder)
    assert main(["export", store, "--format", "delphi", "-o", str(tmp_path / "out"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [Path(folder).name for folder in told["folders"]] == ["layers.1.resid_post", "layers.2.resid_post"]
    named = ["--model-id", "m", "--source-set", "s", "--creator-id", "c"]
    assert main(["export", store, "--format", "neuronpedia", "-o", str(tmp_path / "np"), *named]) == 0
    assert capsys.readouterr().out.split() == [str(tmp_path / "np" / "m" / f"{layer}-s") for layer in (1, 2)]


def test_what_lacks_cards_of_latents_says_what_writes_them(effects, tmp_path):
    heads = it.effects(tiny_llama(), tiny_tokenizer(), ROWS, units=it.Heads(1))
    it.evidence_of(heads, cards=1, top=1, steer=0)
    bare = it.effects(tiny_llama(), tiny_tokenizer(), ROWS, units=dictionaries()[0])
    for item in (heads, bare, [effects, bare]):
        with pytest.raises(it.StoreError, match=r"no cards of latents.*evidence_of.*evidence: \{cards: 10\}"):
            it.export_latents(item, tmp_path / "out", "delphi")
    with pytest.raises(it.StoreError, match="Two dictionaries would be written to layers.1.resid_post"):
        it.export_latents([effects, effects], tmp_path / "out", "delphi")
    with pytest.raises(it.StoreError, match="no store was given"):
        it.export_latents([], tmp_path / "out", "delphi")
    with pytest.raises(it.ConfigurationError, match=r"model_id is '\.\./there'"):
        it.export_latents(effects, tmp_path / "out", "neuronpedia", model_id="../there")
    with pytest.raises(it.ConfigurationError, match="no format 'csv'"):
        it.export_latents(effects, tmp_path / "out", "csv")
    assert list(tmp_path.iterdir()) == []


def test_an_export_is_whole_or_absent(effects, tmp_path, monkeypatch):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine").write_text("kept")
    with pytest.raises(it.StoreError, match="is there already"):
        it.export_latents(effects, tmp_path / "taken", "delphi")
    written = Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        if path.name == "source.jsonl":
            raise OSError(28, "No space left on device")
        return written(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(it.StoreError, match="No space left"):
        it.export_latents(effects, tmp_path / "out", "neuronpedia")
    assert [path.name for path in tmp_path.rglob("*")] == ["taken", "mine"]


def test_texts_and_numbers_of_data_do_no_harm(effects):
    [latents, _] = ExportedLatents.of(effects)
    [first, *_] = latents.cards
    texts = ('"\n', "\x00", "\ud800", "\u2028", "</script>", "é")
    prompt = evolve(first.prompts[0], tokens=texts, activations=tuple(map(float, range(6))), position=5)
    odd = evolve(latents, place="../../etc.3.x", cards=(evolve(first, prompts=(prompt,)),))
    names = neuronpedia.SourceNames.of(odd, None, None, "me")
    files = neuronpedia.neuronpedia_files(odd, names)
    path = next(name for name in files if "activations" in name)
    [row] = [json.loads(line) for line in gzip.decompress(files[path]).decode().split("\n")[:-1]]
    assert row["tokens"] == ['"\n', "\ufffd", "?", "\u2028", "</script>", "é"]
    assert not any(".." in name for name in (*files, *delphi_files(odd)))
    assert {*delphi_files(evolve(latents, place="/../"))} == {"latents/config.json", "latents/0_23.safetensors"}
    large = evolve(latents, cards=(evolve(first, unit=2**16),), prompts=PromptTokens(((5,) * 33, (6,)), 0))
    config, arrays = (content for _, content in sorted(delphi_files(large).items(), reverse=True))
    assert json.loads(config)["cache_ctx_len"] == 64
    locations = load(arrays)["locations"]
    assert (locations.dtype, locations[:, 2].tolist()) == (np.uint32, [2**16] * len(first.active.rows))
    unknown = evolve(latents, cards=(evolve(first, share_active=float("nan")),))
    with pytest.raises(it.StoreError, match="NaN or infinite"):
        neuronpedia.neuronpedia_files(unknown, names)
    with pytest.raises(ValueError, match="NaN or infinite"):
        evolve(first.active, values=(float("nan"), *first.active.values[1:]))
    odd = evolve(latents, place="somewhere")
    with pytest.raises(it.StoreError, match="names none"):
        neuronpedia.SourceNames.of(odd, None, None, "me")
