"""Sets a variable of the environment that other libraries read."""

import os

import interpretune as it

os.environ["ACME_HOME"] = os.path.expanduser("~/.acme")  # noqa: PTH111


class SetsAVariable:
    declaration = it.AdapterDeclaration(name="acme", level="extension", contract="1.0")


adapter = SetsAVariable()
