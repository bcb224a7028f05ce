"""The graph of modalities: pairs that were learned, and pairs that emerged and were only measured."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from cmcl.pictures.picture import WIDTH, Picture, Table
from cmcl.pictures.scales import counted, percent
from cmcl.pictures.svg import (
    SMALL,
    brief,
    clean,
    group,
    number,
    path,
    rectangle,
    text,
    text_width,
    title,
)

_MOST_NODES = 10
_PILL, _WIDEST_PILL, _LABEL = 26.0, 128.0, 16.0
# Where a label may lie along its edge, the best place first.
_ALONG = tuple(0.5 + sign * step / 50 for step in range(18) for sign in (1, -1))


@dataclass(frozen=True)
class Pair:
    """Two modalities. `emergent`: never trained together, measured only. `recall`: R@1, 0 to 1."""

    first: str
    second: str
    recall: float | None = None
    emergent: bool = False
    datasets: int = 0

    def describe(self) -> str:
        """Return a sentence: its modalities, its recall, and where that comes from."""
        kind = "learned"
        if self.emergent:
            kind = "never trained together"
        elif self.datasets:
            kind = f"learned from {counted(self.datasets, 'dataset')}"
        measured = "not measured" if self.recall is None else f"{percent(self.recall)} %"
        return f"{brief(self.first)} with {brief(self.second)}: {measured}, {kind}"


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

    def draw(self, colour: str, radius: float) -> str:
        corner = (self.x - self.width / 2, self.y - self.height / 2)
        return rectangle(corner, (self.width, self.height), colour, radius)


def modality_graph(
    pairs: Sequence[Pair], modalities: Sequence[str] = (), *, width: float = WIDTH
) -> Picture:
    """Draw modalities as nodes; learned pairs are solid edges, emergent ones dashed, with their R@1 in %.

    `modalities`: those without a pair as well. The ten with the most pairs are drawn. A label that finds no free place
    is left to the table.
    """
    degree = dict.fromkeys(modalities, 0)
    for pair in pairs:
        for name in (pair.first, pair.second):
            degree[name] = degree.get(name, 0) + 1
    nodes = sorted(sorted(degree, key=lambda name: (-degree[name], name))[:_MOST_NODES])
    edges = [pair for pair in pairs if {pair.first, pair.second} <= set(nodes)]
    height = 72.0 if len(nodes) < 3 else 150.0 + 26 * len(nodes)
    boxes = _placed(nodes, width, height)
    body = ""
    for pair in sorted(edges, key=lambda pair: not pair.emergent):
        a, b = boxes[pair.first], boxes[pair.second]
        line = f"M{number(a.x)} {number(a.y)}L{number(b.x)} {number(b.y)}"
        colour, dashes = ("2", "6 4") if pair.emergent else ("1", "")
        body += path(line, colour, 2, pair.describe(), dashes=dashes)
    body += "".join(_labels(edges, boxes))
    for name, box in boxes.items():
        room = box.width - 20
        written = text((box.x, box.y + 4), name, room, anchor="middle", weight="600")
        body += box.draw("even", _PILL / 2) + written
    if not nodes:
        body = text((24, height / 2), "no modality yet", colour="muted")
    key = "Solid: learned, R@1 in %. Dashed: never trained together."
    body += text((12, height + 12), key, width - 24, size=SMALL, colour="muted")
    learned = sum(not pair.emergent for pair in pairs)
    words = f"{counted(len(degree), 'modality')}, {counted(learned, 'learned pair')}"
    known = [pair for pair in edges if pair.emergent and pair.recall is not None]
    if known:
        best = max(known, key=lambda pair: pair.recall or 0.0)
        names = f"{brief(best.first)} with {brief(best.second)}"
        emergent = counted(len(pairs) - learned, "emergent pair")
        words += f", {emergent}; the best: {names}, {percent(best.recall)} %"
    if len(degree) > len(nodes):
        words += f"; in the table alone: {counted(len(degree) - len(nodes), 'modality')}"
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
    headings = ("modality", "with", "kind", "datasets", "R@1 (%)")
    table = Table("Pairs of modalities", headings, rows, names=3)
    return Picture("Modalities and their pairs", f"{words}.", table, width, height + 20, body)


def _placed(nodes: Sequence[str], width: float, height: float) -> dict[str, _Box]:
    """Return the place of each node on an ellipse, the first one at the top; of two, beside each other."""
    widest = min(_WIDEST_PILL, width / 3.5)
    across, down = (width - widest) / 2 - 12, (height - _PILL) / 2 - 8
    turn = math.pi if len(nodes) == 2 else -math.pi / 2
    boxes = {}
    for index, name in enumerate(nodes):
        angle = turn + 2 * math.pi * index / len(nodes)
        x, y = width / 2 + across * math.cos(angle), height / 2 + down * math.sin(angle)
        wide = min(widest, text_width(clean(name)) + 24)
        boxes[name] = _Box(x if len(nodes) > 1 else width / 2, y, wide, _PILL)
    return boxes


def _labels(edges: Sequence[Pair], boxes: Mapping[str, _Box]) -> Iterator[str]:
    """Yield the recall of each edge, at the first place along it that is free."""
    taken = list(boxes.values())
    for pair in edges:
        if pair.recall is None:
            continue
        a, b, shown = boxes[pair.first], boxes[pair.second], percent(pair.recall)
        wide = text_width(shown, SMALL) + 8
        for share in _ALONG:
            box = _Box(a.x + (b.x - a.x) * share, a.y + (b.y - a.y) * share, wide, _LABEL)
            if not any(map(box.overlaps, taken)):
                taken.append(box)
                written = text((box.x, box.y + 4), shown, size=SMALL, anchor="middle")
                says = title(f"R@1: {pair.describe()}")
                yield group(box.draw("surface", 3) + written + says, {})
                break
