"""What makes a site of ``docs/``, the READMEs and the docstrings; ``mkdocs.yml`` names ``hooks.py``."""
