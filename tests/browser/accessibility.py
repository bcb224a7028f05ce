"""Accessibility of a page with a keyboard, a screen reader, a phone or larger text."""

from collections.abc import Sequence

from axe_playwright_python.base import AXE_SCRIPT
from playwright.sync_api import Page

WCAG = ("wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice")
# Rules that depend on colours and the width of the window; the others read elements and attributes.
OF_COLOURS = ("color-contrast",)
OF_WIDTH = ("target-size", "scrollable-region-focusable", "color-contrast", "landmark-unique")

_AXE = """async rules => {
    const runOnly = rules.length ? {type: "rule", values: rules} : {type: "tag", values: %s};
    const {violations} = await axe.run(document, {runOnly, resultTypes: ["violations"]});
    return violations.flatMap(({id, impact, help, nodes}) => nodes.map(
        ({html, failureSummary}) => `${id} (${impact}): ${help}: ${html.slice(0, 200)} ${failureSummary}`));
}"""

_OVERFLOW = """() => {
    const width = document.documentElement.clientWidth;
    if (document.documentElement.scrollWidth <= width) return [];
    const isClipped = element => element.parentElement && (
        getComputedStyle(element.parentElement).overflowX !== "visible" || isClipped(element.parentElement));
    const elements = [...document.body.querySelectorAll("*")]
        .filter(element => element.getBoundingClientRect().right > width + 0.5)
        .filter(element => !isClipped(element) || getComputedStyle(element).position === "absolute")
        .map(element => element.outerHTML.slice(0, 160));
    return [`the document is ${document.documentElement.scrollWidth} wide`, ...elements];
}"""

_SQUEEZED = """() => [...document.querySelectorAll("th, td")]
    .filter(cell => cell.checkVisibility() && cell.innerText.trim() && cell.clientWidth < 20)
    .map(cell => cell.outerHTML.slice(0, 160))"""

# With each key: what has the focus, how to find it again, whether it can be seen, and whether it shows the focus.
_RECORD = """() => {
    window.focused = [];
    document.addEventListener("keydown", () => {
        const element = document.activeElement;
        if (!element || element === document.body) return;
        const style = getComputedStyle(element), box = element.getBoundingClientRect();
        focused.push({
            index: [...document.querySelectorAll("*")].indexOf(element),
            html: element.outerHTML.slice(0, 160),
            isVisible: box.width > 0 && box.height > 0 && box.bottom > 0 && box.top < innerHeight,
            hasMark: style.outlineStyle !== "none" && parseFloat(style.outlineWidth) > 0,
        });
    }, true);
}"""

_INTERACTIVE = """within => [...document.querySelector(within).querySelectorAll(
    "a[href], button:not(:disabled), input:not([type=hidden]):not(:disabled), select:not(:disabled), " +
    "textarea:not(:disabled), summary, [tabindex='0']")]
    .filter(element => element.checkVisibility({visibilityProperty: true, contentVisibilityAuto: true}))
    .filter(element => !(element.type === "radio" && !element.checked))
    .map(element => [...document.querySelectorAll("*")].indexOf(element))"""


def violations(page: Page, rules: Sequence[str] = ()) -> list[str]:
    """Violations of WCAG 2.2 AA and of axe's best practices, or of some rules, each with its element."""
    if not page.evaluate("'axe' in window"):
        page.evaluate(AXE_SCRIPT)
    found: list[str] = page.evaluate(_AXE % list(WCAG), list(rules))
    return found


def overflowing(page: Page) -> list[str]:
    """Elements that overflow a window that scrolls sideways; empty if it does not scroll."""
    found: list[str] = page.evaluate(_OVERFLOW)
    return found


def squeezed(page: Page) -> list[str]:
    """Table cells whose text does not fit."""
    found: list[str] = page.evaluate(_SQUEEZED)
    return found


def keyboard_problems(page: Page, within: str = "body") -> list[str]:
    """Press Tab from the start to the end of an element. Return what is never reached, and invisible focus."""
    expected: list[int] = page.evaluate(_INTERACTIVE, within)
    if within != "body":
        page.locator(within).focus()
    page.evaluate(_RECORD)
    # The key stays down, which is one message to the browser for each element.
    for _ in range(len(expected) + 5):
        page.keyboard.down("Tab")
    page.keyboard.up("Tab")
    problems, reached = list[str](), set[int]()
    for focused in page.evaluate("focused"):
        is_start = within != "body" and not reached and focused["index"] not in expected
        if is_start or focused["index"] in reached:
            continue
        reached.add(focused["index"])
        if not focused["isVisible"]:
            problems.append(f"has the focus, and cannot be seen: {focused['html']}")
        if not focused["hasMark"]:
            problems.append(f"does not show that it has the focus: {focused['html']}")
    missed = set(expected) - reached
    for index in sorted(missed):
        html = page.evaluate(
            "index => document.querySelectorAll('*')[index].outerHTML.slice(0, 160)", index
        )
        problems.append(f"cannot be reached with Tab: {html}")
    return problems
