"""Executed notebooks as pages of the site: their texts, their code, and what it showed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from html import escape
from typing import Any


def notebook_page(text: str) -> str:
    """A notebook as Markdown.

    Args:
        text: The notebook's file.
    """
    return "\n\n".join(part for cell in json.loads(text)["cells"] for part in _cell(cell)) + "\n"


def _cell(cell: dict[str, Any]) -> Iterator[str]:
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        yield source
        return
    yield f"```python\n{source}\n```"
    for output in cell["outputs"]:
        shown = {kind: "".join(told) for kind, told in output.get("data", {}).items()}
        if "image/png" in shown:
            yield f"![Figure](data:image/png;base64,{shown['image/png'].strip()})"
        elif "text/html" in shown:
            yield _without_links(f"<div>\n{shown['text/html']}\n</div>")
        else:
            text = "".join(output.get("text", "")) or shown.get("text/plain", "")
            yield _without_links(f"<pre>{escape(text)}</pre>")


def _without_links(html: str) -> str:
    """The same HTML, in which no text, such as that of a token, is taken for a Markdown link."""
    return html.replace("](", "]&#40;")
