"""Rounds what the module logs, to have short lines."""

import interpretune as it


class RoundingEntry:
    def log_dict(self, dictionary, *args, **kwargs):
        short = {name: round(float(value), 3) for name, value in dictionary.items()}
        super().log_dict(short, *args, **kwargs)


class RoundsWhatIsLogged:
    declaration = it.AdapterDeclaration(name="acme", level="extension", contract="1.0")

    @it.hookimpl
    def it_contribute_classes(self):
        return it.ClassContribution(adapter="acme", module_entry=(RoundingEntry,))


adapter = RoundsWhatIsLogged()
