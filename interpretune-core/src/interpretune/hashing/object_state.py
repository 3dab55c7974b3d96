"""The full state of objects: attributes of any name, slots, members of containers, parts of modules, hooks.

What a run itself changes does not count: train mode, the device, what cached properties give, and what ``ignored``
names.
"""

from __future__ import annotations

import copyreg
import functools
import json
import re
import weakref
from collections import OrderedDict, defaultdict, deque
from collections.abc import Collection, Iterable
from contextvars import ContextVar
from enum import Enum
from types import FunctionType, MappingProxyType
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from interpretune.errors import UnknownContentError
from interpretune.hashing.code_origin import CORE
from interpretune.hashing.code_state import CODE, code_content
from interpretune.hashing.content import Content, Noted, Raw, UnknownState, leaf_of
from interpretune.hashing.hook_content import HOOK_TABLES, hooks_of
from interpretune.hashing.tensor_content import BOOKKEEPING, is_plain_tensor, tensor_content, tensor_digest
from interpretune.system.compiled import compiled_names, uncompiled
from interpretune.system.placement import HOOK, OF_MODELS, OWN_FORWARD, offloaded_value, only_placed, placed_forward
from interpretune.system.put_back import random_state_put_back

NAMES_NOTHING = frozenset(
    {
        *("_name_or_path", "name_or_path", "transformers_version", "_commit_hash", "model_name", "tokenizer_name"),
        "_original_object_hash",
    }
)
"""Entries of a model's configuration that say where it is from, not what it computes."""

MODULE_BOOKKEEPING = BOOKKEEPING | {
    "training",
    "_parameters",
    "_buffers",
    "_modules",
    "_non_persistent_buffers_set",
    *("_compiled_call_impl", "_is_torch_compile", "_last_compile_config", "_compile_kwargs"),  # of compilers
    "call_super_init",
    *HOOK_TABLES,
}
TOKENIZER_BOOKKEEPING = frozenset({"_tokenizer", "deprecation_warnings", "_in_target_context_manager", "verbose"})
FILES_OF_TOKENIZERS = frozenset(
    {
        *("name_or_path", "tokenizer_file", "vocab_file", "merges_file", "special_tokens_map_file"),
        *("_commit_hash", "init_kwargs"),
    }
)
"""Where a tokenizer is from; what it read there it holds."""
NO_SETTING = frozenset({"__dict__", "__weakref__"})


@runtime_checkable
class HasIdentity(Protocol):
    """Optional for any object: it says itself what results depend on.

    Without it everything that the object holds counts, and if something in it cannot be read (a lock, an open file, an
    object of a C extension), what depends on it is computed again each time.
    """

    def identity(self) -> Any:
        """All that results depend on, as numbers, strings, tensors, modules and containers; its class counts anyway."""


def content_of(value: Any, ignored: Noted, *, from_somewhere: bool = False) -> Content:
    """What a value holds.

    Args:
        value: Anything but plain values and plain tensors.
        ignored: What a forward changes and no result depends on.
        from_somewhere: It is a configuration whose ``NAMES_NOTHING`` say where it is from.

    Raises:
        UnknownState: It cannot be read.
        UnknownContentError: Its ``identity()`` fails.
    """
    if isinstance(value, CODE):
        return code_content(value)
    if tells_identity(value):
        return Content(_kind_of_identity(value), [(".class", type(value)), (".identity()", _identity(value))])
    if isinstance(value, Enum):
        return Content("member", [(".class", type(value)), (f".{value.name}", value._value_)])
    if isinstance(value, nn.Module):
        return _module_content(uncompiled(value), ignored)
    if isinstance(value, Tensor):
        return tensor_content(value)
    native = _native(value)
    from_somewhere = from_somewhere or isinstance(value, (PretrainedConfig, GenerationConfig))
    skipped = {*ignored.of(type(value).__module__), *(NAMES_NOTHING if from_somewhere else ())}
    if isinstance(value, PreTrainedTokenizerBase):
        skipped |= TOKENIZER_BOOKKEEPING | FILES_OF_TOKENIZERS
    if from_somewhere and isinstance(value, dict):
        native = _without(native, NAMES_NOTHING)
    if type(value) in _CONTAINERS:
        return native
    parts = [(".class", type(value)), *state_of(value, skipped)]
    return Content("object", parts if native is None else [*parts, ("", native)])


