"""A setting of a latent model counts however it is held: another one gives other numbers, the same one is found."""

from __future__ import annotations

import collections
import functools
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import interpretune as it
from interpretune.analysis import AnalysisRunner
from tests.hashing.own_project import late, scales
from tests.hashing.own_project.scales import imported_late, scaled
from tests.sessions import make_session
from tests.tiny_latents import RandomDictionary

PLACE = "blocks.1.hook_resid_post"
GAIN = 1.0
TABLE = {"gain": 1.0}


class Plain(RandomDictionary):
    """A dictionary whose reconstruction is scaled by a setting that a subclass holds."""

    def __init__(self, value: float = 1.0) -> None:
        super().__init__(PLACE, seed=1)
        self.hold(value)

    def hold(self, value: float) -> None:
        self._gain = value

    def gain(self) -> Any:
        return self._gain

    def decode(self, latents: Tensor) -> Tensor:
        return super().decode(latents) * self.gain()


class InDictionary(Plain):
    def hold(self, value: float) -> None:
        self.options = {"coder": {"gain": value}}

    def gain(self) -> Any:
        return self.options["coder"]["gain"]


class InTensor(Plain):
    def hold(self, value: float) -> None:
        self.plain = torch.tensor(value)

    def gain(self) -> Any:
        return self.plain


class InListOfTensors(Plain):
    def hold(self, value: float) -> None:
        self._tensors = collections.deque([torch.tensor(value)])

    def gain(self) -> Any:
        return self._tensors[0]


class InClosure(Plain):
    def hold(self, value: float) -> None:
        self.function = lambda: value

    def gain(self) -> Any:
        return self.function()


def times(value: float) -> float:
    return value


class InPartial(Plain):
    def hold(self, value: float) -> None:
        self.function = functools.partial(times, value)

    def gain(self) -> Any:
        return self.function()


class Gain:
    __slots__ = ("_value",)

    def __init__(self, value: float) -> None:
        self._value = value

    def __call__(self) -> float:
        return self._value


class InSlotsOfCallable(Plain):
    def hold(self, value: float) -> None:
        self.function = Gain(value)

    def gain(self) -> Any:
        return self.function()


class InBoundMethod(Plain):
    def hold(self, value: float) -> None:
        self.function = Gain(value).__call__

    def gain(self) -> Any:
        return self.function()


