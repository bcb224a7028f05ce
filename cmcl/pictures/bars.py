"""Bars: drift and other shares against their bounds."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from cmcl.pictures.picture import WIDTH, Picture, Table
from cmcl.pictures.scales import Scale, fine_percent, nice_ticks, percent, significant
from cmcl.pictures.svg import (
    SMALL,
    brief,
    clean,
    element,
    group,
    line,
    named,
    number,
    rectangle,
    text,
    text_width,
)
from cmcl.pictures.theme import stroke

_ROW, _TOP, _BELOW, _GAP = 24.0, 26.0, 10.0, 10.0
_WIDEST_NAME = 200.0
# More bars are summed up in words.
_MOST_BARS = 24


@dataclass(frozen=True)
class Bound:
    """The largest value that is permitted or, with `is_minimum`, the smallest."""

    value: float
    label: str
    is_minimum: bool = False

    def is_kept(self, value: float) -> bool:
        """Return whether a value meets the bound."""
        return value >= self.value if self.is_minimum else value <= self.value


@dataclass(frozen=True)
class _Bar:
    """A bar with the text after it. `mark`: a second value, drawn as a stroke across the bar."""

    name: str
    value: float | None
    says: str
    note: str = ""
    mark: float | None = None


@dataclass(frozen=True)
class DriftRow:
    """Drift of an earlier dataset's scores: since it was learned, and by this version alone."""

    dataset: str
    since_learned: float | None
    against_parent: float | None = None


def drift_bars(
    rows: Sequence[DriftRow], bound: float | None = None, *, width: float = WIDTH
) -> Picture:
    """Draw the drift of each earlier dataset in a version against its bound, the largest first.

    More than 24 bars are cut off, and the largest of the rest is said. The table has all of them.
    """
    in_order = sorted(rows, key=lambda row: -(row.since_learned or 0.0))
    limit = None if bound is None else Bound(bound, f"bound {significant(100 * bound)} %")
    bars = [
        _Bar(
            row.dataset,
            row.since_learned,
            f"{fine_percent(row.since_learned)} %",
            mark=row.against_parent,
        )
        for row in in_order
    ]
    body, height = _draw(bars, limit, width, largest=0.0)
    known = [row for row in in_order if row.since_learned is not None]
    words = "No earlier dataset." if not rows else "Not measured."
    if known:
        first = known[0]
        words = f"Largest: {fine_percent(first.since_learned)} %, {brief(first.dataset)}."
    if limit and known:
        over = sum(not limit.is_kept(row.since_learned or 0.0) for row in known)
        words += f" The bound of {significant(100 * limit.value)} % is " + (
            f"exceeded by {over} of {len(known)} datasets." if over else "kept by all datasets."
        )
    if any(row.against_parent is not None for row in rows):
        words += " Stroke: by this version alone."
    table = Table(
        "Drift: relative change of the scores of each earlier dataset",
        ("dataset", "since learned (%)", "by this version (%)"),
        [
            (clean(row.dataset), fine_percent(row.since_learned), fine_percent(row.against_parent))
            for row in in_order
        ],
    )
    return Picture("Drift of earlier datasets", words, table, width, height, body)


@dataclass(frozen=True)
class Share:
    """A named share from 0 to 1, and the text after its bar."""

    name: str
    value: float | None
    note: str = ""


def share_bars(
    heading: str, rows: Sequence[Share], bound: Bound | None = None, *, width: float = WIDTH
) -> Picture:
    """Draw shares from 0 to 100 %, in the order given: protection, capacity now."""
    bars = [_Bar(row.name, row.value, f"{percent(row.value)} %", clean(row.note)) for row in rows]
    body, height = _draw(bars, bound, width, largest=1.0)
    known = [row.value for row in rows if row.value is not None]
    words = f"{percent(min(known))} to {percent(max(known))} %." if known else "Not measured."
    if bound and known:
        missed = [row for row in rows if row.value is not None and not bound.is_kept(row.value)]
        names = ", ".join(brief(row.name) for row in missed)
        words += f" {bound.label}: {f'violated by {names}' if missed else 'kept by all'}."
    table = Table(
        heading,
        ("name", "share (%)", "note"),
        [(clean(row.name), percent(row.value), clean(row.note)) for row in rows],
    )
    return Picture(heading, words, table, width, height, body)


