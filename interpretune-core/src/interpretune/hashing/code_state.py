"""What functions and classes do: code, constants, defaults, closures, and everything of somebody's own that they name.

Libraries count by their version, core by its source (``interpretune.hashing.code_origin``). Somebody's own functions
and classes, those of adapters included, are followed: into the globals that they name, also through modules that they
import.
"""

from __future__ import annotations

import functools
import inspect
import operator
import sys
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

from interpretune.hashing.code_owner import home_of, is_heap, module_of, origin_of, own_bases
from interpretune.hashing.content import Content
from interpretune.hashing.named_code import MadeWhenAsked, NotImported, named_parts

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
    NotImported,
    MadeWhenAsked,
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
        *("__dataclass_fields__", "__match_args__", "__attrs_attrs__"),
        *("__attrs_own_setattr__", "__attrs_props__", "__attrs_base_of_slotted__", "__parameters__"),
        *("__orig_bases__", "__firstlineno__", "__static_attributes__", "_is_protocol", "_is_runtime_protocol"),
        *("__protocol_attrs__", "__non_callable_proto_members__", "__subclasshook__", "__slotnames__"),
        "__classcell__",
    }
)
"""Entries of a class body that say nothing of what it does, or that Python notes there on the way."""


def code_content(value: Any) -> Content:
    """What a thing out of ``CODE`` does; ``UnknownState`` where it imports something that cannot be known."""
    if isinstance(value, type):
        return _class_content(value)
    if isinstance(value, FunctionType):
        return _function_content(value)
    if isinstance(value, ModuleType):
        return _module_content(value)
    if isinstance(value, CodeType):
        return Content("code", _code_parts(value, None))
    if isinstance(value, (NotImported, MadeWhenAsked)):
        return value.content()
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
        return [*named, (".origin", origin_of(owner))]
    return [*named, (".__self__", owner)]


# ------------------------------------------------------------------------------------------------------------- classes


def _class_content(value: type) -> Content:
    name = f"class {value.__module__}.{value.__qualname__}"
    if not is_heap(value):
        return Content(name, [(".origin", origin_of(sys.modules.get(value.__module__.partition(".")[0])))])
    parts: list[tuple[str, Any]] = [(f".__bases__[{i}]", base) for i, base in enumerate(value.__bases__)]
    origin = origin_of(home_of(value))
    if origin is not None:
        return Content(name, [*parts, (".origin", origin), *_brought_in(value)])
    if type(value) is not type:
        parts.append((".metaclass", type(value)))
    for label, member in sorted(vars(value).items()):
        if label not in NOT_CONTENT and not _is_generated(value, label, member):
            parts.append((f".{label}", member))
    return Content(name, [*parts, *_fields_of(value)])


LEFT_ON_MODULES = frozenset(
    {
        ("smart_apply", "transformers.modeling_utils"),  # as soon as a model was initialized
        ("__init__", "torch._dynamo.mutation_guard"),  # as soon as anything was compiled
        ("__setstate__", "torch._dynamo.mutation_guard"),
    }
)
"""What libraries put on ``torch.nn.Module`` for all of a process, and no result depends on."""


def _brought_in(kind: type) -> list[tuple[str, Any]]:
    """Members of a library's class that are not its own: somebody may have replaced a method.

    Functions of somebody's own are followed; those of other classes and libraries count by name.
    """
    parts: list[tuple[str, Any]] = []
    package, own_name = kind.__module__.partition(".")[0], kind.__qualname__
    for label, member in vars(kind).items():
        function = _function_in(member)
        if not isinstance(function, FunctionType):
            if label not in NOT_CONTENT and not isinstance(member, CODE) and own_bases(type(member)):
                parts.append((f".{label}", member))
            continue
        written = function.__globals__.get("__name__", "")
        if written.partition(".")[0] == package and function.__qualname__.rpartition(".")[0] == own_name:
            continue
        if (label, written) in LEFT_ON_MODULES:
            continue
        inner = inspect.unwrap(function)
        followed = isinstance(inner, FunctionType)
        if followed and inner.__code__.co_filename.startswith("<") and module_of(inner) is None:
            continue  # dataclasses and attrs write them
        own = followed and origin_of(module_of(inner)) is None
        parts.append((f".{label}", member if own else f"{written}.{function.__qualname__}"))
    return sorted(parts, key=operator.itemgetter(0))


def _function_in(member: Any) -> Any:
    if isinstance(member, (staticmethod, classmethod, MethodType)):
        return member.__func__
    if isinstance(member, property):
        return member.fget
    return member.func if isinstance(member, (functools.cached_property, functools.partialmethod)) else member


def _fields_of(kind: type) -> list[tuple[str, Any]]:
    """Defaults, factories, converters and all else that dataclasses and attrs know of fields."""
    held = vars(kind)
    known = [*held.get("__dataclass_fields__", {}).values(), *held.get("__attrs_attrs__", ())]
    parts = []
    for item in known:
        told = [(f".{slot}", getattr(item, slot)) for slot in type(item).__slots__ if slot not in NO_FIELD]
        parts.append((f".{item.name}", Content("field", told)))
    return parts


NO_FIELD = frozenset({"type", "_field_type", "inherited"})
"""What fields say of their annotations."""


def _is_generated(kind: type, name: str, member: Any) -> bool:
    written = "__dataclass_fields__" in vars(kind) or "__attrs_attrs__" in vars(kind)
    if not written or name not in GENERATED or not isinstance(member, FunctionType):
        return False
    return member.__code__.co_filename.startswith(("<string>", "<attrs generated"))


# ----------------------------------------------------------------------------------------------------------- functions


def _function_content(function: FunctionType) -> Content:
    code = function.__code__
    name = f"function {function.__globals__.get('__name__')}.{code.co_name}"
    origin = origin_of(module_of(function))
    cells = zip(code.co_freevars, function.__closure__ or (), strict=True)
    parts: list[tuple[str, Any]] = [(f".{label}", _cell(cell)) for label, cell in cells]
    parts += [(f".{label}", item) for label, item in sorted(vars(function).items())]
    if origin is not None:  # a library's; what it holds may be somebody's own, as the function inside a decorator
        return Content(name, [*parts, (".__qualname__", function.__qualname__), (".origin", origin)])
    parts += [(".__defaults__", function.__defaults__), (".__kwdefaults__", function.__kwdefaults__)]
    return Content(name, [*parts, *_code_parts(code, function.__doc__), *named_parts(function)])


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


def _module_content(module: ModuleType) -> Content:
    origin = origin_of(module)
    if origin is not None:
        return Content(f"module {module.__name__}", [(".origin", origin)])
    members = [
        (f".{name}", item)
        for name, item in sorted(vars(module).items())
        if not name.startswith("__") or name == "__getattr__"
    ]
    return Content(f"module {module.__name__}", members)
