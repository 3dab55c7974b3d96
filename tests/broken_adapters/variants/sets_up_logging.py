"""Sets up logging for the whole program when it is imported."""

import logging

import interpretune as it

logging.basicConfig(level=logging.INFO)


class SetsUpLogging:
    declaration = it.AdapterDeclaration(name="acme", level="extension", contract="1.0")


adapter = SetsUpLogging()
