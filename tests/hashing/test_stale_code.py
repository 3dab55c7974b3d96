"""Code of backends, models and modules that is edited gives new numbers; unchanged code finds what is there."""

from __future__ import annotations

import importlib
import json
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from attrs import evolve
from torch import Tensor, nn

import interpretune as it
from interpretune.analysis import AnalysisCfg, AnalysisRunner, plan_of
from interpretune.backends.identity import identify_model
from interpretune.hashing.code_origin import version_of
from interpretune.hashing.content_hash import hash_of
from interpretune.operations import operation
from interpretune.store.fields import Field
from tests.sessions import make_session
from tests.tiny_latents import RandomDictionary

ADAPTER = """
import interpretune as it
from interpretune_edited.backend import EditedBackend


class Edited:
    declaration = it.AdapterDeclaration(name="edited", level="model", contract="1.0")

    @it.hookimpl
    def it_create_backend(self, module):
        return EditedBackend(module.model, module.datamodule.tokenizer if module.datamodule else None)

    def __init__(self):
        self.settings = {"gain": 1.0}


adapter = Edited()
"""
BACKEND = """
from interpretune.analysis import HuggingFaceBackend
from interpretune_edited.scale import scaled

SETTINGS = {"gain": 1.0}


class EditedBackend(HuggingFaceBackend):
    def run_model(self, inputs, keep, **options):
        from interpretune_edited.adapter import adapter

        gain = SETTINGS["gain"] * adapter.settings["gain"]
        return scaled(super().run_model(inputs, keep, **options)) * gain
"""
SCALE = "def scaled(logits):\n    return logits * {}\n"


@pytest.fixture
def source(install: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The package of an adapter that is installed in editable mode."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # it is taken for that of a later edit in the same second
    files = {"__init__.py": "", "adapter.py": ADAPTER, "backend.py": BACKEND, "scale.py": SCALE.format(1.0)}
    site = install(
        "interpretune-edited",
        adapters={"edited": "interpretune_edited.adapter:adapter"},
        files={f"interpretune_edited/{name}": text for name, text in files.items()},
    )
    info = next(site.glob("*.dist-info"))
    (info / "direct_url.json").write_text(json.dumps({"url": site.as_uri(), "dir_info": {"editable": True}}))
    (info / "RECORD").write_text(f"{info.name}/METADATA,,\n")
    yield site / "interpretune_edited"
    forget()


def forget() -> None:
    """What a new process knows of the package."""
    for name in [name for name in sys.modules if name.startswith("interpretune_edited")]:
        del sys.modules[name]
    importlib.invalidate_caches()


def edit(source: Path, factor: float) -> None:
    (source / "scale.py").write_text(SCALE.format(factor) + f"# {factor}\n" * 3)


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., tuple[Tensor, bool]]:
    """Logit differences, and whether anything was computed for them; in the session that is given, or a new one."""

    def run(session: it.ITSession | None = None) -> tuple[Tensor, bool]:
        session = session or make_session(tmp_path / "session", adapters=("edited",), n_rows=3)
        before = len(list((tmp_path / "stores").glob("*")))
        store = AnalysisRunner(**session, root=tmp_path / "stores").run({"a": "clean_no_sae"})["a"]
        computed = len(list((tmp_path / "stores").glob("*"))) > before
        return torch.cat([batch["logit_diffs"] for batch in store.batches(["logit_diffs"])]), computed

    return run


def test_an_edit_of_an_editable_backend_gives_new_numbers(source: Path, run: Callable[..., Any]) -> None:
    first, ran = run()
    assert ran
    forget()
    assert not run()[1]
    edit(source, 2.0)
    forget()
    second, ran = run()
    assert ran
    torch.testing.assert_close(second, 2 * first)
    edit(source, 3.0)
    forget()
    torch.testing.assert_close(run()[0], 3 * first)


def test_code_that_was_edited_after_its_import_is_not_trusted(
    source: Path, run: Callable[..., Any], tmp_path: Path
) -> None:
    session = make_session(tmp_path / "session", adapters=("edited",), n_rows=3)
    first, _ = run(session)
    edit(source, 2.0)  # what runs is still the old code
    with pytest.warns(it.NotReusedWarning, match=r"interpretune_edited is not what it was .*scale\.py.*start Python"):
        again, ran = run(session)
    assert ran
    torch.testing.assert_close(again, first)
    forget()
    second, ran = run()
    assert ran
    torch.testing.assert_close(second, 2 * first)


def set_on_the_adapter() -> None:
    sys.modules["interpretune_edited.adapter"].adapter.settings["gain"] = 2.0


def set_in_a_module() -> None:
    sys.modules["interpretune_edited.backend"].SETTINGS["gain"] = 2.0


