"""Fixtures shared by all tests: no network, caches of their own, and distributions made on the fly.

Libraries are imported where they are needed: the process that hands out tests to others needs none.
"""

from __future__ import annotations

import gc
import importlib.metadata
import itertools
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from textwrap import dedent
from types import ModuleType
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # read when the hub's client is imported, hence before anything else
os.environ["HF_DATASETS_CACHE"] = tempfile.mkdtemp(prefix="interpretune-tests-")
os.environ["TORCHDYNAMO_DISABLE"] = "1"  # bitsandbytes compiles when it is imported, which takes seconds

import pytest

import interpretune as it
from interpretune.hashing import code_origin
from tests.installed import needs_hooked_transformer, transformer_lens_before_4

HOOKED_TESTS = Path(__file__).parent / "tlens" / "hooked"
CACHE = "INTERPRETUNE_CACHE"
PLACES = frozenset(sys.path)
"""Where distributions are that stay as they are; tests install others elsewhere."""


def installed_since() -> list[tuple[str, int, int]]:
    """What tests have installed: metadata below new places of imports, when it was written, and its sizes."""
    files = [file for place in sys.path if place not in PLACES for file in Path(place).glob("*.dist-info/*")]
    return [(str(file), (status := file.stat()).st_mtime_ns, status.st_size) for file in files]


def remembered(look_up: Callable[..., Any]) -> Callable[..., Any]:
    """Look up once what is installed, and again where tests have installed something else."""
    found: dict[Any, Any] = {}

    def remember(*names: str, **named: str) -> Any:
        key = (*sys.path, *installed_since(), names, *named.items())
        if key not in found:
            found[key] = look_up(*names, **named)
        return found[key]

    return remember


importlib.metadata.entry_points = remembered(importlib.metadata.entry_points)  # a fifth of the time of a session
importlib.metadata.version = remembered(importlib.metadata.version)
importlib.metadata.requires = remembered(importlib.metadata.requires)

ROOT = Path(__file__).parents[1]


def read_once(hashes: Callable[[ModuleType], dict[str, str]]) -> Callable[[ModuleType], dict[str, str]]:
    """Hash the sources of this repository once, which no test edits: each session asks for hundreds of files, twice."""
    found: dict[tuple[str, ...], dict[str, str]] = {}

    def read(module: ModuleType) -> dict[str, str]:
        folders = tuple(module.__path__)
        if not all(Path(folder).is_relative_to(ROOT) for folder in folders):
            return hashes(module)
        if folders not in found:
            found[folders] = hashes(module)
        return found[folders]

    return read


code_origin._hashes = read_once(code_origin._hashes)  # a tenth of the time of a session

logging.getLogger().addHandler(logging.NullHandler())  # libraries that warn by it would configure it, for all tests

FIRST = (
    *("test_installed_packages", "test_kit_finds_them", "test_demo", "test_first_party", "test_conformance"),
    *("test_doctor", "test_stacks", "test_imports", "test_session_training", "test_replay", "test_run_command"),
    *("test_hooked_replay", "test_training", "test_checkpoints", "test_finetuning", "test_loops", "test_library"),
)
"""Files that take long, or have a test that does: no process is left with one of them at the end."""

IMPORTS = frozenset({"test_import_is_cheap", "test_import_patches_nothing", "test_import_changes_nothing"})
IN_STACKS = frozenset(
    {"test_errors_arrive", "test_released_after_a_failure", "test_runner_agrees", "test_wrappers_see_every_batch"}
)
OF_LOOPS = frozenset({"test_analysis_keeps_grad_mode", "test_analysis_keeps_train_mode"})
LONG = frozenset({"test_stacks_in_every_order", "test_threads_stay_apart", "test_batches_are_let_go"})
LEFT_OUT = {
    "TestHello": IMPORTS,
    "TestNNsight": IMPORTS | IN_STACKS | OF_LOOPS,
    "TestInterpEngine": IMPORTS | IN_STACKS | OF_LOOPS | LONG,
    "TestTensorBoard": IMPORTS | {"test_stacks_in_every_order"},
}
"""Rules that examples keep in ``tests/broken_adapters/test_imports.py`` and in ``tests/testing/test_stacks.py``, and
those of modes that loops and analyses set, which a backend does not: ``hello`` and Lightning keep them. Those of
interp-engine are left to ``make kit``; its hooks are torch's, as those of ``core`` are. The orders
of stacks of TensorBoard's are among those of ``hello``, which has each two of the others."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Order files, and leave out what other tests of the same run check."""
    place = {file: number for number, file in enumerate(FIRST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))
    left_out = [item for item in items if item.parent and item.name in LEFT_OUT.get(item.parent.name, ())]
    if not transformer_lens_before_4():
        left_out += [item for item in items if needs_hooked_transformer(parameters_of(item))]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Leave out the tests of classes that the installed version of a library does not have."""
    return True if collection_path == HOOKED_TESTS and not transformer_lens_before_4() else None


def parameters_of(item: pytest.Item) -> dict[str, Any]:
    """What a test is parametrized with."""
    return getattr(getattr(item, "callspec", None), "params", {})


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """What is imported stays: to look for garbage in it takes seconds."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.set_threshold(10_000, 20, 20)


