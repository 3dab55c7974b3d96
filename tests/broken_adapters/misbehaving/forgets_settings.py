"""Its composed configuration comes back from pickle without what the user set."""

from dataclasses import dataclass

import interpretune as it
from tests.broken_adapters.misbehaving.sound import SoundAdapter


@dataclass(kw_only=True)
class AcmeConfig:
    """Adds a field."""

    acme_keepers: int = 2

    def __setstate__(self, state):
        vars(self).update({**state, "acme_keepers": 0})


class ForgetsSettings(SoundAdapter):
    declaration = it.AdapterDeclaration(name="acme", level="model", contract="1.0")

    @it.hookimpl
    def it_contribute_classes(self):
        return it.ClassContribution(adapter="acme", module_cfg=(AcmeConfig,))


adapter = ForgetsSettings()
