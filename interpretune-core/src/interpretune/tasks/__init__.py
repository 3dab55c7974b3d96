"""Tasks: questions that are ready to ask."""
