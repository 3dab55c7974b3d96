"""What a session is made of, as plain values in a checkpoint, and back."""

from __future__ import annotations

import copy
import pkgutil
import sys
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import MISSING, Field, fields, is_dataclass
from enum import Enum
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from attrs import define, field
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from interpretune import CheckedConfig, CheckpointError, ITDataModule, ITModule, ITSessionConfig
from interpretune.system import without_credentials

CLASS, TYPE, TUPLE, PAIRS = "<class>", "<type>", "<tuple>", "<pairs>"
"""Keys under which stand: the class of an object, a class itself, items of a tuple, items whose keys are no texts."""
NAMES_OF_CLASSES = ("class_path", "model_head")
"""Settings whose values are class paths."""
NOT_STORED = frozenset({"trainer_kwargs", "device", "cache_dir"})
"""Settings that a module does not need, or that belong to a machine."""
KNOWN = ("interpretune", "torch", "transformers", "peft", "sae_lens", "transformer_lens")
"""Packages whose classes a checkpoint may name although nobody has imported them."""
OTHER_CONFIGURATIONS = ("peft.LoraConfig", "sae_lens.SAEConfig", "transformer_lens.HookedTransformerConfig")
"""Classes, by package and name, that a configuration of a session may hold beside its own."""
MAY_RUN_CODE = "trust_remote_code"

WHAT_TO_DO = "Pass session_cfg=ITSessionConfig(...) with the configuration of the session that was trained."


@define
class StoredSession:
    """The configuration of a session as plain values.

    Attributes:
        values: Mappings, lists, texts and numbers, without credentials; settings that have their default are left out.
        lacking: What could not be stored, in words.
    """

    values: dict[str, Any] = field(factory=dict)
    lacking: list[str] = field(factory=list)
    _of_adapters: set[type] = field(factory=set, init=False)

    @classmethod
    def of(cls, module: ITModule, datamodule: ITDataModule | None) -> StoredSession:
        """Write down what the session of a module is made of, with what a tuner has changed since.

        Args:
            module: The module.
            datamodule: Its data module; None: it has none yet.
        """
        stored, cfg = cls(), module.session_cfg
        if cfg is None:
            stored.lacking.append("the module was made without a session")
            return stored
        if module.context is not None:
            parts = ("module_cfg", "datamodule_cfg")
            stored._of_adapters = {base for part in parts for _, base in module.context.bases(part)}
        cfg = copy.copy(cfg)
        cfg.module_cfg = copy.copy(cfg.module_cfg)
        cfg.module_cfg.optimizer_init = module.it_cfg.optimizer_init
        if datamodule is not None:
            cfg.datamodule_cfg = copy.copy(cfg.datamodule_cfg)
            for name in ("train_batch_size", "eval_batch_size"):
                setattr(cfg.datamodule_cfg, name, getattr(datamodule.itdm_cfg, name))
        stored.values = without_credentials(stored._written(cfg, ""))
        return stored

    def settings(self) -> dict[str, Any]:
        """The same to be read by people: hyperparameters for loggers."""
        found: dict[str, Any] = _readable(self.values)
        return found

    def _written(self, value: Any, where: str) -> Any:
        if isinstance(value, Enum):
            return self._written(value.value, where)
        if value is None or isinstance(value, bool):
            return value
        for kind, plain in ((str, str), (Integral, int), (float, float)):  # of numpy's only these are read again
            if isinstance(value, kind):
                return plain(value)
        if isinstance(value, (Path, torch.dtype, torch.device)):
            return str(value)
        if isinstance(value, type):
            return {TYPE: self._path_of(value, where)}
        if isinstance(value, Mapping):
            return self._mapping(value, where)
        if isinstance(value, (list, tuple, Set)):
            items = [self._written(item, f"{where}[{i}]") for i, item in enumerate(value)]
            return {TUPLE: items} if isinstance(value, tuple) else items
        if is_dataclass(value) and _is_configuration(type(value)):
            return self._fields(value, where)
        self.lacking.append(f"{where.lstrip('.')} is an object in memory ({type(value).__name__})")
        return None

    def _mapping(self, value: Mapping[Any, Any], where: str) -> dict[str, Any]:
        written, pairs = {}, []
        for name, item in value.items():
            key, stored = self._written(name, f"a key of {where.lstrip('.')}"), self._written(item, f"{where}.{name}")
            if isinstance(key, (list, dict)) or key in (CLASS, TYPE, TUPLE, PAIRS):
                self.lacking.append(f"{where.lstrip('.')} has the key {name!r}")
            elif isinstance(key, str):
                written[key] = stored
            else:
                pairs.append([key, stored])
        return {**written, PAIRS: pairs} if pairs else written

    def _fields(self, value: Any, where: str) -> dict[str, Any]:
        given = {item.name: getattr(value, item.name) for item in fields(value) if item.init}
        given = {name: item for name, item in given.items() if not _is_default(value, name, item)}
        given |= getattr(value, "awaiting_composition", {})
        kept = given.keys() - NOT_STORED
        written = {name: self._written(item, f"{where}.{name}") for name, item in given.items() if name in kept}
        return {CLASS: self._path_of(self._given_class(type(value)), where), **written}

    def _given_class(self, kind: type) -> type:
        """Of a configuration that a session or a file composed for the stack, the class that adapters add to."""
        if _imported(f"{kind.__module__}.{kind.__qualname__}") is kind:
            return kind
        *added, given = kind.__bases__
        return given if added and set(added) <= self._of_adapters else kind

    def _path_of(self, kind: type, where: str) -> str:
        path = f"{kind.__module__}.{kind.__qualname__}"
        if _imported(path) is not kind:
            self.lacking.append(f"{where.lstrip('.') or 'its class'} is {path}, which cannot be imported by that name")
        return path


