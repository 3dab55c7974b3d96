"""Declares itself with a dictionary."""


class DictDeclaration:
    declaration = {"name": "acme", "level": "model"}  # noqa: RUF012


adapter = DictDeclaration()
