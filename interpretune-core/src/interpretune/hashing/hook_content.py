"""Hooks that somebody left on a module: they change numbers, unless their code shows that they cannot."""

from __future__ import annotations

import dis
from collections.abc import Collection
from types import CodeType, FunctionType, MethodType
from typing import Any

from torch import nn

from interpretune.hashing.code_state import counting, instructions
from interpretune.hashing.content import Content

COUNTED = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
"""Tables of hooks that run in forwards and backwards; the others run where states are saved and loaded."""
HOOK_TABLES = frozenset(name for name in vars(nn.Module()) if "_hook" in name)
LISTS = (list, set)


def hooks_of(module: nn.Module, ignored: Collection[str] = ()) -> list[tuple[str, Any]]:
    """What is hooked onto a module, in the order in which it runs.

    Args:
        module: The module.
        ignored: Names of functions that a library hooks in on the way.
    """
    state, parts = vars(module), []
    for table in COUNTED:
        for number, (key, hook) in enumerate((state.get(table) or {}).items()):
            names = str(getattr(hook, "__qualname__", "")).split(".")
            if not changes_nothing(hook) and not any(name in ignored for name in names):
                flags = [name for name in sorted(HOOK_TABLES) if name.startswith(f"{table}_") and key in state[name]]
                parts.append((f".{table}[{number}]", Content("hook", [("", hook), (".flags", flags)])))
    return parts


def changes_nothing(hook: Any) -> bool:
    """Whether a hook can only count.

    It looks at nothing that it is given, returns nothing, and calls only ``append`` and ``add`` of lists and sets.
    """
    function = hook.__func__ if isinstance(hook, MethodType) else hook
    if not isinstance(function, FunctionType):
        return False
    code = function.__code__
    taken = list(code.co_varnames[: code.co_argcount + code.co_kwonlyargcount + _stars(code)])
    given = set(taken[1:] if isinstance(hook, MethodType) else taken)
    if given & set(code.co_cellvars) or code.co_flags & _SUSPENDS:
        return False
    steps = instructions(code)
    noted = _notes(steps, function)
    for at, step in enumerate(steps):
        if "FAST" in step.opname and any(name in given for name in _names_in(step)):
            return False
        if step.opname in _HARMLESS or at in noted:
            continue
        return False
    return True


_SUSPENDS = 0x20 | 0x80 | 0x200
_HARMLESS = frozenset(
    {
        *("RESUME", "COPY_FREE_VARS", "NOP", "POP_TOP", "LOAD_CONST", "RETURN_CONST", "RETURN_VALUE"),
        *("LOAD_SMALL_INT", "EXTENDED_ARG", "CACHE"),
    }
)


def _stars(code: CodeType) -> int:
    return bool(code.co_flags & 0x04) + bool(code.co_flags & 0x08)


def _names_in(step: dis.Instruction) -> tuple[Any, ...]:
    return step.argval if isinstance(step.argval, tuple) else (step.argval,)


def _notes(steps: list[dis.Instruction], function: FunctionType) -> set[int]:
    """Where a hook adds one to a counter or to a list of its own."""
    found: set[int] = set()
    for at in range(len(steps)):
        for length in counting(steps, at), _appends(steps, at, function):
            found.update(range(at, at + length))
    returned = [at for at, step in enumerate(steps) if step.opname == "RETURN_VALUE"]
    told = {at - 1 for at in returned}
    silent = all(steps[at].opname in ("LOAD_CONST", "CALL", "CALL_METHOD", "CALL_FUNCTION") for at in told)
    nothing = all(steps[at].argval is None for at in told if steps[at].opname == "LOAD_CONST")
    constants = all(step.argval is None for step in steps if step.opname == "RETURN_CONST")
    return found if silent and nothing and constants else set()


def _appends(steps: list[dis.Instruction], at: int, function: FunctionType) -> int:
    """Length of ``held.append(constant)`` (or ``add``) at a place, ``held`` being a list or a set; 0: it is neither."""
    first = at + (steps[at].opname == "PUSH_NULL")
    names = [step.opname for step in steps[first : first + 5]]
    if len(names) < 4 or names[0] not in ("LOAD_DEREF", "LOAD_GLOBAL") or names[1] not in ("LOAD_METHOD", "LOAD_ATTR"):
        return 0
    call = 4 if names[3] == "PRECALL" else 3
    if names[2] not in ("LOAD_CONST", "LOAD_SMALL_INT") or not names[call].startswith("CALL"):
        return 0
    return call + 1 + first - at if type(_held(steps[first], function)) in LISTS and _is_append(steps[first + 1]) else 0


def _is_append(step: dis.Instruction) -> bool:
    return str(step.argval) in ("append", "add")


def _held(step: dis.Instruction, function: FunctionType) -> Any:
    cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    if step.opname == "LOAD_GLOBAL":
        return function.__globals__.get(step.argval)
    return cells[step.argval].cell_contents if step.argval in cells else None
