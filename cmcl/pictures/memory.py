"""Recall of every dataset in every version, and what follows from it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean

from cmcl.pictures.picture import Rows, Table
from cmcl.pictures.scales import counted, percent, points_of
from cmcl.pictures.svg import brief, clean

# Changes below half a point are noise of small held-out sets.
NOTICEABLE = 0.005


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
class Change:
    """The recall of a dataset in a version, less that of the version that learned it."""

    value: float
    row: int
    dataset: int


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
        found: list[int | None] = [None] * len(self.datasets)
        missing = set(range(len(found)))
        for index, row in enumerate(self.rows):
            for dataset in [each for each in missing if row.recall[each] is not None]:
                found[dataset] = index
                missing.remove(dataset)
        return found

    @cached_property
    def in_order(self) -> Sequence[int]:
        """The datasets that were measured, in the order in which they were learned."""
        known = [(first, each) for each, first in enumerate(self.first) if first is not None]
        return [dataset for _, dataset in sorted(known)]

    @cached_property
    def when_learned(self) -> Sequence[float | None]:
        """By dataset: recall in the version that learned it."""
        if self.learned is not None:
            return [each.recall for each in self.learned]
        return [
            None if first is None else self.rows[first].recall[dataset]
            for dataset, first in enumerate(self.first)
        ]

    @cached_property
    def learned_in(self) -> Sequence[int | None]:
        """By dataset: the version that learned it."""
        if self.learned is not None:
            return [each.version for each in self.learned]
        return [None if first is None else self.rows[first].version for first in self.first]

    @cached_property
    def changes(self) -> Sequence[Sequence[float | None]]:
        """T × S: change of recall since a dataset was learned; None where there is no later measurement."""
        then_S, learned_S = self.when_learned, self.learned_in
        return [
            [
                None if now is None or then is None or learned == row.version else now - then
                for now, then, learned in zip(row.recall, then_S, learned_S, strict=True)
            ]
            for row in self.rows
        ]

    @cached_property
    def largest_loss(self) -> Change | None:
        """The smallest of all changes; None where no dataset was measured twice."""
        found = [
            Change(min(known), index, row.index(min(known)))
            for index, row in enumerate(self.changes)
            if (known := [each for each in row if each is not None])
        ]
        return min(found, key=lambda change: change.value, default=None)

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
        worst = self.largest_loss
        now = [change for change in self.changes[-1] if change is not None] if self.rows else []
        if worst is None or not now:
            return f"{counts} No dataset was measured again in a later version yet."
        mean = f"Mean change of {self.metric} since learned: {points_of(fmean(now))} points."
        if worst.value > -NOTICEABLE:
            return f"{counts} {mean} No dataset lost half a point in any version."
        name, version = brief(self.datasets[worst.dataset]), self.rows[worst.row].version
        loss = f"{points_of(worst.value)} points, {name} in version {version}"
        return f"{counts} {mean} Largest loss: {loss}."


def recall_table(memory: Memory) -> Table:
    """Return the table of all numbers: recall in per cent, and in brackets the change in points."""
    headings = ("version", "learned", *map(clean, memory.datasets))

    def cells(index: int) -> tuple[str, ...]:
        row = memory.rows[index]
        values = (_recall_cell(memory, index, each) for each in range(len(memory.datasets)))
        learned = f"unlearned {row.learned}" if row.unlearns else row.learned
        return (str(row.version), clean(learned), *values)

    caption = f"{memory.metric} in % (change in points since learned), by version and dataset"
    return Table(caption, headings, Rows(len(memory.rows), cells), names=2)


def _recall_cell(memory: Memory, row: int, dataset: int) -> str:
    recall, change = memory.rows[row].recall[dataset], memory.changes[row][dataset]
    if recall is None:
        return ""
    return percent(recall) if change is None else f"{percent(recall)} ({points_of(change)})"


def joined_tables(panels: Mapping[str, Memory]) -> Table:
    """Return the tables of several matrices as one, with a column for the name of the matrix."""
    rows, widest = [], 0
    for name, memory in panels.items():
        widest = max(widest, len(memory.datasets))
        rows += [(clean(name), *cells) for cells in recall_table(memory).rows]
    names = next(
        (tuple(map(clean, m.datasets)) for m in panels.values() if len(m.datasets) == widest), ()
    )
    padded = [(*cells, *[""] * (widest + 3 - len(cells))) for cells in rows]
    caption = "recall in % (change in points since learned), by version and dataset"
    return Table(caption, ("", "version", "learned", *names), padded, names=3)