def pytest_collection_finish() -> None:
    """Scripts that tests run begin with what has been imported until now."""
    from tests.other_process import begin_here

    begin_here()


def pytest_unconfigure() -> None:
    """Remove the cache of data sets."""
    shutil.rmtree(os.environ["HF_DATASETS_CACHE"], ignore_errors=True)


@pytest.fixture(scope="session")
def new_caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Folders that are not there yet: ``tmp_path`` makes one for each test, and a link to it, which takes long."""
    folder = tmp_path_factory.mktemp("caches")
    return (folder / str(number) for number in itertools.count())


@pytest.fixture(autouse=True)
def own_cache(new_caches: Iterator[Path]) -> Iterator[Path]:
    """Give every test an empty cache, whose folder it makes if it needs one."""
    folder, before = next(new_caches), os.environ.get(CACHE)
    os.environ[CACHE] = str(folder)
    yield folder
    os.environ.pop(CACHE)
    if before is not None:
        os.environ[CACHE] = before


@pytest.fixture(scope="session")
def gpt2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved tiny GPT-2 with its tokenizer: padding on the left, with the id of BOS."""
    from tests.tiny import save_tiny_model

    return save_tiny_model(tmp_path_factory.mktemp("gpt2"), "gpt2")


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved tiny Llama with its tokenizer: padding on the right, with an id of its own."""
    from tests.tiny import save_tiny_model

    folder = tmp_path_factory.mktemp("llama")
    return save_tiny_model(folder, "llama", padding_side="right", bos_is_pad=False)


@pytest.fixture(scope="session")
def session_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., it.ITSession]:
    """``session_of(kind, stack, side)``: BOS and padding share an id in GPT-2's tokenizer, not in Llama's."""

    from tests.sessions import make_session

    @cache
    def build(kind: str, stack: str, side: str) -> it.ITSession:
        folder = tmp_path_factory.mktemp(f"{kind}-{stack}-{side}")
        return make_session(folder, kind, stack, side, bos_is_pad=kind == "gpt2")

    return build


@pytest.fixture
def quiet() -> Iterator[None]:
    """No logger says anything but errors."""
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


class Training:
    """SAELens's training, which may be forbidden."""

    def __init__(self) -> None:
        self.forbidden = False

    def identity(self) -> None:
        """No SAE depends on it."""


@pytest.fixture
def no_more_training(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Once called, training an SAE is an error."""
    from sae_lens import SAETrainer

    training, inner = Training(), SAETrainer.fit

    def fit(*given: Any) -> Any:
        if training.forbidden:
            raise AssertionError("trained again")
        return inner(*given)

    monkeypatch.setattr(SAETrainer, "fit", fit)

    def forbid() -> None:
        training.forbidden = True

    return forbid


Install = Callable[..., Path]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Install distributions for one test: ``install("acme", adapters={"acme": "acme_mod:adapter"}, acme_mod=SOURCE)``.

    ``group`` and ``entries`` are for entry points of another group; ``requires`` is what the distribution depends on;
    further keyword arguments are the sources of top-level modules; ``files`` holds other files by path.
    """
    before = set(sys.modules)

    def install(
        distribution: str,
        *,
        adapters: dict[str, str] | None = None,
        group: str = "interpretune.adapters",
        entries: dict[str, str] | None = None,
        version: str = "1.2.3",
        requires: Sequence[str] = (),
        files: dict[str, str] | None = None,
        **modules: str,
    ) -> Path:
        site = tmp_path / f"site-{distribution}"
        info = site / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        needs = "".join(f"Requires-Dist: {item}\n" for item in requires)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n{needs}")
        lines = [f"{name} = {target}" for name, target in (entries or adapters or {}).items()]
        (info / "entry_points.txt").write_text("\n".join([f"[{group}]", *lines, ""]))
        for name, source in {**(files or {}), **{f"{name}.py": source for name, source in modules.items()}}.items():
            file = site / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(dedent(source))
        monkeypatch.syspath_prepend(str(site))
        return site

    yield install
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None) or ""
        if file.startswith(str(tmp_path)) or name.startswith("tests.broken_adapters."):
            del sys.modules[name]


@pytest.fixture
def adapter_of(install: Install) -> Callable[..., None]:
    """Install an adapter from the body of its class: ``adapter_of("acme", level="model", body="...")``."""

    def adapter_of(name: str, *, body: str = "pass", version: str = "1.2.3", **declaration: Any) -> None:
        declared = ", ".join(
            f"{key}={value!r}" for key, value in {"level": "extension", "contract": "1.0", **declaration}.items()
        )
        source = "import interpretune as it\n\n\nclass TheAdapter:\n"
        source += f"    declaration = it.AdapterDeclaration(name={name!r}, {declared})\n\n"
        source += "".join(f"    {line}\n" for line in dedent(body).strip().splitlines())
        source += "\n\nadapter = TheAdapter()\n"
        install(
            f"interpretune-{name}",
            adapters={name: f"interpretune_{name}:adapter"},
            version=version,
            **{f"interpretune_{name}": source},
        )

    return adapter_of
