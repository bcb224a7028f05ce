"""Where things stand on a page, at the width of a laptop, of a narrow window, of a phone, and on paper."""

from playwright.sync_api import Page

WIDTHS = (1440, 1024, 390)
# A4 less its margins.
_PAPER = 718

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
// On a phone, the rows of some tables are cards.
const isCell = element => getComputedStyle(element.closest("table")).display === "table";
const top = element => element.getBoundingClientRect().top;
"""
_UNEVEN = (
    "() => {"
    + _TEXTS
    + """
    const within = element => [...document.querySelectorAll("*")].indexOf(element);
    const heads = grouped(visible("thead tr:last-child th").filter(isCell), ({parentElement}) => parentElement);
    const figures = grouped(visible(".figures dd"), ({parentElement}) =>
        `${within(parentElement.parentElement)} ${Math.round(top(parentElement))}`);
    const tiles = grouped(visible(".tile .note"), ({parentElement, previousElementSibling}) =>
        `${within(parentElement.parentElement)} ${Math.round(top(parentElement))} ${lines(previousElementSibling)}`);
    return [...uneven(heads, "bottom"), ...uneven(figures, "bottom"), ...uneven(tiles, "top")];
}"""
)
# The last cell of each row reaches as far as its row.
_SHORT = """() => [...document.querySelectorAll("tr")]
    .filter(row => row.checkVisibility() && getComputedStyle(row).display === "table-row" && row.lastElementChild)
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


_LOOKS = {
    "labels are not level": _UNEVEN,
    "rows end before the edge": _SHORT,
    "words are broken": _BROKEN,
    "names cannot be read": _VANISHED,
    "pictures are cut": _CUT,
}


def misplaced(page: Page) -> list[str]:
    """Return what does not stand where it should at any width."""
    found = []
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 900})
        for what, script in _LOOKS.items():
            found += [f"{what} at {width}: {problem}" for problem in page.evaluate(script)]
    return found


def cut_on_paper(page: Page) -> list[str]:
    """Return pictures that are not printed whole."""
    page.set_viewport_size({"width": _PAPER, "height": 900})
    page.emulate_media(media="print")
    found: list[str] = page.evaluate(_CUT)
    page.emulate_media(media="screen")
    return found
