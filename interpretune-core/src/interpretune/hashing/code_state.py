"""What functions and classes do: code, constants, defaults, closures, and everything of somebody's own that they name.

Libraries count by their version, core by its source (``interpretune.hashing.code_origin``). Somebody's own functions
and classes, those of adapters included, are followed: into the globals that they name, also through modules that they
import.
"""

from __future__ import annotations

import dis
import functools
import importlib
import importlib.util
import sys
import weakref
from collections import deque
from collections.abc import Collection, Iterable, Sequence
from types import (
    BuiltinFunctionType,
    CodeType,
    FunctionType,
    GetSetDescriptorType,
    MemberDescriptorType,
    MethodDescriptorType,
    MethodType,
    MethodWrapperType,
    ModuleType,
    WrapperDescriptorType,
)
from typing import Any

from interpretune.hashing.code_origin import CORE, version_of, version_of_name
from interpretune.hashing.content import Content, UnknownState

_LruCache = type(functools.lru_cache(lambda: None))
DESCRIPTORS = (
    MethodDescriptorType,
    WrapperDescriptorType,
    GetSetDescriptorType,
    MemberDescriptorType,
    type(dict.__dict__["fromkeys"]),
)
CODE = (
    type,
    FunctionType,
    MethodType,
    BuiltinFunctionType,
    MethodWrapperType,
    ModuleType,
    CodeType,
    functools.partial,
    functools.partialmethod,
    functools.cached_property,
    property,
    staticmethod,
    classmethod,
    _LruCache,
    *DESCRIPTORS,
)
"""Kinds of things that are code, or that hold it."""

RECORDS = (int, float, list, deque)
"""Kinds of counters, and of lists that are appended to."""

NUMBERS = ("LOAD_CONST", "LOAD_SMALL_INT")
GENERATED = frozenset(
    {
        *("__init__", "__repr__", "__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__", "__hash__"),
        *("__setattr__", "__delattr__", "__replace__", "__getstate__", "__setstate__"),
    }
)
"""Methods that dataclasses and attrs write: they follow from the fields, which count."""
NOT_CONTENT = frozenset(
    {
        *("__dict__", "__weakref__", "__doc__", "__module__", "__qualname__", "__annotations__", "__annotate__"),
        *("__annotate_func__", "__annotations_cache__", "__abstractmethods__", "_abc_impl"),
        *("__dataclass_fields__", "__dataclass_params__", "__match_args__", "__attrs_attrs__"),
        *("__attrs_own_setattr__", "__attrs_props__", "__attrs_base_of_slotted__", "__parameters__"),
        *("__orig_bases__", "__firstlineno__", "__static_attributes__", "_is_protocol", "_is_runtime_protocol"),
        *("__protocol_attrs__", "__non_callable_proto_members__", "__subclasshook__", "__slotnames__"),
        "__classcell__",
    }
)
"""Entries of a class body that say nothing of what it does, or that Python notes there on the way."""


def code_content(value: Any) -> Content:
    """What a thing out of ``CODE`` does.

    Raises:
        UnknownState: Something that it imports cannot be had.
    """
    if isinstance(value, type):
        return _class_content(value)
    if isinstance(value, FunctionType):
        return _function_content(value)
    if isinstance(value, ModuleType):
        return _module_content(value)
    if isinstance(value, CodeType):
        return Content("code", _code_parts(value, None))
    return Content(type(value).__name__, _wrapped_parts(value))


def _wrapped_parts(value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, (functools.partial, functools.partialmethod)):
        parts = [(".func", value.func), (".args", tuple(value.args)), (".keywords", dict(value.keywords))]
        return [*parts, (".attributes", dict(vars(value)) if isinstance(value, functools.partial) else None)]
    if isinstance(value, MethodType):
        return [(".__func__", value.__func__), (".__self__", value.__self__)]
    if isinstance(value, property):
        return [(".fget", value.fget), (".fset", value.fset), (".fdel", value.fdel)]
    if isinstance(value, functools.cached_property):
        return [(".func", value.func)]
    if isinstance(value, (staticmethod, classmethod)):
        return [("", value.__func__)]
    if isinstance(value, _LruCache):
        return [("", value.__wrapped__)]
    if isinstance(value, DESCRIPTORS):
        return [(".owner", value.__objclass__), (".name", value.__name__)]
    owner = getattr(value, "__self__", None)  # a function of C, bound to an object or to its module
    named = [(".name", value.__qualname__), (".module", str(getattr(value, "__module__", None)))]
    if isinstance(owner, ModuleType):
        return [*named, (".origin", _origin(owner))]
    return [*named, (".__self__", owner)]


# ------------------------------------------------------------------------------------------------------------- origins


def _origin(module: ModuleType | None) -> str | None:
    """What a module's code counts by beside names; None: it is somebody's own and is followed."""
    if module is None:
        return None
    return CORE if module.__name__.partition(".")[0] == CORE else version_of(module)


def _module_of(function: FunctionType) -> ModuleType | None:
    """The module in which a function was written, whatever it says of itself."""
    module = sys.modules.get(function.__globals__.get("__name__", ""))
    return module if module is not None and vars(module) is function.__globals__ else None


