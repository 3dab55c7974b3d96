"""Tasks: questions that are ready to ask."""

__all__: list[str] = []
