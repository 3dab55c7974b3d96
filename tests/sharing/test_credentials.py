"""No credential is written: not into stores, cards, archives, summaries or messages."""

from __future__ import annotations

import json
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

import interpretune as it
from interpretune.analysis import (
    AnalysisCache,
    AnalysisCfg,
    AnalysisMode,
    AnalysisRunner,
    load_store,
    plan_of,
    save_store,
)
from interpretune.cli.main import main
from interpretune.operations import operation
from interpretune.store import Manifest
from interpretune.store.fields import Field
from interpretune.store.folder import MANIFEST
from interpretune.system.credentials import HIDDEN, names_a_credential, text_without_credentials, without_credentials
from tests.sessions import make_session
from tests.tiny_latents import RandomDictionary

PLANTED = {
    "token of the model": "hf_QwErTyUiOpAsDfGhJkLzXcVbNm12345678",
    "token of the tokenizer": "plain-words-0815",
    "password of the user": "correct-horse-0815",
    "key of the hub": "sk-proj-abcdefghijklmnopqrstuvwx0815",
    "key of the latents": "AKIAIOSFODNN7EXAMPLE",
    "key of the operation": "ghp_abcdefghijklmnopqrstuvwxyz0123450815",
    "header": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.c2lnbmF0dXJlMDgxNQ",
    "object": "an-object-keeps-0815",
}


class Client:
    """What JSON has not is noted in words."""

    def __repr__(self) -> str:
        return f"Client(user='me', api_key={PLANTED['object']!r})"


@dataclass(kw_only=True)
class Remote:
    """Settings of the user's own."""

    password: str = PLANTED["password of the user"]
    address: str = (
        f"https://me:{PLANTED['password of the user']}@example.org/?token={PLANTED['token of the tokenizer']}"
    )
    headers: dict[str, Any] = field(default_factory=lambda: {"X": [f"Bearer {PLANTED['header']}"]})
    client: Any = field(default_factory=Client)
    hub: dict[str, Any] = field(default_factory=lambda: {"urls": [f"https://x/?key={PLANTED['key of the hub']}"]})
    pad_token: str = "<pad>"
    token: bool = True


@dataclass(kw_only=True)
class RemoteConfig(it.ITDataModuleConfig):
    remote: Remote = field(default_factory=Remote)


class KeyedDictionary(RandomDictionary):
    endpoint = "https://example.org"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.access = PLANTED["key of the latents"]


