"""Pictures of the sample data in MLflow, and of this documentation as a site: a part of `make pictures`."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
from playwright.sync_api import Browser, Page

from tests.architecture.repository import ROOT
from tests.browser.chromium import open_page
from tests.browser.served_plane import ServedPlane
from tests.fakes.optional_environment import optional_environment
from tests.mirror.conftest import Commands
from tests.mirror.test_mirror import free_port, mlflow_server

# Name of the picture: page of the site.
SITE = {
    "site-home": "index.html",
    "site-start": "start.html",
    "site-reference": "api-embeddings.html",
}
_WIDTH, _HEIGHT = 1280, 800


def take_mlflow(browser: Browser, plane: ServedPlane, model: str) -> Iterator[tuple[str, bytes]]:
    """MLflow's own page of a model that `cmcl mirror` has written."""
    # The package of the mirror's tests has no page; the one with the page, without what else it would install.
    locks = ("tests/mirror/requirements.lock", "tests/browser/mlflow.lock")
    python = optional_environment("mlflow", *locks)
    with TemporaryDirectory() as folder:
        commands = Commands(python, Path(folder), plane.origin)
        commands.environment["CMCL_KEY"] = plane.key
        port = free_port()
        address = f"http://127.0.0.1:{port}"
        with mlflow_server(commands, port):
            mirror = ("mirror", f"--tracking-uri={address}", f"--model={model}", "--once")
            commands.run(*mirror)
            search = f"{address}/api/2.0/mlflow/runs/search"
            (run,) = httpx.post(search, json={"experiment_ids": ["1"]}).json()["runs"]
            with open_page(browser, address, width=_WIDTH, height=_HEIGHT) as (page, _):
                page.goto(f"/#/experiments/1/runs/{run['info']['run_id']}/model-metrics")
                chart = page.locator(".js-plotly-plot .main-svg").first
                chart.wait_for(timeout=120_000)
                page.get_by_placeholder("Search metric charts").fill("recall_at_1")
                page.get_by_label("Close").last.click()  # MLflow's assistant.
                chart.wait_for()
                yield "tool-mlflow", _settled(page)


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
