"""Code of somebody's own is followed wherever it leads; nothing is imported on the way."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import attrs
import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from interpretune.hashing.content_hash import content_hash, hash_of
from tests.hashing.own_project import scales

FACTOR = 1


def hash_there(thing: Any) -> str:
    return hash_of(thing, "The test")


# -------------------------------------------------------------------------------------------------------------- fields


def by_attrs(value: int) -> type:
    @attrs.define
    class Made:
        gain: int = value

    return Made


def by_attrs_factory(value: int) -> type:
    @attrs.define
    class Made:
        gain: list[int] = attrs.field(factory=lambda: [value])

    return Made


def by_attrs_converter(value: int) -> type:
    @attrs.frozen
    class Made:
        gain: int = attrs.field(default=1, converter=lambda given: given * value)

    return Made


def by_dataclass(value: int) -> type:
    @dataclasses.dataclass(slots=True)
    class Made:
        gain: int = value

    return Made


def by_dataclass_factory(value: int) -> type:
    @dataclasses.dataclass
    class Made:
        gain: list[int] = dataclasses.field(default_factory=lambda: [value])

    return Made


@pytest.mark.parametrize(
    "make",
    [by_attrs, by_attrs_factory, by_attrs_converter, by_dataclass, by_dataclass_factory],
    ids=lambda f: f.__name__,
)
def test_what_fields_are_made_of_counts(make: Callable[[int], type]) -> None:
    def use(kind: type) -> Any:
        return lambda x: x * kind().gain

    assert hash_there(use(make(1))) != hash_there(use(make(2)))
    assert hash_there(use(make(1))) == hash_there(use(make(1)))


# ------------------------------------------------------------------------------------------------------------ elsewhere


def by_globals() -> Any:
    return globals()["FACTOR"]


def take(module: Any) -> Any:
    return module.FACTOR


def by_helper() -> Any:
    return take(scales)


def by_name() -> Any:
    return [getattr(scales, name) for name in dir(scales)]


@pytest.mark.parametrize(
    ("function", "owner"),
    [(by_globals, None), (by_helper, scales), (by_name, scales)],
    ids=["globals()", "module passed on", "names found out"],
)
def test_a_setting_that_is_reached_another_way_counts(
    function: Any, owner: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = hash_there(function)
    monkeypatch.setattr(owner or sys.modules[__name__], "FACTOR", 2.0)
    assert hash_there(function) != before
    monkeypatch.undo()
    assert hash_there(function) == before


class Cached:
    def __init__(self, gain: float) -> None:
        self.gain = gain

    @functools.cached_property
    def table(self) -> dict[str, Any]:
        return {"gain": torch.full((2,), self.gain), "draw": torch.rand(2) if self.gain < 0 else None}


def test_cached_values_that_do_not_follow_count() -> None:
    fresh, used, stale, replaced, drawn = Cached(1), Cached(1), Cached(2), Cached(1), Cached(-1)
    for item in (used, stale, drawn):
        assert item.table
    stale.gain = 1
    replaced.table = {"gain": torch.zeros(2)}
    assert hash_there(used) == hash_there(fresh)
    assert len({hash_there(item) for item in (fresh, stale, replaced)}) == 3
    assert hash_there(drawn) != hash_there(Cached(-1))


def doubled(self: Any, x: Tensor) -> Tensor:
    return x * 2


@pytest.mark.parametrize(
    "method", [doubled, torch.no_grad()(doubled), nn.ReLU.forward], ids=["own", "wrapped", "other"]
)
@pytest.mark.parametrize("owner", [nn.GELU, nn.Module])
def test_a_replaced_method_of_a_library_counts(owner: type, method: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    before = hash_there(nn.GELU)
    monkeypatch.setattr(owner, "forward", method)
    assert hash_there(nn.GELU) != before


def test_what_compiling_leaves_on_all_modules_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch tags modules from the first compilation of a process on; a store would not be found again after it."""
    from torch._dynamo import mutation_guard

    made = torch.nn.Linear(2, 2)
    before = content_hash(made, "It").sha256
    for name in ("__init__", "__setstate__"):
        monkeypatch.setattr(torch.nn.Module, name, getattr(torch.nn.Module, name))
    monkeypatch.setattr(torch.nn.Module, "___needs_generation_tag_patch", True, raising=False)
    mutation_guard.install_generation_tagging_init()
    assert torch.nn.Module.__init__.__module__ == mutation_guard.__name__
    assert content_hash(made, "It").sha256 == before
    monkeypatch.setattr(torch.nn.Module, "__init__", lambda self: None)
    assert content_hash(made, "It").sha256 != before


def test_hooks_on_all_modules_count() -> None:
    layer = nn.Linear(1, 1)
    before = hash_there(layer)
    handle = register_module_forward_hook(lambda module, args, output: 2 * output)
    try:
        assert hash_there(layer) != before
    finally:
        handle.remove()
    assert hash_there(layer) == before


# ------------------------------------------------------------------------------------------------------------- imports

SCRIPT = "import sys\nfrom quagga_settings import GAIN\nsys.exit(GAIN)\n"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A script that ends whoever imports it, in a package and out of one, and the settings that it imports."""
    (tmp_path / "quagga_script.py").write_text(SCRIPT)
    (tmp_path / "quagga_settings.py").write_text("GAIN = 1\n")
    package = tmp_path / "quagga_package"
    package.mkdir()
    (package / "__init__.py").write_text(SCRIPT)
    (package / "inner.py").write_text("from quagga_package import inner\n")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("quagga")]:
        del sys.modules[name]


def imports_a_script() -> None:
    import quagga_script  # type: ignore[import-not-found]  # noqa: F401


def imports_from_a_package() -> Any:
    from quagga_package import inner  # type: ignore[import-not-found]

    return inner


def imports_below_a_package() -> Any:
    import quagga_package.inner  # type: ignore[import-not-found]

    return quagga_package


@pytest.mark.parametrize("function", [imports_a_script, imports_from_a_package, imports_below_a_package])
def test_nothing_is_imported_and_sources_count(function: Any, project: Path) -> None:
    before = hash_there(function)
    assert not [name for name in sys.modules if name.startswith("quagga")]
    (project / "quagga_settings.py").write_text("GAIN = 22\n")
    assert hash_there(function) != before


def test_what_was_imported_is_followed(project: Path) -> None:
    settings = importlib.import_module("quagga_settings")

    def use() -> Any:
        from quagga_settings import GAIN  # type: ignore[import-not-found]

        return GAIN

    before = hash_there(use)
    settings.GAIN = 2
    assert hash_there(use) != before


def test_imports_that_are_blocked_or_absent_are_no_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "quagga_blocked", None)

    def use() -> None:
        import quagga_blocked.part  # type: ignore[import-not-found]  # noqa: F401

    assert content_hash(use, "The test").unknown == ()


def test_members_that_are_made_when_asked_for_are_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    lazy = ModuleType("quagga_lazy")
    lazy.__getattr__ = lambda name: name  # type: ignore[method-assign]
    monkeypatch.setitem(sys.modules, "quagga_lazy", lazy)

    def use() -> Any:
        from quagga_lazy import later  # type: ignore[import-not-found]

        return later

    assert "quagga_lazy, which makes it only then" in content_hash(use, "The test").unknown[0]
