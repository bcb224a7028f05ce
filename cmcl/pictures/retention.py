"""Retention: the recall of each dataset over versions, since it was learned."""

from collections.abc import Mapping, Sequence
from statistics import median, quantiles

from cmcl.pictures.memory import Memory
from cmcl.pictures.picture import WIDTH, Picture, Table
from cmcl.pictures.plot import Axes, Band, Level, Line, Plot, draw
from cmcl.pictures.scales import percent, points_of
from cmcl.pictures.svg import brief, clean
from cmcl.pictures.theme import SERIES, series

# Curves of more datasets than this are drawn without names, but for those that lost most.
_MOST_NAMED, _NAMED_OF_MANY = 10, 6
# More curves without names are drawn as a band.
_MOST_HAIRLINES = 24


def retention_curves(memory: Memory, *, width: float = WIDTH) -> Picture:
    """Draw the recall of each dataset from the version that learned it to the newest.

    Of more than ten datasets, the six that lost most have names; the others are thin lines, or a band
    with their median where they are more than 24. The table has a line per dataset.
    """
    order, last = list(memory.in_order), len(memory.rows) - 1
    named = order
    if len(order) > _MOST_NAMED:
        losses = {each: memory.changes[last][each] or 0.0 for each in order}
        named = sorted(sorted(order, key=lambda each: losses[each])[:_NAMED_OF_MANY])
    others = [each for each in order if each not in set(named)]
    lines = [_retained(memory, each, place) for place, each in enumerate(named)]
    bands: list[Band] = []
    if len(others) > _MOST_HAIRLINES:
        typical, bands = _summary(memory, others)
        lines.append(typical)
    else:
        lines += [_hairline(memory, each) for each in others]
    axes = Axes("version", f"{memory.metric} in %", 100.0, (0.0, 1.0))
    body, height = draw(Plot(axes, lines, bands, height=300), width)
    remark = ""
    if others:
        remark = f" The {len(named)} datasets that lost most have names."
    title = f"{memory.metric} of each dataset since it was learned"
    return Picture(title, memory.describe() + remark, _retention_table(memory), width, height, body)


def mean_retention(
    panels: Mapping[str, Memory], *, metric: str = "R@1", width: float = WIDTH
) -> Picture:
    """Draw, for each memory, the mean recall of the datasets so far in % of that when learned."""
    lines, rows = [], []
    for place, (name, memory) in enumerate(panels.items()):
        kept = kept_shares(memory)
        points = [(float(row.version), share) for row, share in zip(memory.rows, kept, strict=True)]
        note = f"{percent(kept[-1] if kept else None)} %"
        lines.append(Line(name, points, series(place), note, dashed=place >= SERIES))
        rows += [
            (clean(name), str(row.version), percent(share))
            for row, share in zip(memory.rows, kept, strict=True)
        ]
    axes = Axes("version", f"mean {metric}, % of when learned", 100.0, (1.0,))
    level = Level(1.0, "as when learned", "line")
    body, height = draw(Plot(axes, lines, levels=[level], height=280), width)
    table = Table(f"Mean {metric} in % of when learned", ("", "version", "kept (%)"), rows)
    last = "; ".join(f"{brief(line.name)} {line.note}" for line in lines)
    title = f"What is kept of the datasets learned so far, {metric}"
    words = f"After the last version: {last}." if last else "Nothing to compare yet."
    return Picture(title, words, table, width, height, body)


def kept_shares(memory: Memory) -> list[float | None]:
    """Return, by version, the mean recall of the datasets so far divided by that when learned.

    None where no dataset was measured, or where nothing was retrieved when learned.
    """
    shares: list[float | None] = []
    for row in memory.rows:
        both = [
            (now, then)
            for now, then in zip(row.recall, memory.when_learned, strict=True)
            if now is not None and then is not None
        ]
        learned = sum(then for _, then in both)
        shares.append(sum(now for now, _ in both) / learned if learned > 0 else None)
    return shares


def _retained(memory: Memory, dataset: int, place: int) -> Line:
    name, first = memory.datasets[dataset], memory.first[dataset] or 0
    points = [(float(row.version), row.recall[dataset]) for row in memory.rows[first:]]
    last = memory.rows[-1].recall[dataset]
    change = memory.changes[-1][dataset]
    note = "" if last is None else f"{percent(last)}"
    more = "" if change is None else f" ({points_of(change)})"

    def says(version: float, recall: float) -> str:
        return f"{brief(name)}, version {version:.0f}: {memory.metric} {percent(recall)} %"

    return Line(name, points, series(place), note, more, dashed=place >= SERIES, says=says)


def _hairline(memory: Memory, dataset: int) -> Line:
    points = [(float(row.version), row.recall[dataset]) for row in memory.rows]
    return Line(memory.datasets[dataset], points, "line", muted=True)


def _summary(memory: Memory, datasets: Sequence[int]) -> tuple[Line, list[Band]]:
    """Return the median of many datasets, and bands of all and of the middle half."""
    middle, whole, half = [], [], []
    for row in memory.rows:
        found = [share for each in datasets if (share := row.recall[each]) is not None]
        if not found:
            continue
        at = float(row.version)
        middle.append((at, median(found)))
        whole.append((at, min(found), max(found)))
        low, _, high = quantiles(found, method="inclusive") if len(found) > 1 else found * 3
        half.append((at, low, high))
    note = f"{percent(middle[-1][1])} (median)"
    line = Line(f"{len(datasets)} others", middle, "line", note)
    return line, [Band(whole, "line", 0.15), Band(half, "line", 0.2)]


def _retention_table(memory: Memory) -> Table:
    headings = (
        "dataset",
        "learned in version",
        "then (%)",
        "lowest (%)",
        "newest (%)",
        "change (points)",
    )
    rows = []
    for dataset in memory.in_order:
        measured = [share for row in memory.rows if (share := row.recall[dataset]) is not None]
        then = memory.when_learned[dataset]
        known = [each[dataset] for each in memory.changes if each[dataset] is not None]
        change = known[-1] if known else None
        shares = (then, min(measured), measured[-1])
        rows.append(
            (
                clean(memory.datasets[dataset]),
                str(memory.learned_in[dataset]),
                *map(percent, shares),
                points_of(change),
            )
        )
    return Table(
        f"{memory.metric} of each dataset: when learned, at its lowest, and now", headings, rows
    )
