"""Models: the overview, the list, and one model with its chain of versions, its gate and its history.

The overview shows what is live, being learned, held and broken, and what to do next. The graph of a model has its
modalities, the pairs that were learned, and those that never were but are connected.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from itertools import combinations
from statistics import fmean

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response

from cmcl.contract.api.jobs import JobState
from cmcl.contract.api.models import ModelSummary
from cmcl.contract.version import LearnedDataset, MeasuredDataset, Recall
from cmcl.pictures import Pair, emergent_pairs, modality_graph
from service.api.datasets import list_datasets
from service.api.dependencies import ContextDep, LoopsDep, ModelPath, Reader
from service.api.models import list_models, list_summaries, read_gate, read_model, read_summary
from service.api.operations import check_health
from service.api.versions import list_promotions, list_versions, read_version
from service.context import Context
from service.core.principal import Principal
from service.database.engine import Seek
from service.page.day import last_day
from service.page.lists import MODELS, VERSIONS, WantedQuery, find
from service.page.rendering import PREFIX, TWO_THIRDS, Figure, figure, pages_of
from service.page.start import has_sample

router = APIRouter(prefix=PREFIX)

_DRAWN = 12
_BRANCHES = 50
_DATASETS = 8
_PROMOTIONS = 8
# Models that are counted; an owner has 500 by default.
_MOST_MODELS = 1000
_AT_ONCE = 200
_MOST_SHOWN = 8
_BROKEN = (JobState.FAILED, JobState.REJECTED)


@router.get("/")
async def overview_page(
    request: Request, principal: Reader, context: ContextDep, loops: LoopsDep
) -> Response:
    """What a person looks at first."""
    health, endpoint = await asyncio.gather(
        check_health(context, loops, request.app.state.probes), request.app.state.endpoint.checks()
    )
    return await run_in_threadpool(
        _render_overview, request, principal, context, health.checks, endpoint
    )


def _render_overview(
    request: Request,
    principal: Principal,
    context: Context,
    control_plane: dict[str, str],
    endpoint: dict[str, str],
) -> Response:
    checks = {**control_plane, **endpoint}
    return pages_of(request).render(
        request,
        "overview.html",
        most_shown=_MOST_SHOWN,
        has_sample=has_sample(context),
        checks=checks,
        problems={name: result for name, result in checks.items() if result != "ok"},
        learning_is_affected=any(result != "ok" for result in control_plane.values()),
        queries_are_affected=any(result != "ok" for result in endpoint.values()),
        **_read_overview(principal, context),
    )


def _read_overview(principal: Principal, context: Context) -> dict[str, object]:
    """Models by what they need, the one that changed last first."""
    models: list[ModelSummary] = []
    after: str | None = None
    while True:
        found = list_summaries(principal, context, Seek(after, "asc", _AT_ONCE))
        models += found.items
        if found.next_cursor is None or len(models) >= _MOST_MODELS:
            break
        after = models[-1].name
    models.sort(key=_changed_at, reverse=True)
    # A function: only the part of the page that shows it has it drawn.
    day = partial(last_day, models[:_MOST_SHOWN], principal, context)
    # The newest job comes last, so that the others stay where they are when it starts.
    learning = sorted(
        (model.current.created_at, model.name, model)
        for model in models
        if model.current and model.current.state != JobState.HELD
    )
    return {
        "models": models,
        "last_day": day,
        "are_all": found.next_cursor is None,
        "live": sum(model.live_version is not None for model in models),
        "learning": [model for *_, model in learning],
        "held": [each for each in models if each.current and each.current.state == JobState.HELD],
        "broken": [each for each in models if each.last_ended and each.last_ended.state in _BROKEN],
        "waiting_jobs": sum(model.jobs.waiting for model in models),
    }


def _changed_at(model: ModelSummary) -> datetime:
    """When something last happened to it."""
    moments = [model.created_at]
    moments += [model.newest.created_at] if model.newest else []
    moments += [model.current.state_changed_at] if model.current else []
    moments += [model.last_ended.state_changed_at] if model.last_ended else []
    return max(moments)


@router.get("/models")
def models_page(
    request: Request, principal: Reader, context: ContextDep, wanted: WantedQuery
) -> Response:
    """Models by name."""
    found = find(context, MODELS, {"owner": principal.owner}, wanted)
    listed = list_summaries(principal, context, found.seek).items
    return pages_of(request).render(request, "models.html", models=listed, found=found)


@router.get("/models/{model}")
def model_page(
    request: Request,
    model: ModelPath,
    principal: Reader,
    context: ContextDep,
    wanted: WantedQuery,
) -> Response:
    """One model."""
    summary = read_summary(model, principal, context)
    found = find(context, VERSIONS, {"model": model}, wanted)
    branches = list_models(principal, context, Seek(None, "asc", _BRANCHES), model).items
    datasets = list_datasets(principal, context, Seek(None, "desc", _DATASETS), model=model)
    promotions = list_promotions(model, principal, context, Seek(None, "desc", _PROMOTIONS))
    return pages_of(request).render(
        request,
        "model.html",
        model=read_model(model, principal, context),
        summary=summary,
        gate=read_gate(model, principal, context, Response()),
        found=found,
        versions=list_versions(model, principal, context, found.seek).items,
        newest=list_versions(model, principal, context, Seek(None, "desc", _DRAWN)).items,
        branches=branches,
        datasets=datasets.items,
        promotions=promotions.items,
    )


# Modalities whose pairs are in the picture and the tables.
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
        return sum(line.rows for line in self.datasets)

    @property
    def mean(self) -> float | None:
        return fmean(self.recalls.values()) if self.recalls else None

    @property
    def lowest(self) -> LearnedDataset | None:
        known = [line for line in self.datasets if line.dataset in self.recalls]
        return min(known, key=lambda line: self.recalls[line.dataset], default=None)

    @property
    def newest(self) -> LearnedDataset:
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
