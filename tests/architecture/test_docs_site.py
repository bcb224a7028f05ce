"""The documentation as a site: it builds without a warning, every link has a target, nothing is loaded from elsewhere."""

import functools
import html
import os
import re
import subprocess
from pathlib import Path
from urllib.parse import unquote

import pytest

from tests.architecture.repository import ROOT
from tests.fakes.optional_environment import optional_environment

_TARGET = re.compile(r'\b(?:href|src|srcset)="([^"]*)"')
_LOADED = re.compile(
    r'<(?:script|img|iframe)[^>]*\bsrc="(?:https?:)?//|<link[^>]*stylesheet[^>]*//'
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    python = optional_environment("docs-site", "docs/requirements.lock")
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [str(python.with_name("mkdocs")), "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    assert "WARNING" not in built.stderr
    return folder


@functools.cache
def ids(page: Path) -> set[str]:
    return set(re.findall(r'\bid="([^"]+)"', page.read_text()))


def broken(page: Path, target: str) -> bool:
    """Whether the target is inside the site but missing."""
    if re.match(r"[a-z]+:|//|/", target):
        return False
    name, _, place = unquote(target).partition("#")
    found = page.parent / name if name else page
    if not found.exists():
        return True
    return bool(place) and found.suffix == ".html" and place not in ids(found.resolve())


def test_every_link_of_the_site_has_a_target(site: Path) -> None:
    pages = [page for page in site.rglob("*.html") if page.name != "404.html"]
    assert len(pages) > 50
    found = [
        (page.relative_to(site), target)
        for page in pages
        for target in map(html.unescape, _TARGET.findall(page.read_text()))
        if broken(page, target)
    ]
    assert found == []


def test_nothing_is_loaded_from_another_host(site: Path) -> None:
    assert [page.name for page in site.rglob("*.html") if _LOADED.search(page.read_text())] == []


def test_the_reference_has_every_route_command_and_setting(site: Path) -> None:
    assert "GET <code>/v1/models/{model}</code>" in (site / "api.html").read_text()
    assert "POST <code>/v1/embeddings</code>" in (site / "api-embeddings.html").read_text()
    assert "cmcl dataset add" in (site / "cli.html").read_text()
    assert "CMCL_STORE_URI" in (site / "settings.html").read_text()
    assert "webhook" in (site / "source" / "helm" / "index.html").read_text()
