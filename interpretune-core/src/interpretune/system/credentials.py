"""Keeps credentials out of whatever is written: manifests, cards, summaries, messages.

Two things give a credential away: the name under which it stands (``token``, ``api_key``, ``Authorization``), and the
form of its value (``hf_...``, ``ghp_...``, a password in an address).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

HIDDEN = "(credential left out)"
"""Stands where a credential stood."""

_SECRET = re.compile(
    r"passwords?|passwd|passphrases?|pwd|secrets?|credentials?|authorization|bearer|apikeys?|cookies?|jwt|"
    r"(auth|access)tokens?"
)
"""Words of a name that give a credential away wherever they stand in it."""
_OF_A_KEY = re.compile(
    r"api|access|private|secret|account|auth|signing|encryption|ssh|license|client|service|hf|hub|wandb|openai|anthropic|"
    r"azure|google|github|gitlab"
)
"""What makes a ``key`` a credential; ``key`` alone is the key of a store, of a column, of anything."""
_OF_A_TOKENIZER = re.compile(
    r"pad|[be]os|unk|cls|sep|mask|next|first|last|stop|start|end|image|audio|video|[be]oi|special|answer|new|max|min|num|"
    r"per|any|forced|begin|decoder|suppress|prefix|suffix|middle|eo[dt]|fim|query|document|prompt|text|label|correct|"
    r"wrong|other"
)
"""What makes a ``token`` one of a tokenizer's."""
_OF_TOKENS = re.compile(r"auth|access|refresh|bearer|api|hf|hub|secret|github|gitlab")
"""What makes ``tokens`` credentials; else they are a tokenizer's, but for texts by name that look random."""
_RANDOM = re.compile(r"(?=.*[A-Za-z])(?=.*[0-9])[A-Za-z0-9._~+/=-]{8,}")
_KEY_LIKE = re.compile(
    r"(?:(?:bearer|basic|token|digest)\s+)?(?:(?=\S*[^A-Za-z\s])[!-~]{6,}|[!-~]{16,})", re.IGNORECASE
)
"""What is no word of a sentence."""

_FORMS = re.compile(
    r"""
    \bhf_[A-Za-z0-9]{34,}                        # Hugging Face
    | \bapi_org_[A-Za-z0-9]{20,}
    | \b(?:sk|pk|rk)-[A-Za-z0-9_-]{16,}          # OpenAI, Anthropic and many more
    | \b(?:sk|pk|rk)_(?:live|test)_[A-Za-z0-9]{10,}
    | \bgh[pousr]_[A-Za-z0-9]{16,}               # code hosts
    | \bgithub_pat_[A-Za-z0-9_]{20,}
    | \bgl(?:pat|dt|rt|ptt)-[A-Za-z0-9_-]{16,}
    | \b(?:AKIA|ASIA)[0-9A-Z]{16}\b              # clouds
    | \bAIza[0-9A-Za-z_-]{30,}
    | \bya29\.[0-9A-Za-z_-]{20,}
    | \bxox[abeprs]-[A-Za-z0-9-]{10,}            # chats
    | \b(?:pypi|npm)[-_]A?[A-Za-z0-9_-]{30,}     # registries
    | \bdapi[0-9a-f]{32}\b
    | \br8_[A-Za-z0-9]{20,}
    | (?<![\w-])eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*   # JSON web tokens
    | (?<=\bBearer\ )[A-Za-z0-9._~+/=-]{8,}
    | (?<=\bBasic\ )[A-Za-z0-9+/=]{8,}
    | -----BEGIN[A-Z ]*PRIVATE\ KEY-----.*?(?:-----END[A-Z ]*PRIVATE\ KEY-----|\Z)
    | (?<=://)[^/\s:@]*:[^/\s@]+(?=@)            # user:password@host
    """,
    re.VERBOSE | re.DOTALL,
)
# Each begins where no name can have begun before, so that long words are gone through once.
_NAMED = re.compile(r"""(?<![\w.-])(?P<name>[\w.-]+)(?P<between>['"]?\s{0,8}[=:]\s{0,8})""")
_FLAG = re.compile(r"(?<![\w-])--?(?P<name>[A-Za-z][\w-]*)(?P<between>\s{1,8})(?=[^\s-])")
_VALUE = re.compile(
    r"""'[^']*'|"[^"]*"|\[[^\[\]]*\]|\{[^{}]*\}|"""
    r"""(?:(?i:bearer|basic|token|digest)\s{1,8}(?=[^\s(]))?[^\s'",;&()\[\]{}/?][^\s'",;&()\[\]{}]*"""
)


