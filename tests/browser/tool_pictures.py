"""Pictures of this documentation as a site: a part of `make pictures`."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from playwright.sync_api import Browser, Page

from tests.architecture.repository import ROOT
from tests.browser.chromium import open_page
from tests.fakes.optional_environment import optional_environment

# Name of the picture: page of the site.
SITE = {
    "site-home": "index.html",
    "site-start": "start.html",
    "site-reference": "api-embeddings.html",
}
_WIDTH, _HEIGHT = 1280, 800


def take_site(browser: Browser) -> Iterator[tuple[str, bytes]]:
    """Pages of the documentation, opened from a disk."""
    python = optional_environment("docs-site", "docs/requirements.lock")
    with TemporaryDirectory() as folder:
        subprocess.run(
            [str(python.with_name("mkdocs")), "build", "--quiet", "--site-dir", folder],
            cwd=ROOT,
            env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
            check=True,
        )
        for name, address in SITE.items():
            with open_page(browser, Path(folder).as_uri(), width=_WIDTH, height=_HEIGHT) as (
                page,
                _,
            ):
                page.goto(Path(folder, address).as_uri())
                yield name, _settled(page)


def _settled(page: Page) -> bytes:
    """The page once its animations are over."""
    page.wait_for_timeout(1500)
    return page.screenshot()