def _draw(
    bars: Sequence[_Bar], bound: Bound | None, width: float, largest: float
) -> tuple[str, float]:
    """Return bars with their names and values, and the height. `largest`: what the scale reaches."""
    shown, rest = bars[:_MOST_BARS], bars[_MOST_BARS:]
    scale = _scale(bars, bound, width, largest)
    rows = "".join(
        _bar(bar, bound, scale, _TOP + index * _ROW, width) for index, bar in enumerate(shown)
    )
    end = _TOP + _ROW * len(shown)
    if not shown:
        return text((_GAP, end - 4), "nothing to show yet", colour="muted"), end + _BELOW
    if rest:
        most = max(rest, key=lambda bar: -inf if bar.value is None else bar.value)
        words = f"{len(rest)} more" + ("" if most.value is None else f", at most {most.says}")
        rows += text((_GAP, end + 16), words, colour="muted", font_size=SMALL)
        end += _ROW
    base = line((scale.start, _TOP - 4), (scale.start, _TOP + _ROW * len(shown)), "line")
    return rows + base + (_bound(bound, scale, end, width) if bound else ""), end + _BELOW


def _scale(bars: Sequence[_Bar], bound: Bound | None, width: float, largest: float) -> Scale:
    values = [each for bar in bars for each in (bar.value, bar.mark) if each is not None]
    high = max([largest, *values, *([bound.value] if bound else [])])
    if not largest:
        high = nice_ticks(0.0, high, 4)[-1]
    names = max((text_width(clean(bar.name)) for bar in bars), default=0.0)
    left = min(_WIDEST_NAME, width / 3, names) + 2 * _GAP
    notes = max((text_width(_words(bar, bound)) for bar in bars[:_MOST_BARS]), default=0.0)
    return Scale(0.0, high, left, max(left + 60, width - min(notes, width / 2) - 2 * _GAP))


def _bar(bar: _Bar, bound: Bound | None, scale: Scale, y: float, width: float) -> str:
    middle = y + _ROW / 2
    name = named((scale.start - _GAP, middle + 4), bar.name, scale.start - 1.5 * _GAP, anchor="end")
    if bar.value is None:
        return name + text((scale.start + 8, middle + 4), "not measured", colour="muted")
    is_kept = bound is None or bound.is_kept(bar.value)
    end = scale(bar.value)
    drawn = rectangle(
        (scale.start, y + 5),
        (max(1.0, end - scale.start), _ROW - 10),
        "accent" if is_kept else "bad",
        1,
    )
    if bar.mark is not None:
        drawn += rectangle((scale(bar.mark) - 1, y + 2), (2, _ROW - 4), "ink")
        end = max(end, scale(bar.mark))
    says = _words(bar, bound)
    # The line of the bound does not run through the value.
    at = end + 6
    crossed = bound and at - 4 < scale(bound.value) < at + text_width(says) + 4
    if bound and crossed and scale(bound.value) + text_width(says) + 10 < width:
        at = scale(bound.value) + 6
    written = named((at, middle + 4), says, width - at - 4)
    return name + drawn + group(written, {} if is_kept else {"font-weight": "600"})


def _words(bar: _Bar, bound: Bound | None) -> str:
    """Return the text after a bar: its value, whether it is outside the bound, and the note."""
    words = bar.says
    if bound and bar.value is not None and not bound.is_kept(bar.value):
        words += " under the bound" if bound.is_minimum else " over the bound"
    return f"{words}, {bar.note}" if bar.note else words


def _bound(bound: Bound, scale: Scale, end: float, width: float) -> str:
    x, half = scale(bound.value), text_width(bound.label, SMALL) / 2
    path = f"M{number(x)} {number(_TOP - 6)}V{number(end)}"
    drawn = element("path", {"d": path, **stroke("bad", 1.5), "stroke-dasharray": "6 3"})
    # The label is moved where it would leave the picture.
    middle = max(half + 4, min(x, width - half - 4))
    at = (middle, _TOP - 10)
    return drawn + text(at, bound.label, colour="muted", anchor="middle", font_size=SMALL)
