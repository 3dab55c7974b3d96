"""Has every module tidied up when Python ends, and keeps it until then."""

import atexit

import interpretune as it


class KeepsEachModule:
    declaration = it.AdapterDeclaration(name="acme", level="extension", contract="1.0")

    @it.hookimpl
    def it_setup_module(self, module):
        atexit.register(module.zero_grad)


adapter = KeepsEachModule()