def _is_configuration(kind: type) -> bool:
    """Whether objects may be made on the word of a checkpoint: constructors of other classes may do anything."""
    names = {f"{base.__module__.partition('.')[0]}.{base.__qualname__}" for base in kind.__mro__}
    return is_dataclass(kind) and (issubclass(kind, CheckedConfig) or not names.isdisjoint(OTHER_CONFIGURATIONS))


def _is_default(owner: Any, name: str, value: Any) -> bool:
    item: Field[Any] = next(item for item in fields(owner) if item.name == name)
    default = item.default if item.default_factory is MISSING else item.default_factory()
    return type(default) is type(value) and bool(default == value)


def read_session(values: Mapping[str, Any], where: str) -> ITSessionConfig:
    """The configuration of a session from ``StoredSession.values``.

    A checkpoint may come from anywhere. On its word modules of the packages in ``KNOWN`` and of packages whose name
    begins with ``interpretune_`` are imported, if they are installed, and no others; no objects but configurations are
    made; ``class_path`` names optimizers and schedulers; and it cannot allow code of a model to run. Credentials that
    were left out stay away.

    Args:
        values: As they were stored.
        where: Names the checkpoint.

    Raises:
        CheckpointError: It is damaged, names a class that is not imported or no configuration, or asks for what a
            checkpoint cannot give.
    """
    made = _read(values, where)
    if not isinstance(made, ITSessionConfig):
        raise CheckpointError(f"{where} is damaged: what it holds as its session is a {type(made).__name__}.")
    return made


def _read(value: Any, where: str) -> Any:
    if isinstance(value, (list, tuple)):
        return [_read(item, where) for item in value]
    if not isinstance(value, Mapping):
        return value
    if TYPE in value:
        return _class(value[TYPE], where)
    if TUPLE in value:
        return tuple(_read(_list(value[TUPLE], where), where))
    if value.get(MAY_RUN_CODE):
        raise CheckpointError(
            f"The session of {where} runs code that comes with its model ({MAY_RUN_CODE}), which a checkpoint alone "
            "cannot allow. Pass session_cfg=ITSessionConfig(...) with the session's configuration."
        )
    hidden = without_credentials({"token": "x"})["token"]
    rest = {name: item for name, item in value.items() if name not in (CLASS, PAIRS) and item != hidden}
    for name in NAMES_OF_CLASSES:
        if isinstance(rest.get(name), str):
            named = _class(rest[name], where)
            if name == "class_path" and not issubclass(named, (Optimizer, LRScheduler)):
                raise CheckpointError(
                    f"The session of {where} is made with {rest[name]} as its optimizer or scheduler, which it is not. "
                    f"{WHAT_TO_DO}"
                )
    made = {name: _read(item, where) for name, item in rest.items()}
    for pair in _list(value.get(PAIRS, []), where):
        if len(_list(pair, where)) != 2 or not isinstance(pair[0], (bool, int, float, type(None))):
            raise CheckpointError(f"{where} is damaged: its session has {pair!r} as a number and its value.")
        made[pair[0]] = _read(pair[1], where)
    if CLASS not in value:
        return made
    kind: Any = _class(value[CLASS], where)
    if not _is_configuration(kind) or PAIRS in value:
        raise CheckpointError(
            f"{where} names {value[CLASS]} as a configuration, which is none that a checkpoint can make. {WHAT_TO_DO}"
        )
    return kind(**made)


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise CheckpointError(f"{where} is damaged: its session has a {type(value).__name__} in the place of a list.")
    return value


def _class(path: Any, where: str) -> Any:
    """A class that a checkpoint names."""
    if not isinstance(path, str):
        raise CheckpointError(f"{where} is damaged: its session has {path!r} in the place of the name of a class.")
    if path.partition(".")[0] in KNOWN or path.startswith("interpretune_"):
        try:
            found = pkgutil.resolve_name(path)
        except (ImportError, AttributeError, ValueError) as error:
            raise CheckpointError(f"{where} names {path}, which is not installed here: {error}.") from error
    else:
        found = _imported(path)
    if not isinstance(found, type):
        module = path.rpartition(".")[0]
        raise CheckpointError(
            f"The session of {where} is made with {path}, which has not been imported. Import it before, from "
            f"{module}, if you trust it; or pass session_cfg=ITSessionConfig(...) with the session's configuration."
        )
    return found


def _imported(path: str) -> Any:
    """An object by its path, if its module has been imported; else None."""
    parts = path.split(".")
    for count in range(len(parts) - 1, 0, -1):
        module: Any = sys.modules.get(".".join(parts[:count]))
        if module is not None:
            return _attribute(module, parts[count:])
    return None


def _attribute(owner: Any, names: Iterable[str]) -> Any:
    for name in names:
        owner = vars(owner).get(name) if hasattr(owner, "__dict__") else None
    return owner


def _readable(value: Any) -> Any:
    if isinstance(value, Mapping):
        if TYPE in value:
            return value[TYPE]
        if TUPLE in value:
            return _readable(value[TUPLE])
        items = [*value.items(), *((str(name), item) for name, item in value.get(PAIRS, ()))]
        return {name: _readable(item) for name, item in items if name not in (CLASS, PAIRS)}
    return [_readable(item) for item in value] if isinstance(value, Sequence) and not isinstance(value, str) else value
