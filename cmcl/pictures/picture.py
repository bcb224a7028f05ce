"""A picture with its text and its table: what every function of this package returns."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import overload

from cmcl.pictures.svg import element, escape, group, isolated, named, number, rectangle, title
from cmcl.pictures.theme import FONT, stylesheet, used_in

WIDTH = 720.0
_EDGE = 16.0
_HEADING = 34.0

Cells = tuple[str, ...]


class Rows(Sequence[Cells]):
    """Rows of a table that are made when they are read: 1,000 versions × 100 datasets are 100,000 cells."""

    def __init__(self, count: int, row: Callable[[int], Cells]) -> None:
        self._count, self._row = count, row

    @overload
    def __getitem__(self, index: int) -> Cells: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Cells]: ...
    def __getitem__(self, index: int | slice) -> Cells | Sequence[Cells]:
        if isinstance(index, slice):
            return [self._row(each) for each in range(self._count)[index]]
        return self._row(range(self._count)[index])

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Cells]:
        return map(self._row, range(self._count))


@dataclass(frozen=True)
class Table:
    """The numbers of a picture. The first `names` columns are text, the first one heads its row."""

    caption: str
    headings: Cells
    rows: Sequence[Cells]
    names: int = 1

    def html(self, part: slice | None = None) -> str:
        """Return a `<table>` with all rows, or with a part of them: `slice(50, 100)`."""
        heads = "".join(
            f'<th scope="col"{_text(index < self.names)}>{_bidi(heading)}</th>'
            for index, heading in enumerate(self.headings)
        )
        rows = self.rows if part is None else self.rows[part]
        body = "\n".join(map(self._row, rows))
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
    """A picture as SVG, with a title, a description in words, and a table of its numbers."""

    title: str
    description: str
    table: Table
    width: float
    height: float
    body: str = field(repr=False)

    def svg(self, *, standalone: bool = False) -> str:
        """Return the `<svg>` element, in the colours of `STYLESHEET`, which the page has.

        With `standalone` it has a style sheet of its own, a surface and a visible title: for a file, a
        notebook or an `<img>`. Without, it has no `<style>`, so that it may stand in a page whose content
        security policy forbids inline styles.
        """
        if standalone:
            size = (self.width, self.height + _HEADING)
            return _document(size, _names(self.title, self.description), _headed(self, 0.0))
        names = _names(self.title, self.description)
        return element("svg", _root(self.width, self.height), names + self.body)

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


def stacked(heading: str, parts: Sequence[Picture]) -> str:
    """Return several pictures below each other as one standalone `<svg>`, each with its title."""
    tops, height = [], 10.0
    for part in parts:
        tops.append(height)
        height += part.height + _HEADING + 12
    body = "".join(_headed(part, top) for part, top in zip(parts, tops, strict=True))
    words = " ".join(f"{part.title}: {part.description}" for part in parts)
    size = (max((part.width for part in parts), default=WIDTH), height)
    return _document(size, _names(heading, words), body)


def _names(heading: str, description: str) -> str:
    return f"{title(heading)}<desc>{escape(description)}</desc>"


def _root(width: float, height: float) -> dict[str, str | float]:
    return {
        "xmlns": "http://www.w3.org/2000/svg",
        "class": "cmcl-picture",
        "role": "img",
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


def _headed(part: Picture, top: float) -> str:
    """Return a picture below its visible title."""
    heading = named((_EDGE, top + 22), part.title, part.width - 2 * _EDGE, size=14)
    heading = group(heading, {"font-weight": "600"})
    moved = {"transform": f"translate(0 {number(top + _HEADING)})"}
    return heading + group(part.body, moved)
