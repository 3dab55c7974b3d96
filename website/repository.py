"""Links of the site to files of the repository that are outside of ``docs/``.

READMEs, the changelog and notebooks become pages of the site; any other file that a page links to is copied into it.
Links are written as they work in the repository, and lead to the same thing on the site. A link to a file that does not
exist is a warning, which ends a strict build.
"""

from __future__ import annotations

import functools
import logging
import posixpath
import re
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#|/)([^)#\s]+)")
"""The relative address of a Markdown link, without its anchor."""
FENCE = re.compile(r"^(```)([a-z]+) [a-z ]+$", re.MULTILINE)
"""The first line of a code block with words for the tests after its language, which the site does not know."""

log = logging.getLogger("mkdocs.website.repository")


@functools.cache  # asked for each link of each page
def included_pages() -> Mapping[str, str]:
    """Pages of the site that are files outside of ``docs/``: address in the site by path in the repository."""
    readmes = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("*/README.md"))
    readmes += sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("examples/*/README.md"))
    pages = {path: f"packages/{Path(path).parent.name}.md" for path in readmes if "interpretune" in path}
    notebooks = sorted(ROOT.glob("examples/notebooks/*.ipynb"))
    pages |= {path.relative_to(ROOT).as_posix(): f"notebooks/{path.stem}.md" for path in notebooks}
    return {"README.md": "readme.md", "CHANGELOG.md": "changelog.md", **pages}


def linked_files(pages: Mapping[str, str]) -> dict[str, Path]:
    """Files of the repository, other than pages, to which pages link: path by address in the site.

    Args:
        pages: Markdown by address in the site.
    """
    included = included_pages()
    paths = {repository_path(link, address) for address, text in pages.items() for link in LINK.findall(text)}
    others = [path for path in sorted(paths) if not path.startswith("docs/") and path not in included]
    return {site_address(path): ROOT / path for path in others if (ROOT / path).is_file()}


def page_for_site(markdown: str, address: str) -> str:
    """A page as MkDocs needs it: links lead to addresses of the site, and code blocks have a language alone.

    Args:
        markdown: The page as it is in the repository.
        address: Its address in the site.
    """
    return LINK.sub(lambda found: site_link(found[1], address), FENCE.sub(r"\1\2", markdown))


def site_link(link: str, address: str) -> str:
    """The link of the site for a link of the repository.

    Args:
        link: A relative link as it is written in the page.
        address: The address of the page in the site.
    """
    path = repository_path(link, address)
    if not (ROOT / path).exists():
        log.warning("%s links to %s, which does not exist.", address, link)
        return link
    return posixpath.relpath(site_address(path), posixpath.dirname(address) or ".")


def repository_path(link: str, address: str) -> str:
    """Which file of the repository a link leads to, as seen from the file that the page is made of."""
    sources = {there: here for here, there in included_pages().items()}
    source = sources.get(address, f"docs/{address}")
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), link))


def site_address(path: str) -> str:
    """Where a file of the repository is on the site."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    as_text = "" if path.endswith(".png") else ".txt"
    return included_pages().get(path, f"files/{path}{as_text}")
