"""Sets a variable of the environment that other libraries read."""

import os

import interpretune as it

os.environ["ZOO_HOME"] = os.path.expanduser("~/.zoo")  # noqa: PTH111


class SetsAVariable:
    declaration = it.AdapterDeclaration(name="zoo", level="extension", contract="1.0")


adapter = SetsAVariable()
