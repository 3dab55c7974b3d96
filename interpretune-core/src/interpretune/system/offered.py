"""What installed packages offer by name: commands, plots, sources of rows, loaders of tokenizers, analysis modes.

Each is a function that an entry point names, in a group for its kind. Names are read from metadata alone; a package is
imported when somebody asks for its name.
"""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Callable, Collection
from difflib import get_close_matches
from typing import Any

from attrs import field, frozen

from interpretune.errors import (
    AdapterError,
    AdapterImportError,
    AdapterSignatureError,
    DuplicateAdapterError,
    InterpretuneError,
)
from interpretune.system.entry_points import load_registered, owner_of, registered, unreadable

NAME = re.compile(r"[a-z][a-z0-9_.-]+")
"""Names of what is offered: of a single letter they would look like drives of a path."""


@frozen
class Kind:
    """A kind of functions that packages offer.

    Attributes:
        group: Group of their entry points.
        what: What one is called.
        own: Names that are core's, and cannot be offered.
    """

    group: str
    what: str
    own: Collection[str] = ()

    def offered(self) -> dict[str, Offer]:
        """All that is offered, by name, sorted; nothing is imported. Each says itself whether it can be used."""
        found: dict[str, Offer] = {}
        for item in sorted(registered(self.group), key=lambda item: (item.name, owner_of(item))):
            offer = Offer(self, item.name, item.value, *owner_of(item))
            twin = found.get(item.name)
            if twin is None:
                found[item.name] = offer
            elif (twin.distribution, twin.target) != (offer.distribution, offer.target):
                found[item.name] = Offer(self, item.name, item.value, *owner_of(item), twin=twin.distribution)
        return found

    def find(self, name: str, error: type[InterpretuneError]) -> Offer:
        """What is offered under a name; raises ``error``, with the names that there are, if nothing is."""
        found = self.offered()
        if name in found:
            return found[name]
        names = [*self.own, *(name for name in found if name not in self.own)]
        near = get_close_matches(name, names, n=1)
        raise error(
            f"There is no {self.what} {name!r}. There are {', '.join(names) or 'none'}."
            + (f" Did you mean {near[0]!r}?" if near else "")
            + "".join(f" The entry points of {item} cannot be read." for item in unreadable(self.group))
        )


@frozen
class Offer:
    """A function that a package offers, not yet imported.

    Attributes:
        kind: Its kind.
        name: Its name.
        target: ``module:attribute`` of the function.
        distribution: The distribution that offers it.
        version: Version of that distribution.
        twin: Another distribution that offers the same name, or nothing.
    """

    kind: Kind = field(repr=False)
    name: str
    target: str
    distribution: str
    version: str
    twin: str = ""

    def __str__(self) -> str:
        return f"{self.name!r} of {self.distribution} {self.version}"

    def refusal(self) -> AdapterError | None:
        """Why it cannot be used, as far as that is known without importing it; None: nothing is known."""
        if self.name in self.kind.own:
            return AdapterSignatureError(
                f"The {self.kind.what} {self} is refused: core has one of that name. Its package must give it another."
            )
        if not NAME.fullmatch(self.name):
            return AdapterSignatureError(
                f"The {self.kind.what} {self} is refused: names are lower-case letters, digits, '_', '-' and '.', two "
                "at least, a letter first."
            )
        if self.twin:
            return DuplicateAdapterError(
                f"{self.twin} and {self.distribution} both offer a {self.kind.what} {self.name!r}. Uninstall one: "
                f"`pip uninstall {self.twin}` or `pip uninstall {self.distribution}`."
            )
        return None

    def load(self) -> Callable[..., Any]:
        """Import the function.

        Raises:
            AdapterImportError: It cannot be imported; the cause is chained.
            AdapterSignatureError: It cannot be called, or takes a name of core's.
            DuplicateAdapterError: Two distributions offer it.
        """
        if (refusal := self.refusal()) is not None:
            raise refusal
        found = load_registered(
            importlib.metadata.EntryPoint(self.name, self.target, self.kind.group),
            lambda told: AdapterImportError(
                f"The {self.kind.what} {self} cannot be imported from {self.target!r}: {told}. Repair it with "
                f"`pip install --force-reinstall {self.distribution}`, or uninstall it."
            ),
        )
        if not callable(found):
            raise AdapterSignatureError(
                f"The {self.kind.what} {self} is a {type(found).__name__}; its entry point {self.target!r} must name a "
                "function."
            )
        return found

    def call(self, error: type[InterpretuneError], *arguments: Any, **options: Any) -> Any:
        """Import and call it; what goes wrong in it becomes an ``error`` that names its package."""
        function = self.load()
        try:
            return function(*arguments, **options)
        except InterpretuneError:
            raise
        except Exception as cause:
            raise error(f"The {self.kind.what} {self} failed: {type(cause).__name__}: {cause}") from cause


COMMANDS = Kind(
    "interpretune.commands",
    "command",
    (
        *("adapters", "explain", "hooks", "tasks", "new-adapter", "doctor", "demo", "circuit", "report", "export"),
        *("plot", "run"),
    ),
)
"""``function(arguments)``, the texts behind the name; returns the exit status, or None for 0."""
PLOTS = Kind("interpretune.plots", "plot", ("latent_effects", "unit_effects"))
"""``function(results, **options)``; returns a figure of plotly, or several."""
ROWS = Kind("interpretune.rows", "source of rows", ("file", "gs", "hf", "http", "https", "s3"))
"""``function(address)``, the text behind ``name:``; returns rows, or rows by split."""
TOKENIZERS = Kind("interpretune.tokenizers", "loader of tokenizers", ("file", "hf", "http", "https"))
"""``function(address, **tokenizer_kwargs)``; returns a tokenizer of transformers."""
MODES = Kind("interpretune.modes", "analysis mode", ("clean_no_sae", "clean_w_sae", "ablation", "attr_patching"))
"""``function(cfg, latent_models)``; returns operations, or names of core's."""
KINDS = (COMMANDS, PLOTS, ROWS, TOKENIZERS, MODES)


def addressed(kind: Kind, source: object) -> tuple[Offer, str] | None:
    """What a text like ``name:address`` names, and the address; None: it names nothing that is offered."""
    name, colon, address = source.partition(":") if isinstance(source, str) else ("", "", "")
    if not colon or name in kind.own or not NAME.fullmatch(name):
        return None
    offer = kind.offered().get(name)
    return None if offer is None else (offer, address)