def replace_a_function() -> None:
    sys.modules["interpretune_edited.backend"].scaled = lambda logits: 2 * logits


@pytest.mark.parametrize("change", [set_on_the_adapter, set_in_a_module, replace_a_function])
def test_what_is_changed_in_an_adapter_at_run_time_counts(
    source: Path, run: Callable[..., Any], tmp_path: Path, change: Callable[[], None]
) -> None:
    session = make_session(tmp_path / "session", adapters=("edited",), n_rows=3)
    first, _ = run(session)
    assert not run(session)[1]
    change()
    second, ran = run(session)
    assert ran
    torch.testing.assert_close(second, 2 * first)


class Counts:
    """A counter that a helper, a decorated method and a library's base read."""

    def __init__(self, count: int) -> None:
        self.count = count

    def note(self) -> None:
        self.count += 1


class Noting(Counts):
    def note(self) -> None:
        SEEN.append(1)


SEEN: list[int] = []


def test_counters_and_records_count(monkeypatch: pytest.MonkeyPatch) -> None:
    assert hash_of(Counts(1), "The test") != hash_of(Counts(2), "The test")
    before = hash_of(Noting(1), "The test")
    monkeypatch.setitem(globals(), "SEEN", [1])
    assert hash_of(Noting(1), "The test") != before


def test_libraries_count_by_version_and_own_modules_by_code() -> None:
    assert str(version_of(torch)).startswith("torch ")
    assert str(version_of(json)).startswith("Python")
    assert version_of(sys.modules[__name__]) is None
    assert version_of(it) is None


@pytest.mark.parametrize("linked", ["package", "file"])
def test_installed_code_may_be_links_to_somewhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, linked: str
) -> None:
    """As uv installs with ``--link-mode=symlink``."""
    cache, site = tmp_path / "cache" / "quagga_lib", tmp_path / "site"
    cache.mkdir(parents=True)
    (cache / "__init__.py").write_text("")
    info = site / "quagga_lib-1.5.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: quagga-lib\nVersion: 1.5\n")
    (info / "RECORD").write_text("quagga_lib/__init__.py,,\nquagga_lib-1.5.dist-info/METADATA,,\n")
    package = site / "quagga_lib"
    if linked == "package":
        package.symlink_to(cache)
    else:
        package.mkdir()
        (package / "__init__.py").symlink_to(cache / "__init__.py")
    monkeypatch.syspath_prepend(site)
    module = importlib.import_module("quagga_lib")
    try:
        assert version_of(module) == "quagga-lib 1.5"
    finally:
        del sys.modules["quagga_lib"]


# -------------------------------------------------------------------------------------------------------------- models


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[it.ITSession]:
    session = make_session(tmp_path_factory.mktemp("session"), n_rows=3)
    yield session
    it.it_session_end(**session)


def key_of(model: nn.Module, session: it.ITSession) -> str:
    noted, library = session.module.backend.passing_model_state, session.module.backend.passing_model_library
    backend = SimpleNamespace(model=model, passing_model_state=noted, passing_model_library=library)
    found = identify_model(backend, "")  # type: ignore[arg-type]
    assert found.unknown == ()
    return found.about["sha256"]


