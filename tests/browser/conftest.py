"""A browser, and the sample data behind a real server. Without a browser, all tests of this folder skip."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from tests.browser import chromium
from tests.browser.chromium import Record
from tests.browser.sample import Names, build
from tests.browser.sample_endpoint import add_endpoint
from tests.browser.served_plane import ServedPlane, serve
from tests.fakes.clock import ScriptedClock
from tests.fakes.launcher import FakeLauncher

OpenPage = Callable[..., tuple[Page, Record]]


@pytest.fixture(scope="session")
def program() -> str:
    """Path of the browser."""
    found = chromium.find_chromium()
    if found is None:
        pytest.skip(f"no browser: install one of {', '.join(chromium.PROGRAMS)}")
    return found


@pytest.fixture(scope="module")
def browser(program: str) -> Iterator[Browser]:
    """One for each file: while it runs, `asyncio.run` fails in this thread, also for tests of other folders."""
    with chromium.launch(program) as browser:
        yield browser


@pytest.fixture
def open_page(browser: Browser) -> Iterator[OpenPage]:
    """Open pages; at the end of the test, none of them may have recorded a problem."""
    records: list[Record] = []
    with ExitStack() as closing:

        def open_page(
            where: ServedPlane | str, *, signed_in: bool = True, **options: Any
        ) -> tuple[Page, Record]:
            if isinstance(where, ServedPlane):
                cookies = where.cookies if signed_in else ()
                origin, options = where.origin, {"cookies": cookies, **options}
            else:
                origin = where
            opened = chromium.open_page(browser, origin, **options)
            page, record = closing.enter_context(opened)
            records.append(record)
            return page, record

        yield open_page
    assert [problem for record in records for problem in record.problems] == []


@dataclass(frozen=True)
class BuiltSample:
    """The sample in a folder that no process uses, and the state of its cluster."""

    folder: Path
    key: str
    launcher: FakeLauncher
    clock: ScriptedClock
    names: Names

    @contextmanager
    def served(self, folder: Path, prefix: str = "") -> Iterator[tuple[ServedPlane, Names]]:
        """Serve a copy in another folder: copying is faster than building."""
        shutil.copytree(self.folder, folder, dirs_exist_ok=True)
        launcher, clock = deepcopy(self.launcher), deepcopy(self.clock)
        shards = tuple((each / "shards").resolve().as_uri() for each in (self.folder, folder))
        settings = {"launcher": launcher, "clock": clock, "allowed_prefixes": shards}
        with serve(folder, prefix, self.key, **settings) as plane:
            add_endpoint(plane, self.names)
            yield plane, self.names


@pytest.fixture(scope="session")
def built_sample(program: str, tmp_path_factory: pytest.TempPathFactory) -> BuiltSample:
    """The sample, built once."""
    folder = tmp_path_factory.mktemp("built-sample")
    with serve(folder) as plane:
        return BuiltSample(folder, plane.key, plane.launcher, plane.clock, build(plane))


@pytest.fixture(scope="session")
def sample(
    built_sample: BuiltSample, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[ServedPlane, Names]]:
    """The sample behind a server, for tests that only read."""
    with built_sample.served(tmp_path_factory.mktemp("sample")) as served:
        yield served


@pytest.fixture
def own_sample(built_sample: BuiltSample, tmp_path: Path) -> Iterator[tuple[ServedPlane, Names]]:
    """The sample behind a server, for a test that changes something."""
    with built_sample.served(tmp_path) as served:
        yield served
