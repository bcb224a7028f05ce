"""The modalities of a model as a graph: pairs that were learned, and those that never were but are connected."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from statistics import fmean

from fastapi import APIRouter, Request
from fastapi.responses import Response

from cmcl.contract.version import LearnedDataset, MeasuredDataset, Recall
from cmcl.pictures import Pair, emergent_pairs, modality_graph
from service.api.dependencies import ContextDep, ModelPath, Reader
from service.api.models import read_model
from service.api.summaries import read_summary
from service.api.versions import read_version
from service.page.rendering import PREFIX, TWO_THIRDS, Figure, figure, pages_of

router = APIRouter(prefix=PREFIX)

# Of a model with more modalities, the picture and the tables have the pairs of these.
_MODALITIES = 30


@dataclass
class LearnedPair:
    """The datasets of two modalities, with the recall of each in the newest version."""

    first: str
    second: str
    datasets: list[LearnedDataset] = field(default_factory=list)
    recalls: dict[str, float] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """Rows of all of them."""
        return sum(line.rows for line in self.datasets)

    @property
    def mean(self) -> float | None:
        """Mean R@1 of those that are measured."""
        return fmean(self.recalls.values()) if self.recalls else None

    @property
    def lowest(self) -> LearnedDataset | None:
        """The dataset with the lowest R@1."""
        known = [line for line in self.datasets if line.dataset in self.recalls]
        return min(known, key=lambda line: self.recalls[line.dataset], default=None)

    @property
    def newest(self) -> LearnedDataset:
        """The dataset that was learned last."""
        return self.datasets[-1]


@dataclass(frozen=True)
class Path:
    """Two modalities without a dataset to learn, and the shortest way between them over learned pairs; empty: there is
    none. `recall`: mean R@1 of datasets that are measured only."""

    first: str
    second: str
    over: tuple[str, ...]
    is_connected: bool
    recall: float | None = None


@router.get("/models/{model}/graph")
def graph_page(
    request: Request, model: ModelPath, principal: Reader, context: ContextDep
) -> Response:
    """Modalities and their pairs."""
    summary, spec = read_summary(model, principal, context), read_model(model, principal, context)
    pairs: list[LearnedPair] = []
    measured: Sequence[MeasuredDataset] = ()
    if summary.newest:
        newest = read_version(model, summary.newest.version, principal, context, matrix=False)
        pairs = _learned(newest.lineage, newest.manifest.report.evaluation)
        measured = newest.evaluation_only
    emergent = emergent_pairs(measured, {(pair.first, pair.second) for pair in pairs})
    names = sorted(spec.modalities)
    return pages_of(request).render(
        request,
        "graph.html",
        model=summary,
        spec=spec,
        pairs=pairs,
        others=_others(names[:_MODALITIES], pairs, emergent),
        groups=_groups(names, pairs),
        datasets_of={
            name: sum(len(pair.datasets) for pair in pairs if name in (pair.first, pair.second))
            for name in names
        },
        picture=_picture(names, pairs, emergent),
    )


def _learned(
    lineage: Sequence[LearnedDataset], evaluation: Mapping[str, Recall]
) -> list[LearnedPair]:
    """The learned pairs, those with the most datasets first."""
    pairs: dict[str, LearnedPair] = {}
    for line in lineage:
        first, second = sorted(line.pair.modalities)
        pair = pairs.setdefault(line.pair.key, LearnedPair(first, second))
        pair.datasets.append(line)
        if line.dataset in evaluation:
            pair.recalls[line.dataset] = evaluation[line.dataset].at_1
    return sorted(pairs.values(), key=lambda pair: (-len(pair.datasets), pair.first, pair.second))


def _partners(pairs: Sequence[LearnedPair]) -> dict[str, set[str]]:
    partners: dict[str, set[str]] = {}
    for pair in pairs:
        partners.setdefault(pair.first, set()).add(pair.second)
        partners.setdefault(pair.second, set()).add(pair.first)
    return partners


def _others(
    names: Sequence[str], pairs: Sequence[LearnedPair], emergent: Sequence[Pair]
) -> list[Path]:
    """The pairs that were never trained, those that are connected first."""
    partners = _partners(pairs)
    recalls = {(pair.first, pair.second): pair.recall for pair in emergent}
    found = []
    for first, second in combinations(names, 2):
        if second not in partners.get(first, ()):
            over = _shortest(first, second, partners)
            recall = recalls.get((first, second))
            found.append(Path(first, second, over or (), over is not None, recall))
    return sorted(found, key=lambda path: (not path.is_connected, len(path.over)))


def _shortest(first: str, second: str, partners: Mapping[str, set[str]]) -> tuple[str, ...] | None:
    """The modalities between two of them, on the shortest way; None: there is no way."""
    ways: list[tuple[str, ...]] = [(first,)]
    seen = {first}
    # Breadth first: the first way that arrives is a shortest one.
    for way in ways:
        for partner in sorted(partners.get(way[-1], ())):
            if partner == second:
                return way[1:]
            if partner not in seen:
                seen.add(partner)
                ways.append((*way, partner))
    return None


def _groups(names: Sequence[str], pairs: Sequence[LearnedPair]) -> list[list[str]]:
    """Modalities that learned pairs connect; those without a dataset are left out."""
    partners, groups = _partners(pairs), list[list[str]]()
    left = [name for name in names if name in partners]
    while left:
        group, reached = [left[0]], {left[0]}
        for name in group:
            new = sorted(partners[name] - reached)
            group += new
            reached.update(new)
        groups.append(sorted(group))
        left = [name for name in left if name not in reached]
    return groups


def _picture(
    names: Sequence[str], pairs: Sequence[LearnedPair], emergent: Sequence[Pair]
) -> Figure:
    drawn = [
        Pair(pair.first, pair.second, pair.mean, datasets=len(pair.datasets)) for pair in pairs
    ]
    drawn += emergent
    return figure(lambda width: modality_graph(drawn, names, width=width), TWO_THIRDS)