def without_credentials(value: Any) -> Any:
    """A copy of nested mappings, lists, texts and bytes in which every credential is replaced by ``HIDDEN``."""
    if isinstance(value, str):
        return text_without_credentials(value)
    if isinstance(value, bytes):
        return text_without_credentials(value.decode("latin-1")).encode("latin-1")
    if isinstance(value, Mapping):
        return {without_credentials(name): _without(name, item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return _series(value)
    return value


def _without(name: Any, value: Any) -> Any:
    """A copy of what stands under a name."""
    kind = _kind(str(name))
    if kind == "tokens" and isinstance(value, Mapping):
        return {
            without_credentials(key): HIDDEN
            if isinstance(item, str) and _RANDOM.fullmatch(item)
            else _without(key, item)
            for key, item in value.items()
        }
    hidden = (kind == "secret" and _can_be_one(value)) or (kind == "token" and _holds_text(value))
    return HIDDEN if hidden else without_credentials(value)


def _series(items: Sequence[Any]) -> list[Any]:
    """A copy of a list, whose items may be a name and its value, or arguments of a command."""
    copied = []
    for before, item in zip([None, *items], items, strict=False):
        named = isinstance(before, str) and isinstance(item, (str, bytes)) and names_a_credential(before)
        text = item.decode("latin-1") if isinstance(item, bytes) else item
        hidden = named and (
            (before.startswith("-") and "=" not in before and not text.startswith("-") and _can_be_one(text))
            or (len(items) == 2 and _KEY_LIKE.fullmatch(text))
        )
        copied.append(HIDDEN if hidden else without_credentials(item))
    return copied


def text_without_credentials(text: str) -> str:
    """A text in which credentials are replaced by ``HIDDEN``, known by form, ``name=value`` or ``--name value``."""
    for names in (_NAMED, _FLAG):
        parts, end = [], 0
        for found in names.finditer(text):
            kind = _kind(found["name"]) if found.start() >= end else None
            value = _VALUE.match(text, found.end()) if kind in ("secret", "token") else None
            if value is None or not _can_be_one(_plain(value[0])) or (kind == "token" and _is_number(value[0])):
                continue
            if _is_prose(found) and not _KEY_LIKE.fullmatch(value[0]):
                continue
            parts += [text[end : value.start()], HIDDEN]
            end = value.end()
        text = "".join((*parts, text[end:]))
    return _FORMS.sub(HIDDEN, text)


def names_a_credential(name: str) -> bool:
    """Whether what stands under a name is a credential, judged by the words of the name."""
    return _kind(name) in ("secret", "token")


@functools.lru_cache(maxsize=4096)
def _kind(name: str) -> str | None:
    """What stands under a name: a secret, a token that is no number, or tokens, which may be a tokenizer's."""
    words = [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+", name)]
    if any(_SECRET.fullmatch(word) for word in words) or words in (
        ["auth"],
        ["sig"],
        ["signature"],
        ["sas"],
        ["netrc"],
    ):
        return "secret"
    for before, word in zip(["", *words], words, strict=False):
        if word in ("key", "keys") and _OF_A_KEY.fullmatch(before):
            return "secret"
    before = " ".join(words[-2:-1])
    if words[-1:] in (["token"], ["tokens"]) and not _OF_A_TOKENIZER.fullmatch(before):
        return "token" if words[-1] == "token" or _OF_TOKENS.fullmatch(before) else "tokens"
    return None


def _can_be_one(value: Any) -> bool:
    """Whether a value under the name of a credential is one; ``token=True`` only says that there is one."""
    return value is not None and not isinstance(value, bool) and value not in ("", HIDDEN)


def _holds_text(value: Any) -> bool:
    """Whether there is text in a value; numbers and tensors under the name of a token are a tokenizer's."""
    if isinstance(value, Mapping):
        return any(map(_holds_text, value.values()))
    if isinstance(value, (list, tuple)):
        return any(map(_holds_text, value))
    return isinstance(value, (str, bytes)) and _can_be_one(value)


def _is_number(text: str) -> bool:
    """Whether a text is the number of a token, or a list of numbers."""
    return text.isdecimal() if len(text) < 9 else text[0] == "[" and not re.search("[A-Za-z]", text)


def _is_prose(found: re.Match[str]) -> bool:
    """Whether a name is a word of a sentence, and not the name of an entry."""
    if not found["between"].strip():
        return True
    before = found.string[max(0, found.start() - 64) : found.start()].rpartition("\n")[2].strip()
    return found["between"].strip() == ":" and before not in ("", "-", "{", "?") and before[-1] not in ",{"


def _plain(text: str) -> Any:
    return {"None": None, "True": True, "False": False, "null": None, "true": True, "false": False}.get(
        text, text.strip("'\"")
    )
