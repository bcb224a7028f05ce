"""A picture with its text and its table: what every function of this package returns."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cmcl.pictures.svg import element, escape, group, isolated, number, rectangle, text, title
from cmcl.pictures.theme import FONT, stylesheet, used_in

WIDTH = 720.0
_EDGE = 16.0
_HEADING = 34.0
_LINK = re.compile(r'<a href="[^"]*"')

Cells = tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """The numbers of a picture. The first `names` columns are text, the first one heads its row."""

    caption: str
    headings: Cells
    rows: Sequence[Cells]
    names: int = 1

    def html(self) -> str:
        """Return a `<table>`."""
        heads = "".join(
            f'<th scope="col"{_text(index < self.names)}>{_bidi(heading)}</th>'
            for index, heading in enumerate(self.headings)
        )
        body = "\n".join(map(self._row, self.rows))
        return (
            f'<table class="cmcl-table"><caption>{escape(self.caption)}</caption>\n'
            f"<thead><tr>{heads}</tr></thead>\n<tbody>\n{body}\n</tbody></table>"
        )

    def _row(self, cells: Cells) -> str:
        first, *rest = cells
        values = "".join(
            f"<td{_text(index < self.names)}>{_bidi(cell)}</td>"
            for index, cell in enumerate(rest, start=1)
        )
        return f'<tr><th scope="row">{_bidi(first)}</th>{values}</tr>'


def _text(is_name: bool) -> str:
    return ' class="cmcl-text"' if is_name else ""


def _bidi(cell: str) -> str:
    """Escape a cell. Text from right to left is isolated, as it is in pictures."""
    return escape(isolated(cell))


@dataclass(frozen=True)
class Picture:
    """A picture as SVG, with a title, a description in words, and a table of its numbers.

    `has_links`: a screen reader enters it, and reads its links; others are one image.
    """

    title: str
    description: str
    table: Table
    width: float
    height: float
    body: str = field(repr=False)
    has_links: bool = False

    def svg(self, *, standalone: bool = False, note: str = "") -> str:
        """Return the `<svg>` element, in the colours of `STYLESHEET`, which the page has.

        With `standalone` it has a style sheet of its own, a surface, a visible title, and below it `note`:
        for a file, a notebook or an `<img>`. Without, it has no `<style>`, so that it may stand in a page
        whose content security policy forbids inline styles.
        """
        names = _names(self.title, self.description)
        if not standalone:
            return element("svg", _root(self.width, self.height, self.has_links), names + self.body)
        drawn, height = _headed(self.title, self, (0.0, 0.0)), self.height + _HEADING
        if note:
            at, height = (_EDGE, height + 14), height + 24
            drawn += text(at, note, self.width - 2 * _EDGE, size=11, colour="muted")
        return _document((self.width, height), names, drawn)

    def html(self, *, standalone: bool = False) -> str:
        """Return a `<figure>`: title and description, the picture, and its table, folded.

        With `standalone` the picture has a style sheet of its own, and its title in the caption alone.
        """
        drawn = self.svg()
        if standalone:
            names = _names(self.title, self.description)
            drawn = _document((self.width, self.height), names, self.body)
        return (
            '<figure class="cmcl-figure">'
            f"<figcaption><strong>{escape(self.title)}</strong> {escape(self.description)}</figcaption>"
            f'<div class="cmcl-scroll" role="group" tabindex="0" aria-label="{escape(self.title)}">'
            f"{drawn}</div>"
            f"<details><summary>Numbers</summary>{self.table.html()}</details></figure>"
        )

    def _repr_html_(self) -> str:
        """Return what a notebook shows."""
        return self.html(standalone=True)


def arranged(heading: str, parts: Mapping[str, Picture], columns: int = 1) -> str:
    """Return several pictures in rows of `columns` as one standalone `<svg>`, each below its name."""
    body, width, top = "", WIDTH, 10.0
    for start in range(0, len(parts), columns):
        row, left = list(parts.items())[start : start + columns], 0.0
        for name, part in row:
            body += _headed(name, part, (left, top))
            left += part.width
        width, top = max(width, left), top + max(part.height for _, part in row) + _HEADING + 12
    words = " ".join(f"{name}: {part.description}" for name, part in parts.items())
    return _document((width, top), _names(heading, words), body)


def _names(heading: str, description: str) -> str:
    return f"{title(heading)}<desc>{escape(description)}</desc>"


def _root(width: float, height: float, has_links: bool = False) -> dict[str, str | float]:
    return {
        "xmlns": "http://www.w3.org/2000/svg",
        "class": "cmcl-picture",
        "role": "group" if has_links else "img",
        "width": f"{width:g}",
        "height": f"{height:g}",
        "viewBox": f"0 0 {width:g} {height:g}",
        "font-family": FONT,
        "font-size": "12",
    }


def _document(size: tuple[float, float], names: str, body: str) -> str:
    """Return an `<svg>` with a surface and its own style sheet."""
    whole = rectangle((0, 0), size, "surface") + body
    style = f"<style>\n{stylesheet(used_in(whole))}</style>"
    return element("svg", _root(*size), names + style + whole)


def _headed(heading: str, part: Picture, corner: tuple[float, float]) -> str:
    """Return a picture below a visible title."""
    left, top = corner
    at = (left + _EDGE, top + 22)
    written = text(at, heading, part.width - 2 * _EDGE, size=14, weight="600")
    moved = {"transform": f"translate({number(left)} {number(top + _HEADING)})"}
    # Links lead nowhere in a file.
    return written + group(_LINK.sub("<a", part.body), moved)
