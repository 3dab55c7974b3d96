"""Executes the notebooks again and stores their outputs: ``make notebooks``."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat

import interpretune as it
from tests.notebooks.execution import NOTEBOOKS, executed

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def take_picture(page: Path, picture: Path) -> None:
    """The beginning of a page."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        shown = browser.new_page(viewport={"width": 900, "height": 760}, offline=True)
        shown.goto(page.as_uri())
        shown.screenshot(path=picture)
        browser.close()


it.offline_model()
for path in NOTEBOOKS:
    if sys.argv[1:] and path.stem not in sys.argv[1:]:
        continue
    with TemporaryDirectory() as folder:
        nbformat.write(executed(path, it.cache_root(), Path(folder)), path)
        print(path.name)
        if (page := Path(folder) / "page.html").exists() and CHROMIUM is not None:
            take_picture(page, path.parent / "images" / f"{path.stem}-page.png")
