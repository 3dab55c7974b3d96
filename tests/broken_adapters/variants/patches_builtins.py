"""Marks its lines by a print of its own, in all code."""

import builtins

import interpretune as it

PRINT = builtins.print


def marked(*args, **kwargs):
    PRINT("acme:", *args, **kwargs)


builtins.print = marked


class PatchesBuiltins:
    declaration = it.AdapterDeclaration(name="acme", level="extension", contract="1.0")


adapter = PatchesBuiltins()
