"""The forgetting matrix: recall of every dataset in every version, and what each version changed of it."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean

from cmcl.pictures.picture import WIDTH, Picture, Table, arranged
from cmcl.pictures.scales import MINUS, counted, percent, points_of
from cmcl.pictures.svg import (
    SMALL,
    brief,
    clean,
    element,
    group,
    number,
    rectangle,
    text,
    text_width,
    title,
)
from cmcl.pictures.theme import STEPS, stroke

# Changes below half a point are noise of small held-out sets.
NOTICEABLE = 0.005
# The scale of colours never ends below five points, so that noise does not look like forgetting.
_SMALLEST_LIMIT = 0.05
_MOST_ROWS = 40
_EDGE, _TOP, _WIDEST_NAMES, _KEY = 10.0, 24.0, 180.0, 14.0
_WIDEST, _TALLEST, _LOW = 96.0, 44.0, 26.0
# Wider cells have the recall below the change; narrower ones whole numbers, and then only their colour.
_TWO_LINES, _ONE_DECIMAL, _NO_DECIMAL = 56.0, 38.0, 25.0
# More cells have neither titles, of about 130 bytes each, nor links.
_MOST_LINKS = 400


@dataclass(frozen=True)
class MemoryRow:
    """What one version still retrieves. `recall`: by dataset, 0 to 1; None: not learned or not measured.

    `unlearns`: the version was made by unlearning the dataset `learned`.
    """

    version: int
    learned: str
    recall: Sequence[float | None]
    unlearns: bool = False


@dataclass(frozen=True)
class Learned:
    """The version that learned a dataset, and its recall there, 0 to 1; None: not measured."""

    version: int
    recall: float | None


@dataclass(frozen=True)
class Memory:
    """Recall of T versions on S datasets, oldest first. Each row of `rows` has S values.

    `learned`: by dataset. It may be left out if the rows have every version that learned a dataset: the first one that
    measured it.
    """

    datasets: Sequence[str]
    rows: Sequence[MemoryRow]
    metric: str = "R@1"
    learned: Sequence[Learned] | None = None

    def __post_init__(self) -> None:
        """Check the lengths and the shares. Raises ValueError."""
        if self.learned is not None and len(self.learned) != len(self.datasets):
            raise ValueError(
                f"learned has {len(self.learned)} entries; it needs one for each of the {len(self.datasets)} datasets"
            )
        for row in self.rows:
            if len(row.recall) != len(self.datasets):
                raise ValueError(
                    f"version {row.version} has {len(row.recall)} values of recall; it needs one "
                    f"for each of the {len(self.datasets)} datasets, None if it was not measured"
                )
            wrong = [each for each in row.recall if each is not None and not 0 <= each <= 1]
            if wrong:
                raise ValueError(f"version {row.version}: recall is {wrong[0]}, permitted: 0 to 1")

    @cached_property
    def first(self) -> Sequence[int | None]:
        """By dataset: the index of the first row that measured it."""
        return [
            next((t for t, row in enumerate(self.rows) if row.recall[each] is not None), None)
            for each in range(len(self.datasets))
        ]

    @cached_property
    def in_order(self) -> Sequence[int]:
        """The datasets that were measured, in the order in which they were learned."""
        known = [(first, each) for each, first in enumerate(self.first) if first is not None]
        return [dataset for _, dataset in sorted(known)]

    @cached_property
    def when_learned(self) -> Sequence[Learned | None]:
        """By dataset: the version that learned it, and recall there; None: it was never measured."""
        if self.learned is not None:
            return self.learned
        return [
            None if t is None else Learned(self.rows[t].version, self.rows[t].recall[dataset])
            for dataset, t in enumerate(self.first)
        ]

    @cached_property
    def changes(self) -> Sequence[Sequence[float | None]]:
        """T × S: change of recall since a dataset was learned; None where there is no later measurement."""
        return [
            [
                None
                if now is None or then is None or then.recall is None or then.version == row.version
                else now - then.recall
                for now, then in zip(row.recall, self.when_learned, strict=True)
            ]
            for row in self.rows
        ]

    @cached_property
    def largest_change(self) -> float:
        """The largest absolute change; 0 where no dataset was measured twice."""
        known = (abs(each) for row in self.changes for each in row if each is not None)
        return max(known, default=0.0)

    def describe(self) -> str:
        """Return what the matrix shows, in words."""
        counts = f"{counted(len(self.rows), 'version')}, {counted(len(self.datasets), 'dataset')}."
        unlearned = [
            f"{brief(row.learned)} in version {row.version}" for row in self.rows if row.unlearns
        ]
        if unlearned:
            counts += f" Unlearned: {', '.join(unlearned[-4:])}."
        found = [
            (change, row.version, name)
            for row, changes in zip(self.rows, self.changes, strict=True)
            for change, name in zip(changes, self.datasets, strict=True)
            if change is not None
        ]
        now = [change for change in self.changes[-1] if change is not None] if self.rows else []
        if not now:
            return f"{counts} No dataset was measured again in a later version yet."
        mean = f"Mean change of {self.metric} since learned: {points_of(fmean(now))} points."
        change, version, name = min(found)
        if change > -NOTICEABLE:
            return f"{counts} {mean} No dataset lost half a point in any version."
        loss = f"{points_of(change)} points, {brief(name)} in version {version}"
        return f"{counts} {mean} Largest loss: {loss}."


def recall_table(memory: Memory) -> Table:
    """Return the table of all numbers: recall in per cent, and in brackets the change in points."""
    rows = []
    for row, changes in zip(memory.rows, memory.changes, strict=True):
        cells = [
            percent(now) + ("" if change is None else f" ({points_of(change)})")
            if now is not None
            else ""
            for now, change in zip(row.recall, changes, strict=True)
        ]
        learned = f"unlearned {row.learned}" if row.unlearns else row.learned
        rows.append((str(row.version), clean(learned), *cells))
    caption = f"{memory.metric} in % (change in points since learned), by version and dataset"
    return Table(caption, ("version", "learned", *map(clean, memory.datasets)), rows, names=2)


def forgetting_matrix(
    memory: Memory,
    *,
    width: float = WIDTH,
    limit: float | None = None,
    link: Callable[[int, int], str] | None = None,
) -> Picture:
    """Draw versions × datasets: recall when learned in per cent (bold), and then the change since, in points.

    `limit`: where the scale of colours ends, as a share; None: at the largest change. `link`: the address that a cell
    leads to, by the indices of its row and its dataset. Of more than 40 versions, evenly spaced ones and the newest are
    drawn, and narrow cells are coloured only. The table has every number.
    """
    rows, columns = _evenly(len(memory.rows)), memory.in_order
    left = min(_WIDEST_NAMES, 0.3 * width)
    cell = min(_WIDEST, (width - left - _EDGE) / max(1, len(columns)))
    if cell >= _NO_DECIMAL:
        cell = math.floor(cell)
    tallest = _TALLEST if cell >= _TWO_LINES else _LOW
    line = math.floor(min(tallest, max(13.0, 520 / max(1, len(rows)))))
    panel = _Panel(memory, left, cell, line, limit or _limit([memory]))
    body = "".join(
        text(
            (left + (place + 0.5) * cell, _TOP - 8),
            memory.datasets[each],
            cell - 6,
            size=SMALL,
            anchor="middle",
        )
        for place, each in enumerate(columns)
        if cell >= _TWO_LINES
    )
    body += "".join(panel.name(memory.rows[t], _TOP + place * line) for place, t in enumerate(rows))
    count = sum(memory.rows[t].recall[each] is not None for t in rows for each in columns)
    if cell < _NO_DECIMAL or count > _MOST_LINKS:
        link = None
        body += panel.stripes(rows)
    else:
        cells = "".join(
            panel.cell(t, each, (left + at * cell, _TOP + place * line), link)
            for place, t in enumerate(rows)
            for at, each in enumerate(columns)
            if memory.rows[t].recall[each] is not None
        )
        body += group(cells, {"text-anchor": "middle"})
    end = _TOP + line * len(rows) + 18
    limits = f"{points_of(-panel.limit, 0)} (orange), {points_of(panel.limit, 0)} (blue)"
    for key in (
        f"Bold: {memory.metric} in % when learned; else its change",
        f"in points. Deepest colours: {limits}.",
    ):
        body += text((_EDGE, end), key, width - 2 * _EDGE, size=SMALL, colour="muted")
        end += _KEY
    remark = (
        f" The picture has {len(rows)} of the versions." if len(rows) < len(memory.rows) else ""
    )
    return Picture(
        "What each dataset lost or gained since it was learned",
        memory.describe() + remark,
        recall_table(memory),
        width,
        end,
        body,
        has_links=link is not None,
    )


def forgetting_matrices(panels: Mapping[str, Memory], *, width: float = 2 * WIDTH) -> str:
    """Return several matrices side by side as one standalone SVG, in one scale of colours, each below its name."""
    limit, columns = _limit(panels.values()), min(2, max(1, len(panels)))
    drawn = {
        name: forgetting_matrix(memory, width=width / columns, limit=limit)
        for name, memory in panels.items()
    }
    return arranged("What earlier datasets lost, side by side", drawn, columns)


@dataclass(frozen=True)
class _Panel:
    """The cells of a matrix: where they begin, how wide and how high they are, and where their colours end."""

    memory: Memory
    left: float
    wide: float
    high: float
    limit: float

    def name(self, row: MemoryRow, y: float) -> str:
        """Return the number of a version and the dataset that it learned, or unlearned: struck through."""
        middle, number_width = y + self.high / 2 + 3.5, 36.0
        version = text(
            (number_width - 4, middle),
            str(row.version),
            number_width,
            size=SMALL,
            colour="muted",
            anchor="end",
        )
        start, struck = number_width + 4, "line-through" if row.unlearns else ""
        if row.unlearns:
            version += text((start, middle), MINUS, size=SMALL, colour="muted")
            start += text_width(f"{MINUS} ", SMALL)
        return version + text(
            (start, middle), row.learned, self.left - start - 8, size=SMALL, decoration=struck
        )

    def colour(self, t: int, dataset: int) -> str:
        change = self.memory.changes[t][dataset]
        if change is None or abs(change) < NOTICEABLE:
            return "even"
        step = min(STEPS, max(1, math.ceil(STEPS * abs(change) / self.limit - 1e-9)))
        return f"{'loss' if change < 0 else 'gain'}-{step}"

    def cell(
        self,
        t: int,
        dataset: int,
        corner: tuple[float, float],
        link: Callable[[int, int], str] | None,
    ) -> str:
        """Return a cell with its numbers and a title, as a link if there is one."""
        memory, (x, y), colour = self.memory, corner, self.colour(t, dataset)
        recall, change = memory.rows[t].recall[dataset], memory.changes[t][dataset]
        ink = "strong" if colour[-1] in "45" else "ink"
        places = 1 if self.wide >= _ONE_DECIMAL else 0
        shown = percent(recall, places) if change is None else points_of(change, places)
        has_both = change is not None and self.high >= _TALLEST
        centre, middle = x + (self.wide - 1) / 2, y + self.high / 2 + 3.5
        drawn = rectangle(corner, (self.wide - 1, self.high - 1), colour)
        drawn += text(
            (centre, middle - 7 * has_both),
            shown,
            size=SMALL if places else 10,
            colour=ink,
            weight="600" if change is None else "",
        )
        if has_both:
            drawn += text((centre, middle + 8), f"{percent(recall)} %", size=10, colour=ink)
        says = f"{brief(memory.datasets[dataset])}, version {memory.rows[t].version}: {memory.metric} {percent(recall)} %"
        if change is not None:
            says += f", {points_of(change)} points since learned"
        if link is None:
            return group(drawn + (title(says) if places else ""), {})
        return element("a", {"href": link(t, dataset), "aria-label": says}, drawn)

    def stripes(self, rows: Sequence[int]) -> str:
        """Return the cells of a large matrix as lines by colour, each as long as its neighbours have the same."""
        lines: dict[str, list[str]] = {}
        for place, t in enumerate(rows):
            y, start, before = _TOP + place * self.high + self.high / 2, 0, ""
            colours = [
                "" if self.memory.rows[t].recall[each] is None else self.colour(t, each)
                for each in self.memory.in_order
            ]
            for at, colour in enumerate([*colours, ""]):
                if colour == before:
                    continue
                if before:
                    run = f"M{number(self.left + start * self.wide)} {number(y)}h{number((at - start) * self.wide)}"
                    lines.setdefault(before, []).append(run)
                start, before = at, colour
        return "".join(
            element("path", {"d": "".join(runs), **stroke(colour, self.high - 1)})
            for colour, runs in sorted(lines.items())
        )


def _limit(memories: Iterable[Memory]) -> float:
    """Return the end of the scale of colours, a whole number of points as a share."""
    largest = max((memory.largest_change for memory in memories), default=0.0)
    return math.ceil(100 * max(_SMALLEST_LIMIT, largest) - 1e-9) / 100


def _evenly(count: int) -> list[int]:
    """Return at most 40 indices, evenly spaced, with the first and the last."""
    if count <= _MOST_ROWS:
        return list(range(count))
    return [round(each * (count - 1) / (_MOST_ROWS - 1)) for each in range(_MOST_ROWS)]
