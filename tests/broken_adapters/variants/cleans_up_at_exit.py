"""Asks Python to clean a session up at exit, beside doing so when it ends."""

import atexit

import interpretune as it


class CleansUpAtExit:
    declaration = it.AdapterDeclaration(name="acme", level="extension", contract="1.0")

    @it.hookimpl
    def it_setup_module(self, module):
        atexit.register(self.it_end_session, module)

    @it.hookimpl
    def it_end_session(self, module):
        module.acme = None


adapter = CleansUpAtExit()