def _is_member(value: type) -> ModuleType | None:
    """The module in which a class is found under its name; None: it was made elsewhere."""
    module = sys.modules.get(value.__module__)
    found: Any = module
    for name in value.__qualname__.split("."):
        found = getattr(found, "__dict__", {}).get(name)
    return module if found is value else None


# ------------------------------------------------------------------------------------------------------------- classes


def _class_content(value: type) -> Content:
    name = f"class {value.__module__}.{value.__qualname__}"
    module = _is_member(value)
    origin = _origin(module)
    if origin is not None:
        return Content(name, [(".origin", origin)])
    if not _is_heap(value):
        return Content(name, [(".origin", _origin(sys.modules.get(value.__module__.partition(".")[0])))])
    parts: list[tuple[str, Any]] = [(f".__bases__[{i}]", base) for i, base in enumerate(value.__bases__)]
    if type(value) is not type:
        parts.append((".metaclass", type(value)))
    counted = counters_of(value)
    for label, member in sorted(vars(value).items()):
        records = label in counted and isinstance(member, RECORDS)
        if label not in NOT_CONTENT and not records and not _is_generated(value, label, member):
            parts.append((f".{label}", member))
    return Content(name, parts)


def _is_generated(kind: type, name: str, member: Any) -> bool:
    written = "__dataclass_fields__" in vars(kind) or "__attrs_attrs__" in vars(kind)
    if not written or name not in GENERATED or not isinstance(member, FunctionType):
        return False
    return member.__code__.co_filename.startswith(("<string>", "<attrs generated"))


def _counters(functions: Iterable[FunctionType]) -> frozenset[str]:
    counted: set[str] = set()
    read: set[str] = set()
    for function in functions:
        for code in _with_inner(function.__code__):
            steps = instructions(code)
            inside: set[int] = set()
            for at, step in enumerate(steps):
                if length := counting(steps, at):
                    counted.add(str(steps[at + length - 1].argval))
                    inside.update(range(at, at + length))
                if step.opname in ("LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR") and at not in inside:
                    (counted if _is_appended_to(steps, at) else read).add(str(step.argval))
                if step.opname == "LOAD_CONST" and isinstance(step.argval, str):
                    read.add(step.argval)  # for getattr
    return frozenset(counted - read)


def counters_of(kind: type) -> frozenset[str]:
    """Attributes to which the code of a class adds constants or appends, and which it never reads.

    No result depends on those that are ``RECORDS``.
    """
    members = [member for base in own_bases(kind) for member in vars(base).values()]
    functions = [getattr(member, "__func__", getattr(member, "fget", member)) for member in members]
    return _counters(item for item in functions if isinstance(item, FunctionType))


def names_in_class(kind: type) -> frozenset[str]:
    """Everything that the code of a class names, where it is somebody's own."""
    return frozenset().union(*(names_in(member) for base in own_bases(kind) for member in vars(base).values()))


def names_in(function: Any) -> frozenset[str]:
    """Everything that a function names: variables, attributes, and texts, which ``getattr`` may take."""
    inner = getattr(function, "__func__", getattr(function, "fget", getattr(function, "func", function)))
    if not isinstance(inner, FunctionType) or _origin(_module_of(inner)) is not None:
        return frozenset()
    texts = (item for code in _with_inner(inner.__code__) for item in code.co_consts if isinstance(item, str))
    return frozenset(texts).union(*(code.co_names for code in _with_inner(inner.__code__)))


def own_bases(kind: type) -> tuple[type, ...]:
    """Classes out of the method resolution order of one that are somebody's own."""
    if kind in _libraries:
        return ()
    found = tuple(base for base in kind.__mro__ if _is_heap(base) and _origin(_is_member(base)) is None)
    if not found:
        _libraries.add(kind)
    return found


_libraries: weakref.WeakSet[type] = weakref.WeakSet()
"""Classes that have no base of somebody's own."""


def _is_heap(kind: type) -> bool:
    """Whether a class was made while Python ran; the others are of C and have no code."""
    return bool(kind.__flags__ & 1 << 9)


def counting(steps: Sequence[dis.Instruction], at: int) -> int:
    """Length of ``x.name += constant`` at a place, and 0 where there is something else."""
    names = [step.opname for step in steps[at : at + 7]]
    if len(names) < 7 or not names[0].startswith(("LOAD_FAST", "LOAD_GLOBAL", "LOAD_DEREF", "LOAD_NAME")):
        return 0
    if names[1] not in ("COPY", "DUP_TOP") or names[2] != "LOAD_ATTR" or names[3] not in NUMBERS:
        return 0
    adds = names[4] == "INPLACE_ADD" or (names[4] == "BINARY_OP" and steps[at + 4].argrepr == "+=")
    same = steps[at + 2].argval == steps[at + 6].argval and names[6] == "STORE_ATTR"
    return 7 if adds and same and names[5] in ("SWAP", "ROT_TWO") else 0


