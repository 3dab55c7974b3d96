"""Keeps credentials out of whatever is written: manifests, cards, summaries, messages.

Two things give a credential away: the name under which it stands (``token``, ``api_key``, ``Authorization``), and the
form of its value (``hf_...``, ``ghp_...``, a password in an address).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "(credential left out)"
"""Stands where a credential stood."""

_SECRET = re.compile(
    r"password|passwd|passphrase|pwd|secrets?|credentials?|authorization|bearer|apikey|cookie|jwt|(auth|access)token"
)
"""Words of a name that give a credential away wherever they stand in it."""
_OF_A_KEY = re.compile(r"api|access|private|secret|account|auth|signing|encryption|ssh")
"""What makes a ``key`` a credential; ``key`` alone is the key of a store, of a column, of anything."""
_OF_A_TOKENIZER = re.compile(
    r"pad|[be]os|unk|cls|sep|mask|next|first|last|stop|start|end|image|audio|video|[be]oi|special|answer|new|max|min|num|"
    r"per|any|forced|begin|decoder|suppress|prefix|suffix|middle|eo[dt]|fim|query|document|prompt|text|label|correct|"
    r"wrong|other"
)
"""What makes a ``token`` one of a tokenizer's."""

_FORMS = re.compile(
    r"""
    \bhf_(?=[A-Za-z0-9]*[0-9])[A-Za-z0-9]{8,}    # Hugging Face
    | \bhf_[A-Za-z0-9]{20,}
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
    | \beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*   # JSON web tokens
    | (?<=\bBearer\ )[A-Za-z0-9._~+/=-]{8,}
    | (?<=\bBasic\ )[A-Za-z0-9+/=]{8,}
    | -----BEGIN[A-Z ]*PRIVATE\ KEY-----.*?(?:-----END[A-Z ]*PRIVATE\ KEY-----|\Z)
    | (?<=://)[^/\s:@]*:[^/\s@]+(?=@)            # user:password@host
    """,
    re.VERBOSE | re.DOTALL,
)
_NAMED = re.compile(
    r"""(?P<name>[A-Za-z_][\w.-]*)(?P<between>['"]?\s*[=:]\s*)(?P<value>'[^']*'|"[^"]*"|[^\s'",;&()\[\]{}/?][^\s'",;&()\[\]{}]*)"""
)


def without_credentials(value: Any) -> Any:
    """A copy of nested mappings, lists and texts in which every credential is replaced by ``HIDDEN``.

    Args:
        value: Mappings, lists, tuples, texts; anything else is handed back as it is.
    """
    if isinstance(value, str):
        return text_without_credentials(value)
    if isinstance(value, Mapping):
        return {
            without_credentials(name): HIDDEN
            if names_a_credential(str(name)) and _can_be_one(item)
            else without_credentials(item)
            for name, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [without_credentials(item) for item in value]
    return value


def text_without_credentials(text: str) -> str:
    """A text in which credentials are replaced by ``HIDDEN``, known by their form or by ``name=value``."""

    def hide(found: re.Match[str]) -> str:
        if not names_a_credential(found["name"]) or not _can_be_one(_plain(found["value"])) or _is_prose(found):
            return found[0]
        return f"{found['name']}{found['between']}{HIDDEN}"

    return _NAMED.sub(hide, _FORMS.sub(HIDDEN, text))


def names_a_credential(name: str) -> bool:
    """Whether what stands under a name is a credential, judged by the words of the name."""
    words = [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+", name)]
    if any(_SECRET.fullmatch(word) for word in words):
        return True
    for before, word in zip(["", *words], words, strict=False):
        if word == "key" and _OF_A_KEY.fullmatch(before):
            return True
    if words[-1:] == ["token"]:
        return not _OF_A_TOKENIZER.fullmatch(" ".join(words[-2:-1]))
    return words in (["auth"], ["sig"], ["signature"], ["sas"], ["netrc"])


def _can_be_one(value: Any) -> bool:
    """Whether a value under the name of a credential is one; ``token=True`` only says that there is one."""
    return value is not None and not isinstance(value, bool) and value not in ("", HIDDEN)


def _is_prose(found: re.Match[str]) -> bool:
    """Whether a colon follows a word of a sentence, and not the name of an entry."""
    before = found.string[: found.start()].rpartition("\n")[2].strip()
    return found["between"].strip() == ":" and before not in ("", "-", "{", "?") and before[-1] not in ",{"


def _plain(text: str) -> Any:
    return {"None": None, "True": True, "False": False, "null": None, "true": True, "false": False}.get(
        text, text.strip("'\"")
    )