@operation(writes=Field("answered", "float"))
def answered(logit_diffs, *, client_key: str = PLANTED["key of the operation"]):
    """Asks a service."""
    return logit_diffs


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything that a run of a session with planted credentials writes."""
    folder = tmp_path_factory.mktemp("credentials")
    session = make_session(
        folder / "session",
        init=False,
        hf_from_pretrained_cfg=it.HFFromPretrainedConfig(
            pretrained_kwargs={"token": PLANTED["token of the model"], "use_safetensors": True}
        ),
        tokenizer_kwargs={"token": PLANTED["token of the tokenizer"], "padding_side": "left"},
    )
    session.datamodule.itdm_cfg.tokenizer_kwargs = {"token": PLANTED["token of the tokenizer"]}
    session.datamodule.itdm_cfg.remote = Remote()
    session.datamodule.itdm_cfg.__class__ = RemoteConfig
    it.it_init(**session)
    session.module.latent_models = [KeyedDictionary("blocks.0.hook_resid_post", seed=1)]
    plan = plan_of(AnalysisCfg(mode=AnalysisMode.clean_w_sae), session.module.latent_models, [answered])
    stores = AnalysisRunner(**session, root=folder / "analyses").run({"clean": plan})
    save_store(stores["clean"], folder / "shared")
    save_store(stores["clean"], folder / "shared.tar.gz", title=f"by {PLANTED['key of the hub']}")
    AnalysisCache.of(stores["clean"]).write(folder / "written")
    it.it_session_end(**session)
    return folder


def contents(folder: Path) -> dict[str, str]:
    """Text of all files, those in archives and the texts of stores too."""
    found = {str(file): file.read_bytes().decode("latin-1") for file in folder.rglob("*") if file.is_file()}
    for archive in folder.rglob("*.tar.gz"):
        with tarfile.open(archive) as packed:
            for member in packed.getmembers():
                found[f"{archive}/{member.name}"] = packed.extractfile(member).read().decode("latin-1")
    return found


@pytest.mark.parametrize("kind", PLANTED)
def test_nothing_that_a_run_writes_has_a_planted_credential(run, kind):
    files = contents(run)
    assert {Path(name).name for name in files} >= {MANIFEST, "README.md"}
    assert [name for name, text in files.items() if PLANTED[kind] in text] == []


def test_what_is_no_credential_is_still_told(run):
    about = load_store(run / "shared").manifest.about
    module, datamodule = about["configs"]["module"], about["configs"]["datamodule"]
    assert module["hf_from_pretrained_cfg"]["pretrained_kwargs"] == {"token": HIDDEN, "use_safetensors": True}
    assert datamodule["tokenizer_kwargs"] == {"token": HIDDEN}
    assert HIDDEN in (run / "shared" / "README.md").read_text().replace("\\", "")


def test_a_store_of_an_older_version_is_shared_without_its_credentials(run, tmp_path, monkeypatch):
    monkeypatch.setattr("interpretune.store.manifest.without_credentials", lambda value: value)
    store = load_store(run / "shared")
    old = Manifest(
        **{name: getattr(store.manifest, name) for name in ("key", "fields", "n_batches", "world_size")}
        | {
            "about": {"token": PLANTED["token of the tokenizer"]},
            "complete": True,
            "shards": store.manifest.shards,
            "tables": store.manifest.tables,
        }
    )
    save_store(store, tmp_path / "old")
    old.write(tmp_path / "old")
    assert PLANTED["token of the tokenizer"] in (tmp_path / "old" / MANIFEST).read_text()
    monkeypatch.undo()
    save_store(load_store(tmp_path / "old"), tmp_path / "new")
    assert load_store(tmp_path / "new").manifest.about == {"token": HIDDEN}
    assert not [name for name, text in contents(tmp_path / "new").items() if PLANTED["token of the tokenizer"] in text]


def test_messages_of_the_command_line_have_no_credentials(monkeypatch, capsys):
    def refuse(*_):
        raise it.ConfigurationError(f"unknown field {{'token': '{PLANTED['token of the tokenizer']}'}}")

    monkeypatch.setattr("interpretune.plugins.stack.build_context", refuse)
    assert main(["explain", "core"]) == 1
    assert PLANTED["token of the tokenizer"] not in capsys.readouterr().err


@pytest.mark.parametrize(
    "name",
    "token hf_token use_auth_token authToken accessToken HF_TOKEN api_key apiKey X-Api-Key Authorization client_secret "
    "aws_secret_access_key AWS_ACCESS_KEY_ID private_key password db_password wandb_api_key sas_token Cookie api_keys "
    "apiKeys passwords hf_tokens access_tokens wandb_key".split(),
)
def test_names_of_credentials(name):
    assert names_a_credential(name)
    assert without_credentials({"a": [{name: "something"}]}) == {"a": [{name: HIDDEN}]}
    assert "something" not in text_without_credentials(f"Settings({name}='something', other=1)")
    assert "something" not in text_without_credentials(json.dumps({name: "something"}))


@pytest.mark.parametrize(
    "name",
    "pad_token bos_token eos_token_id max_new_tokens tokens special_tokens token_type_ids key keys tokenizer_name "
    "image_token n_tokens token_ids secretary author passing mask_token add_bos_token sha256 last_token "
    "answer_token".split(),
)
def test_names_that_look_like_those_of_credentials(name):
    assert without_credentials({name: "something"}) == {name: "something"}
    assert text_without_credentials(f"{name}='something'") == f"{name}='something'"


@pytest.mark.parametrize(
    "text",
    [
        "blocks.15.hook_resid_post.hook_sae_acts_post",
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        "models/hf_transformers",
        "0123456789abcdef0123456789abcdef01234567",
        "Question: which key? Answer token: Yes",
        "https://example.org/a/b?c=d",
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    ],
)
def test_texts_without_credentials_stay_as_they_are(text):
    assert text_without_credentials(text) == text


@pytest.mark.parametrize(
    "text", [*PLANTED.values(), "-----BEGIN RSA PRIVATE KEY-----\nabc\n-----END RSA PRIVATE KEY-----"]
)
def test_taking_credentials_out_twice_is_taking_them_out_once(text):
    once = text_without_credentials(f"https://me:{text}@example.org password={text!r}")
    assert text not in once
    assert text_without_credentials(once) == once


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"api_keys": ["abc", "def"]}, {"api_keys": HIDDEN}),
        ({"tokens": {"hub": "s3cr3tvalue"}}, {"tokens": {"hub": HIDDEN}}),
        ({"headers": [("Authorization", "abcdef123456")]}, {"headers": [["Authorization", HIDDEN]]}),
        ({"headers": [(b"x", b"y"), ("Cookie", b"abcdef123456")]}, {"headers": [[b"x", b"y"], ["Cookie", HIDDEN]]}),
        (["demo", "--token", "abcdefghi", "--limit", "3"], ["demo", "--token", HIDDEN, "--limit", "3"]),
        ({"cmd": "demo --token abcdef123456 --limit 3"}, {"cmd": f"demo --token {HIDDEN} --limit 3"}),
        ({"sent": PLANTED["token of the model"].encode()}, {"sent": HIDDEN.encode()}),
        ("Authorization: token abcdef", f"Authorization: {HIDDEN}"),
        ("sent with Authorization: Basic abcdef123456=", f"sent with Authorization: {HIDDEN}"),
        ("Client(api_keys=['abc', 'def'], n=1)", f"Client(api_keys={HIDDEN}, n=1)"),
        ("address=https://h/p?token=abc123", f"address=https://h/p?token={HIDDEN}"),
    ],
)
def test_credentials_in_lists_pairs_and_arguments(value, expected):
    assert without_credentials(value) == expected


@pytest.mark.parametrize(
    "value",
    [
        {"model": "hf_gpt2medium1"},
        {"tokens": [5, 7], "token": 5, "hf_tokens": [[1, 2]], "n_tokens": 3},
        {"tokens": {"train": 1000, "words": ["Hello", "world"]}},
        {"label": ["token", "password"], "pair": ["secret", "word"]},
        ["--token", "--limit", "3"],
        "token: 5, tokens: [5, 7], token=[5, 7, 100000000]",
        "Pass --token to log in, or --password and so on.",
        {"raw": b"\x00\xff"},
    ],
)
def test_numbers_words_and_models_are_no_credentials(value):
    assert without_credentials(value) == value


def test_tensors_under_the_name_of_a_token_stay():
    tensor = torch.tensor([1, 2])
    assert without_credentials({"token": tensor, "tokens": tensor})["token"] is tensor


@pytest.mark.parametrize(
    "part",
    [
        "a",
        "a.",
        "a-",
        "A",
        "-eyJaaaaaaaa",
        "eyJaaaaaaaa.",
        "token=",
        "token='",
        "token: x ",
        "--token ",
        "://a:",
        " ",
        "=",
    ],
)
def test_long_texts_are_gone_through_once(part):
    """A quarter of a megabyte, for which what goes through it for each of its letters takes an hour."""
    text_without_credentials(part * (2**18 // len(part)))