def _is_appended_to(steps: Sequence[dis.Instruction], at: int) -> bool:
    """Whether all that is done with what is loaded at a place is to append to it, as whoever keeps a record does."""
    following = steps[at + 1] if at + 1 < len(steps) else None
    return following is not None and following.opname in ("LOAD_METHOD", "LOAD_ATTR") and following.argval == "append"


# ----------------------------------------------------------------------------------------------------------- functions


def _function_content(function: FunctionType) -> Content:
    code = function.__code__
    name = f"function {function.__globals__.get('__name__')}.{code.co_name}"
    origin = _origin(_module_of(function))
    cells = zip(code.co_freevars, function.__closure__ or (), strict=True)
    parts: list[tuple[str, Any]] = [(f".{label}", _cell(cell)) for label, cell in cells]
    parts += [(f".{label}", item) for label, item in sorted(vars(function).items())]
    if origin is not None:  # a library's; what it holds may be somebody's own, as the function inside a decorator
        return Content(name, [*parts, (".__qualname__", function.__qualname__), (".origin", origin)])
    parts += [(".__defaults__", function.__defaults__), (".__kwdefaults__", function.__kwdefaults__)]
    return Content(name, [*parts, *_code_parts(code, function.__doc__), *_named(function)])


def _cell(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return Content("empty", [])


def _code_parts(code: CodeType, doc: str | None) -> list[tuple[str, Any]]:
    constants: list[Any] = list(code.co_consts)
    if doc is not None and constants and constants[0] == doc:
        constants[0] = None
    taken = code.co_argcount + code.co_kwonlyargcount
    return [
        (".co_code", code.co_code),
        (".co_names", code.co_names),
        (".co_freevars", code.co_freevars),
        (".co_varnames", code.co_varnames[:taken]),
        (".co_flags", (code.co_flags, code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount)),
        (".co_exceptiontable", getattr(code, "co_exceptiontable", b"")),
        *((f".co_consts[{i}]", item) for i, item in enumerate(constants)),
    ]


@functools.lru_cache(maxsize=4096)
def instructions(code: CodeType) -> tuple[dis.Instruction, ...]:
    """Instructions of a code object, as all processes see them."""
    return tuple(dis.get_instructions(code))


def _with_inner(code: CodeType) -> Iterable[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _with_inner(constant)


def _named(function: FunctionType) -> list[tuple[str, Any]]:
    """Globals that a function names, and what it takes from modules of somebody's own."""
    known = function.__globals__
    loaded: dict[str, None] = {}
    imported: dict[tuple[str, int], None] = {}
    mentioned: set[str] = set()
    for code in _with_inner(function.__code__):
        mentioned |= {*code.co_names, *(item for item in code.co_consts if isinstance(item, str))}
        level = 0
        steps = instructions(code)
        for at, step in enumerate(steps):
            if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
                if not (_is_appended_to(steps, at) and isinstance(known.get(step.argval), RECORDS)):
                    loaded[str(step.argval)] = None
            elif step.opname in NUMBERS and isinstance(step.argval, int):
                level = step.argval
            elif step.opname == "IMPORT_NAME":
                imported[str(step.argval), level] = None
    parts = [(f":{name}", _reached(known[name], mentioned)) for name in sorted(loaded) if name in known]
    package = str(known.get("__package__") or "")
    return [*parts, *((f":import {name}", _imported(name, level, package, mentioned)) for name, level in imported)]


def _reached(value: Any, mentioned: Collection[str], seen: frozenset[int] = frozenset()) -> Any:
    """A global; of a module of somebody's own, those members that are mentioned beside it."""
    if not isinstance(value, ModuleType) or _origin(value) is not None or id(value) in seen:
        return value if not isinstance(value, ModuleType) else Content(f"module {value.__name__}", _by_origin(value))
    members = sorted(name for name in mentioned & vars(value).keys() if not name.startswith("__"))
    inner = seen | {id(value)}
    return Content(
        f"members of {value.__name__}",
        [(f".{name}", _reached(vars(value)[name], mentioned, inner)) for name in members],
    )


def _by_origin(module: ModuleType) -> list[tuple[str, Any]]:
    return [(".origin", _origin(module))]


def _imported(name: str, level: int, package: str, mentioned: Collection[str]) -> Any:
    """What a function imports when it runs; it is imported now, as the function would, where it is somebody's own."""
    full = importlib.util.resolve_name("." * level + name, package) if level else name
    version = version_of_name(full.partition(".")[0])
    if version is not None:
        return Content(f"module {full}", [(".origin", version)])
    try:
        module = importlib.import_module(full)
    except ImportError:
        return Content(f"absent {full}", [])
    except Exception as error:  # whatever a module raises while it is imported
        raise UnknownState(f"it imports {full}, which raises {type(error).__name__}: {error}") from error
    return _reached(module, mentioned)


def _module_content(module: ModuleType) -> Content:
    origin = _origin(module)
    if origin is not None:
        return Content(f"module {module.__name__}", [(".origin", origin)])
    members = [(f".{name}", item) for name, item in sorted(vars(module).items()) if not name.startswith("__")]
    return Content(f"module {module.__name__}", members)