def tells_identity(value: Any) -> bool:
    """Whether a class has a method ``identity`` that can be called; an attribute of that name is another thing."""
    method = _identity_method(value)
    return isinstance(method, FunctionType) and method.__code__.co_argcount - len(method.__defaults__ or ()) == 1


def _identity_method(value: Any) -> Any:
    return next((vars(kind)["identity"] for kind in type(value).__mro__ if "identity" in vars(kind)), None)


def _kind_of_identity(value: Any) -> str:
    """What somebody's own ``identity()`` returns must be readable; core's returns all attributes, whatever they are."""
    return "state" if _identity_method(value).__module__.partition(".")[0] == CORE else "identity"


def _identity(value: HasIdentity) -> Any:
    try:
        return value.identity()
    except Exception as error:  # somebody else's method may raise anything; it is told with its cause
        raise UnknownContentError(
            f"{type(value).__qualname__}.identity() failed: {type(error).__name__}: {error}. It is to return what "
            "results depend on."
        ) from error


def state_of(value: Any, skipped: Collection[str] = ()) -> list[tuple[str, Any]]:
    """Attributes and slots of an object by name, private ones included."""
    found = {**_slots(value), **getattr(value, "__dict__", {})}
    return [
        (f".{name}", item)
        for name in sorted(found.keys() - skipped, key=str)
        if not _passes(value, str(name), item := found[name])
    ]


def attributes_of(value: Any, skipped: Collection[str] = ()) -> dict[str, Any]:
    """``state_of`` by name; of a module with its parameters, buffers and parts, and without torch's bookkeeping."""
    if isinstance(value, nn.Module):
        skipped = {*skipped, *MODULE_BOOKKEEPING}
    found = {label[1:]: item for label, item in state_of(value, skipped)}
    for group in ("_parameters", "_buffers", "_modules") if isinstance(value, nn.Module) else ():
        found |= {name: item for name, item in vars(value)[group].items() if name not in skipped}
    return found


def passing_of(kind: type) -> frozenset[str]:
    """What a class and its bases list in ``passing_state``, each for itself."""
    return frozenset().union(*(vars(base).get("passing_state", ()) for base in kind.__mro__))


def _passes(owner: Any, name: str, value: Any) -> bool:
    if name == "device" and (value is None or isinstance(value, (str, torch.device))):
        return True
    for kind in type(owner).__mro__:
        if name in vars(kind):
            cached = vars(kind)[name]
            return isinstance(cached, functools.cached_property) and _follows(owner, cached, value)
    return False


def _follows(owner: Any, cached: functools.cached_property[Any], value: Any) -> bool:
    """Whether a cached value is what the property gives now: somebody may have put another one in its place."""
    try:
        with random_state_put_back(), torch.no_grad():
            return _same(cached.func(owner), value)
    except Exception:  # noqa: BLE001 - whatever it raises, it does not give this value, which then counts
        return False


