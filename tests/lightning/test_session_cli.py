"""``LightningCLI`` for sessions: a file with a trainer and a session."""

from __future__ import annotations

import sys

import pytest
import yaml
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger

import interpretune as it
from interpretune_lightning import SessionCLI, load_session
from tests.sessions import write_rows
from tests.tiny import nli_rows, saved_tiny_model

TOKEN = "hf_" + "xYzQ7" * 7
KEY = "of-a-logger-4711"

pytestmark = [
    pytest.mark.usefixtures("quiet"),
    # of calls that Lightning makes when it saves the configuration
    pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning"),
]


class KeyedLogger(CSVLogger):
    """Of a service with accounts."""

    def __init__(self, save_dir: str, name: str = "logs", api_key: str = ""):
        super().__init__(save_dir, name)


class Keyed(Callback):
    """Reports to a service with accounts."""

    def __init__(self, api_key: str):
        assert api_key == KEY


@pytest.fixture
def written(tmp_path) -> dict:
    rows = {name: str(write_rows(tmp_path / f"{name}.jsonl", nli_rows(8))) for name in ("train", "validation")}
    return {
        "seed_everything": 1,
        "trainer": {
            "max_epochs": 1,
            "accelerator": "cpu",
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": str(tmp_path / "run"),
            "logger": {
                "class_path": f"{__name__}.KeyedLogger",
                "init_args": {"save_dir": str(tmp_path / "run"), "api_key": KEY},
            },
            "callbacks": [
                {"class_path": "ModelCheckpoint", "init_args": {"dirpath": str(tmp_path / "made"), "filename": "it"}},
                {"class_path": f"{__name__}.Keyed", "init_args": {"api_key": KEY}},
            ],
        },
        "session": {
            "module_cls": "interpretune.ClassificationModule",
            "shared_cfg": {"model_name_or_path": str(saved_tiny_model("gpt2", padding_side="left", bos_is_pad=True))},
            "datamodule_cfg": {"data": rows, "text_fields": ["premise", "hypothesis"], "num_labels": 2},
            "module_cfg": {
                "generative_step_cfg": {"answers": ["Yes", "No"]},
                "hf_from_pretrained_cfg": {"pretrained_kwargs": {"token": TOKEN}},
                "optimizer_init": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-3}},
                "device": "cpu",
            },
        },
    }


def run(*arguments) -> SessionCLI:
    before, sys.argv = sys.argv, ["train.py", *map(str, arguments)]
    try:
        return SessionCLI()
    finally:
        sys.argv = before


def test_a_file_trains_and_tests_a_session(written, tmp_path):
    file = tmp_path / "train.yaml"
    file.write_text(yaml.safe_dump(written))
    cli = run("fit", "--config", file, "--trainer.max_epochs", "2")
    assert cli.trainer.current_epoch == 2
    assert cli.session.context.names == ("core", "lightning")
    assert cli.session.session_cfg.datamodule_cfg.text_fields == ("premise", "hypothesis")
    texts = [item.read_bytes() for item in (tmp_path / "run").rglob("*") if item.is_file()]
    assert any(b"optimizer_init" in text for text in texts)
    assert any(b"KeyedLogger" in text and b"test_session_cli.Keyed\n" in text for text in texts)
    assert not any(TOKEN.encode() in text or KEY.encode() in text for text in texts)
    checkpoint = tmp_path / "made" / "it.ckpt"
    assert load_session(checkpoint)["model"].lr == 1e-3
    tested = run("test", "--config", file, "--ckpt_path", checkpoint, "--trainer.logger", "false")
    assert "test_loss" in tested.trainer.callback_metrics


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"adapter_ctx": ["core"]}, r"session.adapter_ctx is \['core'\], and Lightning's Trainer .* Add 'lightning'"),
        ({"module_cfg": {"optimiser_init": {}}}, "optimiser_init"),
    ],
)
def test_a_wrong_session_is_told(written, tmp_path, changed, told):
    written["session"] |= changed
    file = tmp_path / "train.yaml"
    file.write_text(yaml.safe_dump(written))
    with pytest.raises(it.ConfigurationError, match=told):
        run("fit", "--config", file)
