"""Takes the options that are meant for it out of the mapping."""

import interpretune as it


class TakesOptionsOut:
    declaration = it.AdapterDeclaration(name="acme", level="extension", contract="1.0")

    @it.hookimpl
    def it_log(self, module, metrics, options):
        if options.pop("prog_bar", False):
            module.acme_shown = dict(metrics)


adapter = TakesOptionsOut()
