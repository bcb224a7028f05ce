"""The graph of modalities: pairs that were learned, and pairs that emerged and were only measured."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from cmcl.pictures.picture import WIDTH, Picture, Table
from cmcl.pictures.scales import counted, percent
from cmcl.pictures.svg import (
    SMALL,
    brief,
    clean,
    cut,
    element,
    group,
    key,
    named,
    number,
    rectangle,
    text,
    text_width,
    title,
)
from cmcl.pictures.theme import fill, stroke

_MOST_NODES = 10
# Orders of nodes are not searched where there are more edges: every order of a dense graph looks the same.
_MOST_ORDERED = 24
_PILL, _WIDEST_PILL, _LABEL = 26.0, 128.0, 16.0
# Where a label may lie along its edge, the best place first.
_ALONG = tuple(0.5 + sign * step / 50 for step in range(18) for sign in (1, -1))


@dataclass(frozen=True)
class Pair:
    """Two modalities. `emergent`: never trained together, measured only. `recall`: 0 to 1."""

    first: str
    second: str
    recall: float | None = None
    emergent: bool = False
    datasets: int = 0


@dataclass(frozen=True)
class _Box:
    """A rectangle around a centre."""

    x: float
    y: float
    width: float
    height: float

    def overlaps(self, other: "_Box") -> bool:
        return (
            abs(self.x - other.x) * 2 < self.width + other.width
            and abs(self.y - other.y) * 2 < self.height + other.height
        )

    def is_crossed(self, start: "_Box", end: "_Box") -> bool:
        """Return whether the line between two centres goes through this box."""
        first, last = 0.0, 1.0
        for at, by, half in (
            (start.x - self.x, end.x - start.x, self.width / 2),
            (start.y - self.y, end.y - start.y, self.height / 2),
        ):
            if abs(by) < 1e-9:
                if abs(at) > half:
                    return False
                continue
            # The part of the line that is between the two sides of the box.
            enters, leaves = sorted(((-half - at) / by, (half - at) / by))
            first, last = max(first, enters), min(last, leaves)
        return first <= last


def modality_graph(
    pairs: Sequence[Pair],
    modalities: Sequence[str] = (),
    *,
    metric: str = "R@1",
    width: float = WIDTH,
) -> Picture:
    """Draw modalities as nodes; learned pairs are solid edges, emergent ones dashed, with their recall in %.

    `modalities`: those without a pair as well. The ten with the most pairs are drawn, in an order with
    few crossings that depends on the data alone. A label that finds no free place is left to the table.
    """
    nodes, left_out = _nodes(pairs, modalities)
    edges = [pair for pair in pairs if {pair.first, pair.second} <= set(nodes)]
    height = 96.0 if len(nodes) < 3 else 200.0 + 26 * len(nodes)
    boxes = _placed(_ordered(nodes, edges), width, height)
    lines = "".join(
        _edge(pair, boxes) for pair in sorted(edges, key=lambda pair: not pair.emergent)
    )
    labels = "".join(_labels(edges, boxes, metric))
    pills = "".join(_pill(name, box) for name, box in boxes.items())
    if not nodes:
        pills = text((24, height / 2), "no modality yet", colour="muted")
    known = [pair for pair in edges if pair.emergent and pair.recall is not None]
    learned = sum(not pair.emergent for pair in pairs)
    words = f"{counted(len(nodes) + left_out, 'modality')}, {counted(learned, 'learned pair')}"
    if known:
        best = max(known, key=lambda pair: pair.recall or 0.0)
        pair = f"{brief(best.first)} with {brief(best.second)}"
        words += f", {counted(len(pairs) - learned, 'emergent pair')}; the best: {pair}, {percent(best.recall)} %"
    if left_out:
        words += f"; in the table alone: {counted(left_out, 'modality')}"
    has_emergent = any(pair.emergent for pair in edges)
    marks, below = _key(height + 4, metric, has_emergent, width)
    table = _table(pairs, metric)
    body = lines + labels + pills + marks
    heading = "Modalities and their pairs"
    return Picture(heading, f"{words}.", table, width, height + 4 + below, body)


def _nodes(pairs: Sequence[Pair], modalities: Sequence[str]) -> tuple[list[str], int]:
    """Return the modalities that are drawn, and how many are left out."""
    degree = dict.fromkeys(modalities, 0)
    for pair in pairs:
        for name in (pair.first, pair.second):
            degree[name] = degree.get(name, 0) + 1
    most = sorted(degree, key=lambda name: (-degree[name], name))[:_MOST_NODES]
    return sorted(most), len(degree) - len(most)


def _ordered(nodes: list[str], edges: Sequence[Pair]) -> list[str]:
    """Return the nodes in an order around the circle with few crossings and short edges.

    Two nodes are swapped as long as that is better, starting from the alphabetical order.
    """
    if len(nodes) < 4 or len(edges) > _MOST_ORDERED:
        return nodes
    order, best = list(nodes), _cost(nodes, edges)
    for _ in range(len(nodes)):
        before = best
        for i, j in combinations(range(len(order)), 2):
            order[i], order[j] = order[j], order[i]
            cost = _cost(order, edges)
            if cost < best:
                best = cost
            else:
                order[i], order[j] = order[j], order[i]
        if best == before:
            break
    return order


def _cost(order: Sequence[str], edges: Sequence[Pair]) -> int:
    """Return ten times the crossings, plus the lengths of edges around the circle."""
    place = {name: index for index, name in enumerate(order)}
    chords = [tuple(sorted((place[pair.first], place[pair.second]))) for pair in edges]
    crossings = sum(
        (a < c < b) != (a < d < b) and len({a, b, c, d}) == 4
        for (a, b), (c, d) in combinations(chords, 2)
    )
    return 10 * crossings + sum(min(b - a, len(order) - b + a) for a, b in chords)


def _placed(order: Sequence[str], width: float, height: float) -> dict[str, _Box]:
    """Return the place of each node on the ellipse, the first one at the top."""
    widest = min(_WIDEST_PILL, width / 3.5)
    across, down = (width - widest) / 2 - 12, (height - _PILL) / 2 - 8
    turn = math.pi if len(order) == 2 else -math.pi / 2
    boxes = {}
    for index, name in enumerate(order):
        angle = turn + 2 * math.pi * index / len(order)
        wide = min(widest, text_width(clean(name)) + 24)
        x, y = width / 2 + across * math.cos(angle), height / 2 + down * math.sin(angle)
        boxes[name] = _Box(x if len(order) > 1 else width / 2, y, wide, _PILL)
    return boxes


def _edge(pair: Pair, boxes: dict[str, _Box]) -> str:
    a, b = boxes[pair.first], boxes[pair.second]
    attributes = stroke("2", 1.5) if pair.emergent else stroke("1", 2)
    if pair.emergent:
        attributes["stroke-dasharray"] = "6 4"
    path = f"M{number(a.x)} {number(a.y)}L{number(b.x)} {number(b.y)}"
    return element("path", {"d": path, **attributes}, title(_says(pair)))


def _says(pair: Pair) -> str:
    kind = "never trained together" if pair.emergent else _datasets(pair.datasets)
    found = "not measured" if pair.recall is None else f"{percent(pair.recall)} %"
    return f"{brief(pair.first)} with {brief(pair.second)}: {found}, {kind}"


def _datasets(count: int) -> str:
    return f"learned from {counted(count, 'dataset')}" if count else "learned"


def _labels(edges: Sequence[Pair], boxes: dict[str, _Box], metric: str) -> Iterator[str]:
    """Yield the recall of each edge, at the first place along it that is free."""
    taken = list(boxes.values())
    for pair in edges:
        if pair.recall is None:
            continue
        shown = percent(pair.recall)
        a, b, wide = boxes[pair.first], boxes[pair.second], text_width(shown, SMALL) + 8
        along = [
            _Box(a.x + (b.x - a.x) * share, a.y + (b.y - a.y) * share, wide, _LABEL)
            for share in _ALONG
        ]
        free = [box for box in along if not any(map(box.overlaps, taken))]
        if not free:
            continue
        others = [_ends(each, boxes) for each in edges if each is not pair]
        box = min(free, key=lambda box: sum(box.is_crossed(*ends) for ends in others))
        taken.append(box)
        corner = (box.x - wide / 2, box.y - _LABEL / 2)
        behind = rectangle(corner, (wide, _LABEL), "surface", 3)
        written = text((box.x, box.y + 4), shown, anchor="middle", font_size=SMALL)
        yield group(behind + written + title(f"{metric}: {_says(pair)}"), {})


def _ends(pair: Pair, boxes: dict[str, _Box]) -> tuple[_Box, _Box]:
    return boxes[pair.first], boxes[pair.second]


def _pill(name: str, box: _Box) -> str:
    shown = cut(name, box.width - 20)
    corner = {
        "x": box.x - box.width / 2,
        "y": box.y - _PILL / 2,
        "width": box.width,
        "height": _PILL,
    }
    inside, edge = fill("even"), stroke("line", 1)
    both = {**edge, **inside, "class": f"{inside['class']} {edge['class']}"}
    pill = element("rect", {**corner, "rx": _PILL / 2, **both})
    whole = title(name) if shown != clean(name) else ""
    written = named((box.x, box.y + 4), name, box.width - 20, anchor="middle")
    return group(pill + written + whole, {"font-weight": "600"})


def _key(y: float, metric: str, has_emergent: bool, width: float) -> tuple[str, float]:
    """Return what the kinds of edges mean, and the height."""

    def mark(colour: str, thick: float, **dashes: str) -> Callable[[float, float], str]:
        def drawn(x: float, y: float) -> str:
            path = f"M{number(x - 12)} {number(y)}h24"
            dashed = {name.replace("_", "-"): value for name, value in dashes.items()}
            return element("path", {"d": path, **stroke(colour, thick), **dashed})

        return drawn

    entries = [(mark("1", 2), f"learned pair, {metric} in %")]
    if has_emergent:
        dashed = mark("2", 1.5, stroke_dasharray="6 4")
        entries.append((dashed, "emergent pair: never trained together"))
    return key(entries, 12, y, width)


def _table(pairs: Sequence[Pair], metric: str) -> Table:
    rows = [
        (
            clean(pair.first),
            clean(pair.second),
            "emergent" if pair.emergent else "learned",
            str(pair.datasets),
            percent(pair.recall),
        )
        for pair in pairs
    ]
    headings = ("modality", "with", "kind", "datasets", f"{metric} (%)")
    return Table("Pairs of modalities", headings, rows, names=3)