class Own(nn.Module):
    """A model of the user's own."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1, bias=False)
        nn.init.ones_(self.layer.weight)
        for name, value in settings.items():
            setattr(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def doubled(x: Tensor) -> Tensor:
    return 2 * x


def test_everything_that_an_own_model_holds_counts(session: it.ITSession) -> None:
    models = [Own(), Own(_scale=1), Own(_scale=2), Own(_parts={"a": [1]}), Own(_parts={"a": [2]}), Own(act=doubled)]
    models += [Own(config={"k": 3}), Own(config={"k": 4}), Own(config=SimpleNamespace(inner=SimpleNamespace(k=3)))]
    models += [Own(config=SimpleNamespace(inner=SimpleNamespace(k=4))), Own(cfg={"k": 3})]
    replaced, hooked, inner = Own(), Own(), Own()
    replaced.forward = doubled  # type: ignore[method-assign]
    inner.layer.forward = doubled  # type: ignore[method-assign]
    hooked.layer.register_forward_hook(lambda module, args, output: 2 * output)
    models += [replaced, hooked, inner]
    keys = [key_of(model, session) for model in models]
    assert len(set(keys)) == len(keys)
    assert keys == [key_of(model, session) for model in models]
    assert key_of(Own(config={"k": 3, "_name_or_path": "/somewhere"}), session) == keys[6]


def test_a_configuration_that_is_a_mapping_does_not_crash_the_runner(session: it.ITSession, tmp_path: Path) -> None:
    latents = RandomDictionary("blocks.1.hook_resid_post", seed=1)
    latents.cfg = {"k": 3}
    session.module.latent_models = [latents]
    store = AnalysisRunner(**session, root=tmp_path).run({"a": "clean_w_sae"})["a"]
    assert store.manifest.about["latent_models"][0]["settings"]["k"] == 3


# ---------------------------------------------------------------------------------------------- operations and modules

SCALED = Field("scaled", "float")
OPTIONS = {"factor": 1.0}


@operation(writes=SCALED)
def scaled_by_option(logit_diffs: Tensor, *, options: Any = OPTIONS) -> Tensor:
    return logit_diffs * options["factor"]


@operation(writes=SCALED)
def scaled_by_module(module: Any, logit_diffs: Tensor) -> Tensor:
    return logit_diffs * module.own_factor


def scaled_values(session: it.ITSession, root: Path, plan: Any) -> Tensor:
    store = AnalysisRunner(**session, root=root).run({"a": plan})["a"]
    return torch.cat([batch["scaled"] for batch in store.batches(["scaled"])])


def test_an_option_that_is_changed_in_place_counts(
    session: it.ITSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(AnalysisCfg(), [], [scaled_by_option])
    first = scaled_values(session, tmp_path, plan)
    monkeypatch.setitem(OPTIONS, "factor", 2.0)
    torch.testing.assert_close(scaled_values(session, tmp_path, plan), 2 * first)


def test_what_an_operation_reads_of_the_module_counts(session: it.ITSession, tmp_path: Path) -> None:
    plan = plan_of(AnalysisCfg(), [], [scaled_by_module])
    session.module.own_factor = 1.0
    first = scaled_values(session, tmp_path, plan)
    session.module.own_factor = 2.0
    torch.testing.assert_close(scaled_values(session, tmp_path, plan), 2 * first)
    assert len(list(tmp_path.iterdir())) == 2
    session.module.own_factor = 1.0
    torch.testing.assert_close(scaled_values(session, tmp_path, plan), first)
    assert len(list(tmp_path.iterdir())) == 2


def tempered(module: Any, logits: Tensor) -> Tensor:
    return logits / module.temperature


class Tempered(it.ITModule):
    """Standardizes logits by a setting of its own, which a helper reads."""

    def standardize_logits(self, logits: Any) -> Tensor:
        return tempered(self, super().standardize_logits(logits))


class Decorated(it.ITModule):
    @torch.no_grad()
    def standardize_logits(self, logits: Any) -> Tensor:
        return super().standardize_logits(logits) / self.temperature


class Records(Tempered):
    """Keeps a record of its calls beside."""

    passing_state = frozenset({"calls"})

    def labels_to_ids(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        vars(self).setdefault("calls", []).append(len(labels))
        return super().labels_to_ids(labels)


@pytest.mark.parametrize("kind", [Tempered, Decorated, Records])
def test_a_setting_of_the_users_module_counts(tmp_path: Path, kind: type) -> None:
    session = make_session(tmp_path / "session", n_rows=3, module_cls=kind)
    session.module.temperature = 1.0

    def diffs() -> Tensor:
        store = AnalysisRunner(**session, root=tmp_path / "stores").run({"a": "clean_no_sae"})["a"]
        return torch.cat([batch["logit_diffs"] for batch in store.batches(["logit_diffs"])])

    first = diffs()
    session.module.temperature = 2.0
    torch.testing.assert_close(diffs(), first / 2)
    session.module.temperature = 1.0
    torch.testing.assert_close(diffs(), first)
    assert len(list((tmp_path / "stores").iterdir())) == 2


def test_an_unreadable_attribute_of_the_module_is_said(session: it.ITSession, tmp_path: Path) -> None:
    session.module.lock = threading.Lock()
    with pytest.warns(it.NotReusedWarning, match=r"The module depends on a lock.*\['lock'\]"):
        AnalysisRunner(**session, root=tmp_path).run({"a": "clean_no_sae"})
    del session.module.lock


def test_a_folder_of_another_key_is_no_store_of_this_run(session: it.ITSession, tmp_path: Path) -> None:
    """Folders are found by the first digits of the key."""
    runner = AnalysisRunner(**session, root=tmp_path)
    store = runner.run({"a": "clean_no_sae"})["a"]
    assert runner.dry_run({"a": "clean_no_sae"})["a"].remaining == 0
    key = store.manifest.key
    evolve(store.manifest, key=key[:12] + key[:11:-1]).write(store.folder)
    assert runner.dry_run({"a": "clean_no_sae"})["a"].remaining == 1
    with pytest.raises(it.StoreError, match="another"):
        runner.run({"a": "clean_no_sae"})
