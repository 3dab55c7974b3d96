"""Puts a function without a name into the module's configuration."""

from collections.abc import Callable
from dataclasses import dataclass, field

import interpretune as it
from tests.broken_adapters.misbehaving.sound import SoundAdapter


@dataclass(kw_only=True)
class AcmeConfig(it.ITConfig):
    feed: Callable = field(default_factory=lambda: lambda: None)


class CannotBePickled(SoundAdapter):
    declaration = it.AdapterDeclaration(name="acme", level="model", contract="1.0")

    @it.hookimpl
    def it_contribute_classes(self):
        return it.ClassContribution(adapter="acme", module_cfg=(AcmeConfig,))


adapter = CannotBePickled()