def _same(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, Tensor):
        return is_plain_tensor(one) and is_plain_tensor(other) and tensor_digest(one) == tensor_digest(other)
    if type(one) in (list, tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    if type(one) is dict:
        return _same(list(one), list(other)) and _same(list(one.values()), list(other.values()))
    if type(one) in (set, frozenset):
        return bool(one == other) and all(leaf_of(item) is not None for item in one | other)
    return one is other or (leaf_of(one) is not None and leaf_of(one) == leaf_of(other))


def _slots(value: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for kind in type(value).__mro__:
        slots = vars(kind).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            stored = f"_{kind.__name__.lstrip('_')}{name}" if re.match(r"__.*(?<!__)$", name) else name
            if name not in NO_SETTING and hasattr(value, stored):
                found[stored] = getattr(value, stored)
    return found


def _module_content(module: nn.Module, ignored: Noted) -> Content:
    state = vars(module)
    skipped = {*MODULE_BOOKKEEPING, *ignored.of(type(module).__module__), *compiled_names(module)}
    if isinstance(module, PreTrainedModel):
        skipped |= {"name_or_path"}
    own_forward: list[tuple[str, Any]] = []
    if only_placed(module):
        skipped |= {HOOK, OWN_FORWARD, "forward", *(OF_MODELS if "hf_device_map" in state else ())}
        own_forward = [(".forward", forward)] if (forward := placed_forward(module)) is not None else []
    own = sorted([*state_of(module, skipped), *own_forward], key=lambda part: part[0])
    parts: list[tuple[str, Any]] = [(".class", type(module)), *own]
    for group in ("_parameters", "_buffers"):
        parts += [(f".{name}", _weight(module, name, item)) for name, item in sorted(state[group].items())]
    parts += [(f".{name}", item) for name, item in state["_modules"].items()]  # their order may be that of the forward
    parts += hooks_of(module, ignored)
    return Content("module", parts)


def _weight(module: nn.Module, name: str, item: Tensor | None) -> Any:
    """A weight, also where it is in memory only while the module runs: where it is, is not what it computes."""
    if item is None or item.device.type != "meta" or vars(item).keys() - BOOKKEEPING:
        return item
    kept = offloaded_value(module, name)
    return item if kept is None or not is_plain_tensor(kept) else Raw(tensor_digest(kept))


# ------------------------------------------------------------------------------------------------------------- natives

_CONTAINERS = (list, tuple, dict, set, frozenset, bytearray, deque, MappingProxyType)


def _native(value: Any) -> Any:
    """What a built-in type or an extension holds beside attributes; None: nothing."""
    if isinstance(value, (list, tuple, deque)):
        sequence: Any = next(kind for kind in (list, tuple, deque) if isinstance(value, kind))
        parts = [(f"[{i}]", item) for i, item in enumerate(sequence.__iter__(value))]
        return Content(f"{sequence.__name__} {getattr(value, 'maxlen', '')}", parts)
    if isinstance(value, (dict, MappingProxyType)):
        content = _mapping_content(value.items() if type(value) in _CONTAINERS else _entries(value))
        factory = getattr(value, "default_factory", None) if isinstance(value, defaultdict) else None
        return Content(content.kind, [*content.parts, (".default_factory", factory)]) if factory else content
    if isinstance(value, (set, frozenset)):
        return Content("set", [("", item) for item in value], unordered=True)
    if isinstance(value, (bool, int, float, complex, str, bytes, bytearray)):
        plain: Any = next(kind for kind in (int, float, complex, str, bytes, bytearray) if isinstance(value, kind))
        held = bytes(value) if isinstance(value, bytearray) else plain.__getnewargs__(value)  # whatever the class says
        return Content(plain.__name__, [("", held)])
    if isinstance(value, np.ndarray):
        return _array_content(value)
    if isinstance(value, ContextVar):
        try:
            held = value.get()
        except LookupError:
            held = Content("unset", [])
        return Content("context variable", [(".name", value.name), (".get()", held)])
    if isinstance(value, torch.Generator):
        return Content("generator", [(".state", value.get_state())])
    if isinstance(value, PreTrainedTokenizerBase):
        return _tokenizer_content(value)
    if isinstance(value, weakref.ref):
        return Content("reference", [("()", value())])
    return _reduced(value) if _has_native_state(type(value)) else None


def _entries(value: Any) -> Iterable[tuple[Any, Any]]:
    """What a mapping of a class of its own stores, whatever the class makes of ``items``."""
    return OrderedDict.items(value) if isinstance(value, OrderedDict) else dict.items(value)


def _mapping_content(entries: Iterable[tuple[Any, Any]]) -> Content:
    """A mapping in its order, which whoever goes through it may depend on."""
    parts: list[tuple[str, Any]] = []
    for name, item in entries:
        label = f"[{name!r}]" if isinstance(name, (str, int, float, bool)) else "[...]"
        parts += [(f".keys(){label}", name), (label, item)]
    return Content("mapping", parts)


def _without(content: Content, names: Collection[str]) -> Content:
    pairs = zip(content.parts[::2], content.parts[1::2], strict=True)
    return Content(content.kind, [part for pair in pairs if pair[0][1] not in names for part in pair])


def _array_content(value: np.ndarray[Any, Any]) -> Content:
    told = [(".dtype", value.dtype.str), (".shape", value.shape), (".fields", repr(value.dtype.descr))]
    if value.dtype.hasobject:
        return Content("array", [*told, *((f".flat[{i}]", item) for i, item in enumerate(value.flat))])
    return Content("array", [*told, (".values", np.ascontiguousarray(value).tobytes())])


def _tokenizer_content(value: PreTrainedTokenizerBase) -> Content:
    """All that a tokenizer does, but for padding and truncation, which every call sets anew."""
    given = {name: item for name, item in value.init_kwargs.items() if name not in FILES_OF_TOKENIZERS}
    parts: list[tuple[str, Any]] = [(".init_kwargs", given)]
    if (backend := getattr(value, "_tokenizer", None)) is not None:
        parts += [(f".backend_tokenizer[{i}]", text) for i, text in enumerate(_without_padding(backend.to_str()))]
    return Content("tokenizer", parts)


def _without_padding(written: str) -> tuple[str, str]:
    """A tokenizer's JSON without padding and truncation, which stand before the megabytes of the vocabulary."""
    head, first_of_rest, rest = written.partition('"added_tokens":')
    settings = json.loads(f"{head.rstrip().rstrip(',')}}}") if first_of_rest else json.loads(written)
    return json.dumps({**settings, "padding": None, "truncation": None}), rest


def _reduced(value: Any) -> Content:
    """What pickle would write of an object of an extension."""
    try:
        known = copyreg.dispatch_table.get(type(value))
        reduced = value.__reduce_ex__(4) if known is None else known(value)
    except Exception as error:  # whatever an extension raises means that its state cannot be had
        raise UnknownState(str(error)) from error
    if isinstance(reduced, str):
        return Content("global", [(".module", str(getattr(value, "__module__", ""))), (".name", reduced)])
    maker, arguments, state, members, entries = (*reduced, None, None, None, None)[:5]
    parts = [(".maker", maker), (".arguments", arguments), (".state", state)]
    parts += [(f"[{i}]", item) for i, item in enumerate(members or ())]
    return Content("reduced", [*parts, *((f"[{i}]", item) for i, item in enumerate(entries or ()))])


def _has_native_state(kind: type) -> bool:
    """Whether some class of an object holds more than attributes and slots, in a way of its own."""
    if kind is object:
        raise UnknownState("it has no content")
    for base in kind.__mro__[:-1]:
        above = base.__base__
        assert above is not None
        pointers = sum(
            getattr(base, name) > 0 and getattr(above, name) != getattr(base, name)
            for name in ("__dictoffset__", "__weakrefoffset__")
        )
        slots = vars(base).get("__slots__", ())
        count = len([name for name in ((slots,) if isinstance(slots, str) else slots) if name not in NO_SETTING])
        room = 8 * (pointers + count)
        if base.__itemsize__ or base.__basicsize__ - above.__basicsize__ > max(room, 8 if base.__dictoffset__ else 0):
            return True
    return False
