"""Declares itself with a dictionary."""


class DictDeclaration:
    declaration = {"name": "zoo", "level": "model"}  # noqa: RUF012


adapter = DictDeclaration()
