"""Installs a broken adapter for a while and has the kit look at it."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.metadata
import json
import pickle
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from interpretune.models import loading
from interpretune.plugins.declaration import Level
from interpretune.plugins.discovery import find_adapter, installed_adapters
from interpretune.testing import RULES, AdapterConformance, Rule, reference
from interpretune.testing.doctor import FAILED, PASSED, SKIPPED, Verdict, check_suite
from interpretune.testing.reference import plain_model
from interpretune.testing.rules import loops
from interpretune.testing.tiny_latents import RandomDictionary
from interpretune.testing.tiny_models import save_tiny_model
from tests.broken_adapters.expected import EXPECTED, SOUND
from tests.broken_adapters.expected_of_numbers import FOUND_IN_NUMBERS

PACKAGE = "tests.broken_adapters"
OTHERS = "stacks-in-every-order"
"""Stacks every other adapter that is installed, which takes long: checked on those that it is about, too."""

COSTLY = frozenset(rule for rule, *_ in FOUND_IN_NUMBERS.values()) - {"gradients-agree"}
"""Take as long as all others together: checked on those that break one of them."""

BESIDE = frozenset({"batches-are-let-go", "metrics-stay-as-logged"})
"""What ends sessions or weighs logged means wrongly breaks these as well: checked on those they are about."""

SLOW = frozenset(
    {
        *("threads-stay-apart", "analysis-keeps-grad-mode", "layers-of-two-digits", "larger-batches-agree"),
        *("nested-edits-add-up", "runner-agrees", "wrappers-see-every-batch", "runner-finds-its-stores"),
        *("analysis-keeps-train-mode", "errors-arrive", "released-after-a-failure"),
    }
)
"""Half of the time of all rules. Adapters of this repository keep them in their own suites; broken ones are checked
against those that they are about, and against all by ``make broken-adapters``."""

IMPORT_RULES = ("listed-without-import", "import-is-cheap", "import-patches-nothing", "import-changes-nothing")
"""Each starts a process: they are checked on those that they are about, and on the sound one."""


OFFERS = {
    "misbehaving.takes_a_name_of_core": (
        f"[interpretune.commands]\ntasks = {PACKAGE}.misbehaving.takes_a_name_of_core:tasks\n"
    )
}
"""What the packages of some offer by name."""

_FOLDER = tempfile.TemporaryDirectory(prefix="interpretune-acme-models-")


class AcmeSuite(AdapterConformance):
    """All broken adapters are called the same."""

    adapter = "acme"
    import_limit = 0.2

    def write_tiny_model(self, folder):
        shutil.copytree(_written("llama"), folder, dirs_exist_ok=True)

    def write_model_with_learned_positions(self, folder):
        shutil.copytree(_written("gpt2"), folder, dirs_exist_ok=True)

    def write_model_with_twelve_layers(self, folder):
        shutil.copytree(_written("llama", 12), folder, dirs_exist_ok=True)

    def reference_latents(self):
        return getattr(find_adapter("acme").load(), "reference_latents", lambda: None)()

    def reference_model(self, folder):
        about = json.loads((folder / "config.json").read_text())
        return _plain(about["model_type"], about.get("num_hidden_layers", 3))


@functools.cache
def _written(kind: str, n_layers: int = 3) -> Path:
    """A tiny model; that of all of them, who may copy it."""
    folder = Path(_FOLDER.name, f"{kind}-{n_layers}")
    return save_tiny_model(folder, kind, dropout=0.1, n_layers=n_layers)


@functools.cache
def _plain(kind: str, n_layers: int) -> Any:
    """The model of all references; broken adapters do not see it."""
    return plain_model(_written(kind, n_layers))


@contextlib.contextmanager
def installed(name: str) -> Iterator[None]:
    """A broken adapter's module, registered as the adapter ``acme`` of a distribution of its own.

    What else is installed is read once for all of them.
    """
    before = set(sys.modules)
    with tempfile.TemporaryDirectory(prefix="interpretune-acme-") as site:
        info = Path(site) / "interpretune_acme-3.1.4.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: interpretune-acme\nVersion: 3.1.4\n")
        registered = f"[interpretune.adapters]\nacme = {PACKAGE}.{name}:adapter\n"
        (info / "entry_points.txt").write_text(registered + OFFERS.get(name, ""))
        own, path = importlib.metadata.PathDistribution(info).entry_points, sys.path
        read = importlib.metadata.entry_points

        def entry_points(**wanted):
            with mock.patch.object(sys, "path", [place for place in path if place != site]):
                return importlib.metadata.EntryPoints((*own.select(**wanted), *read(**wanted)))

        sys.path.insert(0, site)
        importlib.invalidate_caches()
        try:
            with mock.patch.object(importlib.metadata, "entry_points", entry_points):
                found = installed_adapters()  # read once: nothing else is installed meanwhile
                with mock.patch("interpretune.plugins.stack.installed_adapters", return_value=found):
                    yield
        finally:
            sys.path.remove(site)
            for name in [name for name in sys.modules if name not in before and name.startswith(f"{PACKAGE}.")]:
                del sys.modules[name]


_REMEMBERED: dict[Any, Any] = {}
"""Naive ablations, which are the same for all adapters: of one plain model, with latent models that only seeds make."""


@contextlib.contextmanager
def references_remembered() -> Iterator[None]:
    """Compute each naive ablation once."""
    compute = reference.ablated_logits

    def remembered(model, latent_models, tokens, special, cases, position=reference.ANSWER):
        if {type(item) for item in latent_models} != {RandomDictionary}:
            return compute(model, latent_models, tokens, special, cases, position)
        of_models = tuple((item.name, item.output_hook_point) for item in latent_models)
        of_cases = json.dumps([{name: [*values.items()] for name, values in changes.items()} for changes in cases])
        key = (id(model), of_models, tuple(tokens.tolist()), tuple(special), of_cases, position)
        if key not in _REMEMBERED:
            _REMEMBERED[key] = compute(model, latent_models, tokens, special, cases, position)
        return _REMEMBERED[key].clone()

    with mock.patch.object(reference, "ablated_logits", remembered):
        yield


def rules_beside(expected: str) -> list[Rule]:
    """Those out of the file of a rule: the nearest that a bug could break as well; of loops, those it builds on."""
    if expected in IMPORT_RULES:
        return [RULES[name] for name in IMPORT_RULES]
    subject = RULES[expected].function.__module__
    left_out = {OTHERS, *BESIDE, *SLOW} - {expected}
    if subject == loops.__name__:  # each trains
        left_out |= RULES.keys() - builds_on(expected)
    return [rule for rule in RULES.values() if rule.function.__module__ == subject and rule.id not in left_out]


def builds_on(rule: str) -> set[str]:
    """A rule and all that it builds on."""
    return {rule}.union(*(builds_on(other) for other in RULES[rule].after))


def rules_for(expected: str) -> list[Rule]:
    """All rules that can be checked in reasonable time on a broken adapter that breaks a given one."""
    if expected in IMPORT_RULES:
        return rules_beside(expected)
    left_out = {OTHERS, *BESIDE, *COSTLY, *IMPORT_RULES} - (COSTLY if expected in COSTLY else {expected})
    return [rule for rule in RULES.values() if rule.id not in left_out]


def check_adapter(name: str, rules: Sequence[Rule]) -> None:
    """Fail unless a broken adapter breaks the expected rule with the expected words, and no other of the rules."""
    rule, *words = EXPECTED[name]
    failed = {item.rule.id: item.message for item in verdicts_on(name, rules) if item.outcome == FAILED}
    assert list(failed) == [rule], failed
    for word in (*words, f"{rule}: ", "expected: ", f"docs/adapters/rules.md#{rule}"):
        assert word in failed[rule]


def check_sound(rules: Sequence[Rule]) -> None:
    """Fail unless the sound adapter keeps each of the rules, and skips none but those that are not for it."""
    verdicts = verdicts_on(SOUND, rules)
    failed = {verdict.rule.id: verdict.message for verdict in verdicts if verdict.outcome == FAILED}
    assert not failed, failed
    of_other_levels = {rule.id for rule in rules if rule.levels and Level.model not in rule.levels}
    without_truth = {rule.id for rule in rules if rule.function.__module__.endswith(".latents")}
    skipped = {verdict.rule.id for verdict in verdicts if verdict.outcome == SKIPPED}
    of_operations = {"operations-run", "operations-leave-what-they-read", "offers-can-be-used"}
    assert skipped - {"accelerator-agrees"} == of_other_levels | without_truth | of_operations | {"suite-loads"}
    assert sum(verdict.outcome == PASSED for verdict in verdicts) > len(verdicts) / 2


def verdicts_on(name: str, rules: Iterable[Rule] | None = None) -> list[Verdict]:
    """Every verdict of the kit on a broken adapter.

    Args:
        name: Path of its module, below ``tests.broken_adapters``.
        rules: The rules; None: all but the slow ones.
    """
    slow = (*IMPORT_RULES, OTHERS)
    chosen = [rule for rule in RULES.values() if rule.id not in slow] if rules is None else list(rules)
    with installed(name), references_remembered(), models_loaded_once(), bench_folder() as folder:
        return list(check_suite(AcmeSuite(), folder, chosen))


_LOADED: dict[str, bytes] = {}
"""Models as they were loaded, pickled: every session has one of its own."""


@contextlib.contextmanager
def models_loaded_once() -> Iterator[None]:
    """Load each tiny model once; that loading works is seen in the suites of the adapters of this repository."""
    load = loading._from_pretrained

    def loaded(cfg, model_class, quantized):
        folder = Path(cfg.model_name_or_path)
        files = sorted(folder.glob("*config.json"))
        key = repr([folder, *map(Path.read_text, files), model_class, cfg.hf_from_pretrained_cfg, quantized])
        if key not in _LOADED:
            _LOADED[key] = pickle.dumps(load(cfg, model_class, quantized))
        return pickle.loads(_LOADED[key])

    with mock.patch.object(loading, "_from_pretrained", loaded):
        yield


@contextlib.contextmanager
def bench_folder() -> Iterator[Path]:
    """One path for all adapters: the key of prepared data has it, and those that are the same are prepared once."""
    folder, prepared = Path(_FOLDER.name, "bench"), Path(_FOLDER.name, "prepared")
    prepared.mkdir(exist_ok=True)
    (folder / "cache").mkdir(parents=True)
    (folder / "cache" / "datasets").symlink_to(prepared)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
