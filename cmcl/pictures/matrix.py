"""The forgetting matrix: what each version changed of each dataset, as a heat map with numbers."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from cmcl.pictures.memory import NOTICEABLE, Memory, joined_tables, recall_table
from cmcl.pictures.picture import WIDTH, Picture
from cmcl.pictures.scales import MINUS, percent, points_of
from cmcl.pictures.svg import (
    SMALL,
    brief,
    clean,
    element,
    group,
    named,
    number,
    rectangle,
    text,
    text_width,
    title,
)
from cmcl.pictures.theme import STEPS, fill, stroke

# The scale of colours never ends below five points, so that noise does not look like forgetting.
_SMALLEST_LIMIT = 0.05
_MOST_ROWS, _MOST_COLUMNS = 40, 48
_LEFT, _TOP, _RIGHT = 64.0, 26.0, 128.0
_PANEL_RIGHT = 100.0
_TALLEST, _WIDEST = 26.0, 56.0
# Narrower cells have whole numbers, and then only a sign.
_ONE_DECIMAL, _NO_DECIMAL = 38.0, 25.0
# Narrower ones are as narrow as they must be.
_NARROWEST = 6.0
# Cells with a title each, of about 130 bytes.
_MOST_TITLES = 160


def forgetting_matrix(memory: Memory, *, width: float = WIDTH) -> Picture:
    """Draw versions × datasets: recall when learned in per cent, and below it the change in points.

    A matrix that is too large is thinned: of more than 40 versions, evenly spaced ones and the newest are
    drawn, and more than 48 datasets are drawn in groups with the largest loss of each. The table has
    every number.
    """
    panel = _Panel(memory, width, _limit([memory]))
    legend, below = _legend(panel.height + 10, panel.limit, memory.metric, width)
    body = panel.draw(0.0, panel.count <= _MOST_TITLES) + legend
    description = " ".join(filter(None, (memory.describe(), panel.remark)))
    return Picture(
        "What each dataset lost or gained since it was learned",
        description,
        recall_table(memory),
        width,
        panel.height + 10 + below,
        body,
    )


def forgetting_matrices(panels: Mapping[str, Memory], *, width: float = WIDTH) -> Picture:
    """Draw several matrices side by side, in one scale of colours, with their names above."""
    limit = _limit(panels.values())
    most = max((len(memory.in_order) for memory in panels.values()), default=0)
    # As many side by side as still have numbers in their cells.
    narrowest = _LEFT + _NO_DECIMAL * min(most, _MOST_COLUMNS) + _PANEL_RIGHT
    columns = max(1, min(len(panels), int(width // narrowest)))
    each = width / columns
    drawn = [_Panel(memory, each, limit, _PANEL_RIGHT) for memory in panels.values()]
    with_titles = sum(panel.count for panel in drawn) <= _MOST_TITLES
    body, y, tallest = [], 0.0, 0.0
    for place, (name, panel) in enumerate(zip(panels, drawn, strict=True)):
        if place % columns == 0:
            y, tallest = y + tallest, 0.0
        heading = named((14, 16), name, each - 28, colour="ink")
        content = group(heading, {"font-weight": "600"}) + panel.draw(22.0, with_titles)
        x = place % columns * each
        body.append(group(content, {"transform": f"translate({number(x)} {number(y)})"}))
        tallest = max(tallest, panel.height + 34)
    metric = next((memory.metric for memory in panels.values()), "R@1")
    legend, below = _legend(y + tallest, limit, metric, width)
    body.append(legend)
    return Picture(
        "What earlier datasets lost, side by side",
        " ".join(f"{brief(name)}: {memory.describe()}" for name, memory in panels.items())
        or "Nothing to compare yet.",
        joined_tables(panels),
        width,
        y + tallest + below,
        "".join(body),
    )


@dataclass(frozen=True)
class _Cell:
    """A cell that is drawn: of a group of datasets, the one that lost most."""

    column: int
    dataset: int
    recall: float
    change: float | None


class _Panel:
    """A matrix of the rows and columns that fit."""

    def __init__(self, memory: Memory, width: float, limit: float, right: float = _RIGHT) -> None:
        self.memory, self.width, self.limit = memory, width, limit
        self.rows = _evenly(len(memory.rows), _MOST_ROWS)
        order = memory.in_order
        self.grouped = max(1, math.ceil(len(order) / _MOST_COLUMNS))
        starts = range(0, len(order), self.grouped)
        self.columns = [order[start : start + self.grouped] for start in starts]
        cell = min(_WIDEST, (width - _LEFT - right) / max(1, len(self.columns)))
        # Whole pixels are sharp, and take fewer bytes.
        self.cell = math.floor(cell) if cell >= _NARROWEST else cell
        self.line = math.floor(min(_TALLEST, max(12.0, 520 / max(1, len(self.rows)))))
        self.height = _TOP + self.line * len(self.rows)
        self.cells = [list(self._cells(row)) for row in self.rows]
        self.count = sum(map(len, self.cells))

    @property
    def remark(self) -> str:
        """Return what is left out of the picture, in words."""
        parts = []
        if len(self.rows) < len(self.memory.rows):
            parts.append(f"The picture has {len(self.rows)} of the versions.")
        if self.grouped > 1:
            parts.append(f"A column is the largest loss of {self.grouped} datasets.")
        return " ".join(parts)

    def draw(self, above: float, with_titles: bool) -> str:
        """Return the matrix with its top at `above`, with a title for each cell or without."""
        layers: dict[tuple[str, str], list[str]] = {}
        names, seen = [], set[int]()
        for place, (row, found) in enumerate(zip(self.rows, self.cells, strict=True)):
            y = above + _TOP + place * self.line
            for cell in found:
                colour = self._colour(cell)
                drawn = self._rectangle(cell, row, y, with_titles)
                layers.setdefault(("cells", colour), []).append(drawn)
                ink = "strong" if colour[-1] in "45" else "ink"
                kind = "change" if cell.change is not None else "learned"
                layers.setdefault((kind, ink), []).append(self._label(cell, colour, y))
            new = [cell for cell in found if cell.column not in seen]
            seen.update(cell.column for cell in new)
            names.append(self._name(row, found, new, y))
        head = text(
            (_LEFT - 8, above + 16), "version", anchor="end", colour="muted", font_size=SMALL
        )
        # Cells come first, since labels are drawn over them.
        painted = [self._layer(*layer, "".join(layers[layer])) for layer in sorted(layers)]
        return head + "".join(painted) + "".join(names)

    def _layer(self, kind: str, colour: str, drawn: str) -> str:
        """Return the elements of a colour, which stands in their group once."""
        if kind == "cells":
            if drawn.startswith("M"):
                return element("path", {"d": drawn, **stroke(colour, self.line - 1)})
            return group(drawn, fill(colour))
        if drawn.startswith("M"):
            return element("path", {"d": drawn, **stroke(colour)})
        size = 10 if self.cell < _ONE_DECIMAL else SMALL
        weight = {"font-weight": "600"} if kind == "learned" else {}
        return group(drawn, {"font-size": size, "text-anchor": "middle", **weight, **fill(colour)})

    def _cells(self, row: int) -> Iterator[_Cell]:
        recalls = self.memory.rows[row].recall
        for column, datasets in enumerate(self.columns):
            changes = self.memory.changes[row]
            known = [each for each in datasets if recalls[each] is not None]
            if known:
                worst = min(known, key=lambda each: (changes[each] or 0.0, each))
                yield _Cell(column, worst, recalls[worst] or 0.0, changes[worst])

    def _colour(self, cell: _Cell) -> str:
        if cell.change is None or abs(cell.change) < NOTICEABLE:
            return "even"
        step = min(STEPS, max(1, math.ceil(STEPS * abs(cell.change) / self.limit - 1e-9)))
        return f"{'loss' if cell.change < 0 else 'gain'}-{step}"

    def _rectangle(self, cell: _Cell, row: int, y: float, with_title: bool) -> str:
        x, gap = _LEFT + cell.column * self.cell, 1.0 if self.cell >= _NARROWEST else 0.3
        wide, high = self.cell - gap, self.line - 1
        if not with_title:
            # A thick line: a third of the bytes of a rectangle.
            return f"M{number(x)} {number(y + high / 2)}h{number(wide)}"
        memory = self.memory
        what = f"{brief(memory.datasets[cell.dataset])}, version {memory.rows[row].version}"
        found = f"{what}: {memory.metric} {percent(cell.recall)} %"
        if cell.change is not None:
            found += f", {points_of(cell.change)} points since learned"
        corner = {"x": x, "y": y, "width": wide, "height": high}
        return element("rect", corner, title(found))

    def _label(self, cell: _Cell, colour: str, y: float) -> str:
        """Return the number of a cell, or the path of its sign where there is no room."""
        x = _LEFT + (cell.column + 0.5) * self.cell
        if self.cell < _NO_DECIMAL:
            if colour == "even":
                return ""
            arm, middle = min(3.0, self.cell / 3), y + (self.line - 1) / 2
            if self.cell >= _NARROWEST:
                x, arm = math.floor(x), math.floor(arm)
            across = f"M{number(x - arm)} {number(middle)}h{number(2 * arm)}"
            down = f"m-{number(arm)}-{number(arm)}v{number(2 * arm)}"
            return across + (down if (cell.change or 0) > 0 else "")
        places = 1 if self.cell >= _ONE_DECIMAL else 0
        is_new = cell.change is None
        shown = percent(cell.recall, places) if is_new else points_of(cell.change, places)
        return element("text", {"x": x, "y": y + self.line / 2 + 3.5}, shown)

    def _name(self, row: int, found: Sequence[_Cell], new: Sequence[_Cell], y: float) -> str:
        """Return the number of the version on the left, and what it learned right of its last cell."""
        at, memory = y + self.line / 2 + 3.5, self.memory
        version = text(
            (_LEFT - 8, at),
            str(memory.rows[row].version),
            anchor="end",
            colour="muted",
            font_size=SMALL,
        )
        last = max((cell.column for cell in found), default=-1)
        x = _LEFT + (last + 1) * self.cell + 6
        groups = [self.columns[cell.column] for cell in new]
        learned = [clean(memory.datasets[group[0]]) for group in groups]
        more = sum(map(len, groups)) - len(learned)
        if learned:
            name = ", ".join(learned) + (f" and {more} more" if more else "")
            return version + named((x, at), name, self.width - x - 6, size=SMALL)
        if memory.rows[row].unlearns:
            sign = text((x, at), MINUS, colour="muted", font_size=SMALL)
            left, name = x + text_width(f"{MINUS} ", SMALL), memory.rows[row].learned
            room = self.width - left - 6
            return (
                version
                + sign
                + named((left, at), name, room, size=SMALL, colour="muted", struck=True)
            )
        if self.rows != list(range(len(memory.rows))):
            return version
        name = f"{clean(memory.rows[row].learned)} (not measured)"
        return version + named((x, at), name, self.width - x - 6, size=SMALL, colour="muted")


def _legend(y: float, limit: float, metric: str, width: float) -> tuple[str, float]:
    """Return the scale of colours, from the largest loss to the largest gain, and the height."""
    low, high = points_of(-limit, 0), f"{points_of(limit, 0)} points since learned"
    colours = [
        *(f"loss-{step}" for step in range(STEPS, 0, -1)),
        "even",
        *(f"gain-{step}" for step in range(1, STEPS + 1)),
    ]
    left = 12 + text_width(low, SMALL) + 4
    each = min(15.0, (width - left - text_width(high, SMALL) - 10) / len(colours))
    bars = [
        rectangle((left + place * each, y + 5), (each - 1, 10), colour)
        for place, colour in enumerate(colours)
    ]
    end = left + len(colours) * each + 4
    words = f"bold: {metric} in % when learned"
    x, below = end + text_width(high, SMALL) + 16, y + 14
    if x + text_width(words, SMALL) > width - 4:
        x, below = 12, y + 32
    return (
        text((12, y + 14), low, colour="muted", font_size=SMALL)
        + "".join(bars)
        + text((end, y + 14), high, colour="muted", font_size=SMALL)
        + named((x, below), words, width - x - 4, size=SMALL, colour="muted")
    ), below + 6 - y


def _limit(memories: Iterable[Memory]) -> float:
    """Return the end of the scale of colours, a whole number of points as a share."""
    largest = max((memory.largest_change for memory in memories), default=0.0)
    return math.ceil(100 * max(_SMALLEST_LIMIT, largest) - 1e-9) / 100


def _evenly(count: int, most: int) -> list[int]:
    """Return up to `most` indices, evenly spaced, with the first and the last."""
    if count <= most:
        return list(range(count))
    return [round(each * (count - 1) / (most - 1)) for each in range(most)]
