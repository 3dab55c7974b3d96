"""Labels that are booleans, and labels for which there is no answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest
import torch

import interpretune as it
from interpretune.analysis import AnalysisCfg, AnalysisMode, run_analysis
from tests.sessions import write_rows
from tests.tiny import nli_rows, save_tiny_model

QUIET = it.LoopConfig(progress=False, max_epochs=1)


def session_of(
    folder: Path, labels: list[Any], *, datamodule_cls: type = it.ITDataModule, field: str = "label", **settings: Any
) -> it.ITSession:
    """Four rows with the given labels, in batches of three; ``num_labels`` is left open."""
    if not (folder / "model").exists():
        save_tiny_model(folder / "model", "gpt2")
    rows = [{**row, field: label} for row, label in zip(nli_rows(4), labels, strict=True)]
    data = {split: write_rows(folder / f"{split}.jsonl", rows) for split in ("train", "validation")}
    session = it.ITSession(
        it.ITSessionConfig(
            adapter_ctx=("core",),
            module_cls=it.ClassificationModule,
            datamodule_cls=datamodule_cls,
            shared_cfg=it.ITSharedConfig(model_name_or_path=str(folder / "model"), cache_dir=folder / "cache"),
            datamodule_cfg=it.ITDataModuleConfig(
                data=data, text_fields=("premise", "hypothesis"), label_field=field, eval_batch_size=3, **settings
            ),
            module_cfg=it.ITConfig(
                device="cpu",
                generative_step_cfg=it.GenerativeClassificationConfig(answers=("No", "Yes")),
                optimizer_init={"class_path": "torch.optim.SGD", "init_args": {"lr": 0.0}},
            ),
        )
    )
    it.it_init(**session)
    return session


def numbers(session: it.ITSession) -> list[Any]:
    """What the loops and an analysis give."""
    found: list[Any] = [loop(**session, loop_cfg=QUIET).metrics for loop in (it.validate, it.test, it.fit)]
    cfg = AnalysisCfg(mode=AnalysisMode.clean_no_sae)
    run_analysis(**session, analysis_cfg=cfg)
    cache = cfg.analysis_cache
    return [*found, torch.cat(list(cache.logit_diffs)).tolist(), torch.cat(list(cache.orig_labels)).tolist()]


class SavesBooleans(it.ITDataModule):
    """Prepares data as users do who know nothing of label types."""

    def prepare_data(self, target_model: Any = None) -> None:
        super().prepare_data(target_model)
        path = str(self.itdm_cfg.dataset_path)
        loaded = datasets.load_from_disk(path, keep_in_memory=True)
        loaded.cast_column("labels", datasets.Value("bool")).save_to_disk(f"{path}-bool")
        datasets.load_from_disk(f"{path}-bool", keep_in_memory=True).save_to_disk(path)


@pytest.mark.parametrize("field", ["label", "labels"])
@pytest.mark.parametrize("datamodule_cls", [it.ITDataModule, SavesBooleans])
def test_boolean_labels_are_zero_and_one(tmp_path: Path, field: str, datamodule_cls: type) -> None:
    booleans = session_of(tmp_path / "a", [True, False, False, True], field=field, datamodule_cls=datamodule_cls)
    integers = session_of(tmp_path / "b", [1, 0, 0, 1], field=field)
    assert numbers(booleans) == numbers(integers)
    assert numbers(booleans)[-1] == [1, 0, 0, 1]


def test_a_label_without_an_answer_is_named_with_its_row(tmp_path: Path) -> None:
    with pytest.raises(it.DataError, match=r"Row 2 of split 'train' has the label 2; .* 2 answers, .*'No', 'Yes'"):
        session_of(tmp_path, [0, 1, 2, 0])


def test_with_num_labels_the_row_is_named_too(tmp_path: Path) -> None:
    with pytest.raises(it.DataError, match=r"labels outside the mapping: 2;.*range\(2\).*first is in row 2"):
        session_of(tmp_path, [0, 1, 2, 0], num_labels=2)


class HidesLabels(it.ITDataModule):
    """Its rows have labels that are hidden, as hubs mark them."""

    def setup(self, *args: Any, **kwargs: Any) -> None:
        super().setup(*args, **kwargs)
        hidden = self.dataset["validation"].map(lambda row, i: {"labels": -1 if i == 1 else 0}, with_indices=True)
        self.dataset = {**self.dataset, "validation": hidden}


@pytest.mark.parametrize("loop", ["validate", "test"])
def test_a_hidden_label_is_refused_where_it_is_used(tmp_path: Path, loop: str) -> None:
    session = session_of(tmp_path, [0, 1, 0, 1], datamodule_cls=HidesLabels)
    assert len(it.predict(**session, loop_cfg=QUIET).predictions) == 2
    words = "Row 1 of the batch has the label -1; expected one of range"
    with pytest.raises(it.DataError, match=words):
        getattr(it, loop)(**session, loop_cfg=QUIET)
    with pytest.raises(it.DataError, match=words):
        run_analysis(**session, analysis_cfg=AnalysisCfg(mode=AnalysisMode.clean_no_sae))


def test_a_training_step_refuses_labels_without_an_answer(tmp_path: Path) -> None:
    session = session_of(tmp_path, [0, 1, 0, 1])
    batch = next(iter(session.datamodule.val_dataloader()))
    batch["labels"][2] = 2
    with pytest.raises(it.DataError, match="Row 2 of the batch has the label 2"):
        session.module.run_step("training_step", batch, 0)
