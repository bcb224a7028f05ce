"""Where things stand on every page, at the width of a laptop, of a narrow window and of a phone."""

from collections.abc import Sequence

import pytest
from playwright.sync_api import Page

from tests.browser.conftest import OpenPage
from tests.browser.pages import PAGES
from tests.browser.sample import Names
from tests.browser.served_plane import ServedPlane

Sample = tuple[ServedPlane, Names]

WIDTHS = (1440, 1024, 390)

# Text boxes of an element; positions of what is in one row must be the same to half a pixel.
_TEXTS = """
const boxes = element => {
    const texts = document.createTreeWalker(element, NodeFilter.SHOW_TEXT), found = [];
    while (texts.nextNode()) {
        const range = document.createRange();
        range.selectNodeContents(texts.currentNode);
        const {data, parentElement} = texts.currentNode;
        const isShown = data.trim() && !parentElement.closest(".sr") && parentElement.checkVisibility();
        if (isShown) found.push(...range.getClientRects());
    }
    return found;
};
const uneven = (groups, side) => [...groups.values()].flatMap(elements => {
    const at = elements.map(element => boxes(element)[0]?.[side]).filter(each => each !== undefined);
    return Math.max(...at) - Math.min(...at) > 0.5 ? [elements.map(({textContent}) => textContent.trim()).join(" | ")] : [];
});
const grouped = (elements, key) => {
    const groups = new Map();
    for (const element of elements) groups.set(key(element), [...(groups.get(key(element)) ?? []), element]);
    return groups;
};
const lines = element => new Set(boxes(element).map(({bottom}) => Math.round(bottom / 8))).size;
const visible = selector => [...document.querySelectorAll(selector)].filter(element => element.checkVisibility());
const top = element => element.getBoundingClientRect().top;
"""
_UNEVEN = (
    "() => {"
    + _TEXTS
    + """
    const within = element => [...document.querySelectorAll("*")].indexOf(element);
    const heads = grouped(visible("thead tr:last-child th"), ({parentElement}) => parentElement);
    const figures = grouped(visible(".figures dd"), ({parentElement}) =>
        `${within(parentElement.parentElement)} ${Math.round(top(parentElement))}`);
    const tiles = grouped(visible(".tile .note"), ({parentElement, previousElementSibling}) =>
        `${within(parentElement.parentElement)} ${Math.round(top(parentElement))} ${lines(previousElementSibling)}`);
    return [...uneven(heads, "bottom"), ...uneven(figures, "bottom"), ...uneven(tiles, "top")];
}"""
)
# The last cell of each row reaches as far as its row.
_SHORT = """() => [...document.querySelectorAll("tr")]
    .filter(row => row.checkVisibility() && row.lastElementChild)
    .filter(row => row.getBoundingClientRect().right - row.lastElementChild.getBoundingClientRect().right > 0.5)
    .map(row => row.innerText)"""
# Cells in which words are broken because the column is narrow.
_BROKEN = (
    "() => {"
    + _TEXTS
    + """
    return visible("th, td").filter(cell => {
        const words = cell.innerText.split(/[\\s\\-–/]+/).filter(each => each);
        return cell.clientWidth < 100 && lines(cell) > words.length;
    }).map(cell => `${cell.clientWidth} wide: ${cell.innerText}`);
}"""
)
# Links in a cell of a fixed width of which nothing can be read.
_VANISHED = (
    "() => {"
    + _TEXTS
    + """
    return visible(".steady td a, .steady th a").filter(link => {
        const cell = link.closest("td, th").getBoundingClientRect(), [first] = boxes(link);
        return !first || Math.min(cell.right, first.right) - first.left < Math.min(24, first.width);
    }).map(link => link.textContent);
}"""
)
# Pictures of which a part is hidden, but for those that have no drawing for a phone.
_CUT = """() => [...document.querySelectorAll("svg.cmcl-picture")]
    .filter(picture => picture.checkVisibility())
    .filter(picture => innerWidth > 1000 || matchMedia("print").matches || picture.closest(".at-narrow"))
    .filter(picture => {
        const {right} = picture.getBoundingClientRect();
        const edge = picture.parentElement.getBoundingClientRect().right;
        return right > Math.min(edge, document.documentElement.clientWidth) + 0.5;
    })
    .map(picture => picture.querySelector("title").textContent)"""


def look(page: Page, names: Names, script: str) -> list[str]:
    """What the script finds on all pages at all widths."""
    found = []
    for case in PAGES:
        if not case.signed_in:
            continue
        page.goto(case.address(names))
        for width in WIDTHS:
            page.set_viewport_size({"width": width, "height": 900})
            problems: Sequence[str] = page.evaluate(script)
            found += [f"{case.name} at {width}: {problem}" for problem in problems]
    return found


@pytest.mark.parametrize(
    "script",
    [_UNEVEN, _SHORT, _BROKEN, _VANISHED, _CUT],
    ids=[
        "labels are level",
        "rows end at the edge",
        "words are whole",
        "names can be read",
        "pictures are whole",
    ],
)
def test_on_every_page(sample: Sample, open_page: OpenPage, script: str) -> None:
    plane, names = sample
    page, _ = open_page(plane)
    assert look(page, names, script) == []


def test_pictures_are_printed_whole(sample: Sample, open_page: OpenPage) -> None:
    plane, names = sample
    # A4 less its margins.
    page, _ = open_page(plane, width=718)
    page.emulate_media(media="print")
    for case in PAGES:
        if case.signed_in:
            page.goto(case.address(names))
            assert (case.name, page.evaluate(_CUT)) == (case.name, [])
