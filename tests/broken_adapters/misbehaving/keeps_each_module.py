"""Registers every module, to find it again by its number."""

import interpretune as it


class KeepsEachModule:
    declaration = it.AdapterDeclaration(name="acme", level="extension", contract="1.0")

    def __init__(self):
        self.registry = {}

    @it.hookimpl
    def it_setup_module(self, module):
        self.registry[len(self.registry)] = module


adapter = KeepsEachModule()