class Part(nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.about = SimpleNamespace(gain=value)


class InObjectOfSubmodule(Plain):
    def hold(self, value: float) -> None:
        self.part = Part(value)

    def gain(self) -> Any:
        return self.part.about.gain


@dataclass
class Inner:
    gain: float = 1.0


@dataclass
class Outer:
    inner: Inner = field(default_factory=Inner)


class InNestedConfiguration(Plain):
    def hold(self, value: float) -> None:
        self.cfg = Outer(Inner(value))

    def gain(self) -> Any:
        return self.cfg.inner.gain


class InConfigurationOfCoder(Plain):
    """Another library's: a coder with a configuration of its own."""

    def hold(self, value: float) -> None:
        self.coder = SimpleNamespace(cfg=SimpleNamespace(k=value))

    def gain(self) -> Any:
        return self.coder.cfg.k


class InMappingAsConfiguration(Plain):
    def hold(self, value: float) -> None:
        self.cfg = {"k": value}

    def gain(self) -> Any:
        return self.cfg["k"]


class InGenerator(Plain):
    def hold(self, value: float) -> None:
        self.draws = random.Random(value)

    def gain(self) -> Any:
        return random.Random(*[self.draws.getstate()[1][5]]).random()


class InSet(Plain):
    def hold(self, value: float) -> None:
        self.chosen = {"a", "b", value}

    def gain(self) -> Any:
        return sum(item for item in self.chosen if not isinstance(item, str))


class InForwardReplaced(Plain):
    def hold(self, value: float) -> None:
        self.part = nn.Identity()
        if value != 1.0:
            self.part.forward = lambda x: x * value

    def gain(self) -> Any:
        return self.part(torch.ones(()))


def times_two(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    return output * 2


class InForwardHook(Plain):
    def hold(self, value: float) -> None:
        self.part = nn.Identity()
        if value != 1.0:
            self.part.register_forward_hook(times_two)

    def gain(self) -> Any:
        return self.part(torch.ones(()))


WAYS = [
    Plain,
    InDictionary,
    InTensor,
    InListOfTensors,
    InClosure,
    InPartial,
    InSlotsOfCallable,
    InBoundMethod,
    InObjectOfSubmodule,
    InNestedConfiguration,
    InConfigurationOfCoder,
    InMappingAsConfiguration,
    InGenerator,
    InSet,
    InForwardReplaced,
    InForwardHook,
]


PLACES = ("d_in", "d_sae", "hook_point", "name", "output_hook_point", "skips_special_tokens")


class NoModule:
    """A latent model that is no torch module, with a private setting and slots."""

    __slots__ = (
        "__inner",
        "_value",
        "d_in",
        "d_sae",
        "hook_point",
        "name",
        "output_hook_point",
        "skips_special_tokens",
    )

    def __init__(self, value: float = 1.0) -> None:
        self.__inner = RandomDictionary(PLACE, seed=1)
        self.name, self.hook_point, self.output_hook_point = "slots", PLACE, PLACE
        self.d_in, self.d_sae, self.skips_special_tokens = 32, 24, False
        self._value = value

    def encode(self, activations: Tensor) -> Tensor:
        return self.__inner.encode(activations)

    def decode(self, latents: Tensor) -> Tensor:
        return self.__inner.decode(latents) * self._value

    def dashboard_url(self) -> None:
        return None


class ByGlobal(Plain):
    def gain(self) -> Any:
        return GAIN


class ByTable(Plain):
    def gain(self) -> Any:
        return TABLE["gain"]


class ByClassAttribute(Plain):
    factor: Any = 1.0

    def gain(self) -> Any:
        return type(self).factor


class ByAttributeOfBase(ByClassAttribute):
    pass


class ByHelperElsewhere(Plain):
    def gain(self) -> Any:
        return scaled(torch.ones(()))


class ByModuleElsewhere(Plain):
    def gain(self) -> Any:
        return scales.scaled(torch.ones(()))


class ByNameElsewhere(Plain):
    def gain(self) -> Any:
        return getattr(scales, "FACTOR")  # noqa: B009


class ByLateImport(Plain):
    def gain(self) -> Any:
        return imported_late(torch.ones(()))


ELSEWHERE: list[tuple[type, Any, str]] = [
    (ByGlobal, None, "GAIN"),
    (ByTable, TABLE, "gain"),
    (ByClassAttribute, ByClassAttribute, "factor"),
    (ByAttributeOfBase, ByClassAttribute, "factor"),
    (ByHelperElsewhere, scales, "FACTOR"),
    (ByModuleElsewhere, scales, "FACTOR"),
    (ByNameElsewhere, scales, "FACTOR"),
    (ByLateImport, late, "LATE"),
]


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[it.ITSession]:
    session = make_session(tmp_path_factory.mktemp("session"), n_rows=3)
    yield session
    it.it_session_end(**session)


@pytest.fixture
def run(session: it.ITSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], tuple[Tensor, bool]]:
    """Logit differences with a latent model, and whether anything was computed for them."""
    runner, move = AnalysisRunner(**session, root=tmp_path), session.module.batch_to_device
    moved: list[Any] = []
    monkeypatch.setattr(session.module, "batch_to_device", lambda batch: (moved.append(1), move(batch))[1])

    def run(latent_model: Any) -> tuple[Tensor, bool]:
        moved.clear()
        session.module.latent_models = [latent_model]
        store = runner.run({"a": "clean_w_sae"})["a"]
        return torch.cat([batch["logit_diffs"] for batch in store.batches(["logit_diffs"])]), bool(moved)

    return run


Run = Callable[[Any], tuple[Tensor, bool]]


@pytest.mark.parametrize("kind", [*WAYS, NoModule])
def test_another_setting_gives_other_numbers(kind: type, run: Run) -> None:
    first, ran = run(kind(1.0))
    assert ran
    again, ran = run(kind(1.0))
    assert not ran
    torch.testing.assert_close(again, first, rtol=0, atol=0)
    changed, ran = run(kind(2.0))
    assert ran
    assert (changed - first).abs().max() > 1e-4


@pytest.mark.parametrize(("kind", "owner", "name"), ELSEWHERE, ids=lambda item: getattr(item, "__name__", ""))
def test_a_setting_elsewhere_gives_other_numbers(
    kind: type, owner: Any, name: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = run(kind())
    assert not run(kind())[1]
    if owner is TABLE:
        monkeypatch.setitem(TABLE, name, 2.0)
    elif owner is None:
        monkeypatch.setitem(globals(), name, 2.0)
    else:
        monkeypatch.setattr(owner, name, 2.0)
    changed, ran = run(kind())
    assert ran
    assert (changed - first).abs().max() > 1e-4
    monkeypatch.undo()


def test_a_state_that_the_user_changes_in_place_counts(run: Run) -> None:
    held = InDictionary(1.0)
    first, _ = run(held)
    held.options["coder"]["gain"] = 2.0
    changed, ran = run(held)
    assert ran
    assert (changed - first).abs().max() > 1e-4
    held.options["coder"]["gain"] = 1.0
    assert not run(held)[1]


class WithLock(Plain):
    def hold(self, value: float) -> None:
        self.part = SimpleNamespace(lock=threading.Lock(), gain=value)

    def gain(self) -> Any:
        return self.part.gain


def test_what_cannot_be_known_is_run_again_and_said(run: Run) -> None:
    kept = WithLock(1.0)
    told = r"The latent model random at .* depends on a lock, .*at \.part\.lock"
    with pytest.warns(it.NotReusedWarning, match=rf"(?s){told}.*identity\(\)"):
        first, ran = run(kept)
    assert ran
    kept.part.gain = 2.0
    with pytest.warns(it.NotReusedWarning, match=told):
        second, ran = run(kept)
    assert ran
    assert (second - first).abs().max() > 1e-4
    kept.part.gain = 1.0
    with pytest.warns(it.NotReusedWarning, match=told):
        third, ran = run(kept)
    assert ran
    torch.testing.assert_close(third, first, rtol=0, atol=0)


class SaysItself(WithLock):
    def identity(self) -> Any:
        return {"gain": self.part.gain, "weights": dict(self.named_parameters())}


def test_an_identity_says_what_counts(run: Run) -> None:
    first, _ = run(SaysItself(1.0))
    assert not run(SaysItself(1.0))[1]
    changed, ran = run(SaysItself(2.0))
    assert ran
    assert (changed - first).abs().max() > 1e-4


class Fails(WithLock):
    def identity(self) -> Any:
        raise KeyError("gone")


class SaysNothing(WithLock):
    def identity(self) -> Any:
        return {"lock": self.part.lock}


def test_an_identity_that_fails_is_an_error_in_words(run: Run) -> None:
    with pytest.raises(it.PlanError, match=r"Fails\.identity\(\) failed: KeyError: 'gone'"):
        run(Fails())
    with pytest.raises(it.PlanError, match=r"what identity\(\) returns at .*\['lock'\] is a lock"):
        run(SaysNothing())


class HasIdentityLayer(Plain):
    def hold(self, value: float) -> None:
        super().hold(value)
        self.identity = nn.Identity()


def test_a_layer_called_identity_is_no_method(run: Run) -> None:
    run(HasIdentityLayer(1.0))
    assert not run(HasIdentityLayer(1.0))[1]
    assert run(HasIdentityLayer(2.0))[1]


def test_several_processes_need_to_know(run: Run, monkeypatch: pytest.MonkeyPatch, session: it.ITSession) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    session.module.latent_models = [WithLock()]
    with pytest.raises(it.PlanError, match=r"Several processes meet in one store .*\.part\.lock"):
        AnalysisRunner(**session, root="unused").run({"a": "clean_w_sae"})
