"""Functions that MkDocs calls while it builds the site."""

from __future__ import annotations

from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from website import reference, repository
from website.notebooks import notebook_page

COMMAND_LINE = "reference/command-line.md"


def on_config(config: MkDocsConfig) -> None:
    """Put generated pages into the navigation, where it says ``packages/*`` and ``reference/*``."""
    packages = [address for address in repository.included_pages().values() if address.startswith("packages/")]
    spaces = [f"reference/{space}.md" for space in reference.namespaces(reference.public_names())]
    _fill(config.nav, {"packages/*": packages, "reference/*": spaces})


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add pages that are made here, and files to which pages link, to the site."""
    for path, address in repository.included_pages().items():
        text = (repository.ROOT / path).read_text(encoding="utf-8")
        page = notebook_page(text) if path.endswith(".ipynb") else text
        files.append(File.generated(config, address, content=page))
    pages = {file.src_uri: file.content_string for file in files.documentation_pages()}
    for address, source in repository.linked_files(pages).items():
        files.append(File.generated(config, address, abs_src_path=str(source)))
    made = reference.reference_pages(reference.public_names(), reference.load_packages())
    made[COMMAND_LINE] = reference.command_line_page()
    for address, text in made.items():
        files.append(File.generated(config, address, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Pages that are written for the repository, as the site needs them."""
    address = page.file.src_uri
    return markdown if address.startswith("reference/") else repository.page_for_site(markdown, address)


def _fill(nav: Any, pages: dict[str, list[str]]) -> None:
    """Replace entries of the navigation by the pages that they stand for, at whatever depth they are."""
    if isinstance(nav, dict):
        nav = nav.values()
    if isinstance(nav, list):
        nav[:] = [page for entry in nav for page in (pages.get(entry, [entry]) if isinstance(entry, str) else [entry])]
    for entry in () if isinstance(nav, str) else nav:
        _fill(entry, pages)
