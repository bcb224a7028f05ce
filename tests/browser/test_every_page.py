"""Rules for every page. Each page is opened once, in the same tabs, and all checks run on it."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
import pytest
from playwright.sync_api import Browser, Page, ViewportSize, expect

from benchmarks.page import page_paths
from tests.browser import chromium
from tests.browser.accessibility import (
    OF_COLOURS,
    OF_WIDTH,
    keyboard_problems,
    overflowing,
    squeezed,
    violations,
)
from tests.browser.chromium import Record
from tests.browser.conftest import OpenPage
from tests.browser.layout import cut_on_paper, misplaced
from tests.browser.pages import PAGES, PageCase
from tests.browser.sample import Names
from tests.browser.served_plane import ServedPlane

Sample = tuple[ServedPlane, Names]

# Of a page: bytes of its document, style and scripts before compression, requests, elements, and cumulative layout
# shift while it is loaded (good is 0.1 by web.dev). Live updates move nothing: test_live_updates.py.
BUDGETS = {"bytes": 150_000, "requests": 12, "elements": 2_500, "shift": 0.01}
# The width of a small phone; also of a window of 1280 at 400 % zoom (WCAG 1.4.10).
PHONE = ViewportSize(width=320, height=640)
DESK = ViewportSize(width=1280, height=900)
TITLE = re.compile(r"<head>.*?<title>(.+?)</title>", re.DOTALL)

_COST = """() => {
    const loaded = [...performance.getEntriesByType("navigation"), ...performance.getEntriesByType("resource")];
    return {
        bytes: loaded.reduce((sum, {decodedBodySize}) => sum + decodedBodySize, 0),
        requests: loaded.length,
        elements: document.querySelectorAll("*").length,
        shift: window.layoutShifts.reduce((sum, {value}) => sum + value, 0),
    };
}"""
_HIDDEN = """() => [...document.querySelectorAll("[hidden], [hidden] *")].flatMap(
    ({childNodes}) => [...childNodes].filter(({nodeType}) => nodeType === Node.TEXT_NODE).map(({data}) => data)
).join(" ")"""


@dataclass(frozen=True)
class Tabs:
    """A tab with scripts and one without, of one person; and what went wrong in them."""

    names: Names
    scripted: Page
    plain: Page
    records: tuple[Record, Record]


@pytest.fixture(scope="module")
def tabs(browser: Browser, sample: Sample) -> Iterator[Tabs]:
    """Opening a profile for each page would take longer than the pages."""
    plane, names = sample
    with (
        chromium.open_page(browser, plane.origin, cookies=plane.cookies) as (scripted, first),
        chromium.open_page(
            browser, plane.origin, cookies=plane.cookies, java_script_enabled=False
        ) as (plain, second),
    ):
        # The first visit is recorded, and the page of sessions shows it from then on.
        plain.goto("/ui/")
        yield Tabs(names, scripted, plain, (first, second))


@pytest.mark.parametrize(
    "case", [case for case in PAGES if case.signed_in], ids=lambda case: case.name
)
def test_everyone_can_use_it_and_it_is_small(tabs: Tabs, case: PageCase) -> None:
    found = look_at(tabs, case.address(tabs.names), whole=not case.is_variant)
    # One page of each template: in the dark, with colours on a phone, and on paper.
    if case.has_picture:
        found += look_closer(tabs.scripted)
    assert found == []


def test_everyone_can_sign_in(browser: Browser, sample: Sample) -> None:
    plane, names = sample
    with (
        chromium.open_page(browser, plane.origin) as (scripted, first),
        chromium.open_page(browser, plane.origin, java_script_enabled=False) as (plain, second),
    ):
        assert look_at(Tabs(names, scripted, plain, (first, second)), "/ui/login") == []
        assert keyboard_problems(scripted) == []


def look_at(tabs: Tabs, address: str, *, whole: bool = True) -> list[str]:
    """Problems of a page, each with whom or what it concerns; not whole: of what it shows, not of how it is used."""
    page = tabs.scripted
    for record in tabs.records:
        record.problems.clear()
    page.set_viewport_size(DESK)
    page.goto(address)
    found = {"with a screen reader": violations(page), "costs": _costs(page)}
    if whole:
        found["with the keyboard"] = keyboard_problems(page, "main")
        found["without scripts"] = _missing(tabs, address)
        found["at any width"] = misplaced(page)
    page.set_viewport_size(PHONE)
    found["on a phone"] = [*overflowing(page), *squeezed(page)]
    found["errors"] = [problem for record in tabs.records for problem in record.problems]
    return [f"{whom}: {problem}" for whom, problems in found.items() for problem in problems]


def look_closer(page: Page) -> list[str]:
    """Problems of the page that is open, on a phone, in the dark and on paper."""
    found = violations(page, OF_WIDTH)
    page.set_viewport_size(DESK)
    page.emulate_media(color_scheme="dark")
    found += violations(page, OF_COLOURS)
    page.emulate_media(color_scheme="light")
    return [*found, *cut_on_paper(page)]


def _costs(page: Page) -> list[str]:
    """Return the figures that exceed their budget."""
    cost = page.evaluate(_COST)
    over = [name for name, most in BUDGETS.items() if cost[name] > most]
    return [f"{cost[name]} {name}, permitted: {BUDGETS[name]}" for name in over]


def _missing(tabs: Tabs, address: str) -> list[str]:
    """Words that a page has with scripts alone, but for those that the server hides for scripts to show."""
    tabs.plain.goto(address)
    read = _words(tabs.plain.locator("main").inner_text())
    assert len(read) > 5
    shown = _words(tabs.scripted.locator("main").inner_text())
    return sorted(shown - read - _words(tabs.plain.evaluate(_HIDDEN)))


def test_a_version_is_a_report_of_one_sheet_of_paper(sample: Sample, open_page: OpenPage) -> None:
    plane, names = sample
    page, _ = open_page(plane)
    page.goto(f"/ui/models/{names.model}/versions/7")
    assert page.pdf(format="A4").count(b"/Type /Page\n") == 1
    page.emulate_media(media="print")
    expect(page.get_by_label("Forgetting matrix").locator("svg")).to_be_visible()
    for part in ("Each dataset in this version", "How it was made", "Files"):
        expect(page.get_by_role("heading", name=part, exact=True)).to_be_visible()
    expect(page.get_by_role("heading", name="Lineage")).to_be_hidden()


def test_an_error_can_be_read_by_everyone(sample: Sample, open_page: OpenPage) -> None:
    page, record = open_page(sample[0])
    page.goto("/ui/models/nothing-there")
    assert (violations(page), keyboard_problems(page)) == ([], [])
    record.forgive("404")


def test_the_keyboard_reaches_the_head_and_the_menu(sample: Sample, open_page: OpenPage) -> None:
    page, _ = open_page(sample[0])
    page.goto("/ui/models")
    page.evaluate("document.getElementById('menu').open = true")
    assert keyboard_problems(page) == []


def test_every_page_has_a_title_of_its_own(sample: Sample) -> None:
    plane, names = sample
    with _visitor(plane) as visitor:
        pages = [visitor.get(case.address(names)).text for case in PAGES if case.signed_in]
    titles = [title for page in pages for title in TITLE.findall(page)]
    assert len(titles) == len(pages)
    assert len(set(titles)) == len(titles)


def test_every_page_of_the_app_is_tested(sample: Sample) -> None:
    plane, names = sample
    tested = [case.address(names).partition("?")[0] for case in PAGES]
    paths = page_paths(plane.app)
    assert paths
    assert [path for path in paths if not any(map(_pattern(path).fullmatch, tested))] == []


@contextmanager
def _visitor(plane: ServedPlane) -> Iterator[httpx.Client]:
    """A visitor with a session who requests only documents."""
    cookies = {cookie["name"]: cookie["value"] for cookie in plane.cookies}
    with httpx.Client(base_url=plane.origin, cookies=cookies, timeout=60) as visitor:
        yield visitor


def _pattern(path: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"{\w+}", "[^/]+", path))


def _words(text: str) -> set[str]:
    return set(re.findall(r"[^\W\d_]{2,}", text))
