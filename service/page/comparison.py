"""Two versions of a model beside each other, dataset by dataset.

A version or a candidate beside its parent, as tables and pictures; what a promotion or a rollback changes for clients of
the endpoint; and any two versions, with the held-out rows of a dataset that they answer differently.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field

from cmcl.contract.api.endpoint import HeldOutRanks, RankedRow
from cmcl.contract.api.jobs import CandidateDataset, JobPhase
from cmcl.contract.api.versions import VersionSummary
from cmcl.pictures import NOTICEABLE, RecallChange, drift_bars, job_phases, recall_changes
from service.api.dependencies import ContextDep, ModelPath, Reader
from service.api.models import read_summary
from service.api.pagination import LARGEST_NUMBER
from service.api.versions import list_versions, read_version
from service.context import Context
from service.core.errors import NotFound
from service.core.principal import Principal
from service.database.engine import Seek
from service.page.endpoint import Endpoint, EndpointProblem, release_slot
from service.page.forms import VersionNumber
from service.page.rendering import PREFIX, WHOLE, Visitor, figure, pages_of, visitor_of

router = APIRouter(prefix=PREFIX)

Order = Literal["lost", "drift", "loss", "learned"]
# What the tables can be ordered by, as their links say it.
ORDERS: Mapping[str, str] = {
    "lost": "most recall lost",
    "drift": "largest drift",
    "loss": "furthest from the lowest loss",
    "learned": "order of learning",
}
_ROWS = 50

# Rows of the table; a confirmation must be read at a glance, and the comparison has more.
_MOST_SHOWN, _MOST_COMPARED = 8, 100
# Held-out rows that both versions are asked for, and those that are shown.
_ASKED_ROWS, _SHOWN_ROWS = 200, 5
# Versions that can be chosen.
_OFFERED = 200


@dataclass(frozen=True)
class Wanted:
    """The part of a table that is shown: its order, and how many rows come before."""

    order: Order = "lost"
    skipped: int = 0


def get_wanted(
    order: Annotated[Order, Query()] = "lost",
    cursor: Annotated[int, Query(ge=0, le=LARGEST_NUMBER)] = 0,
) -> Wanted:
    return Wanted(order, cursor)


WantedDep = Annotated[Wanted, Depends(get_wanted)]


@dataclass(frozen=True)
class Comparison:
    """All datasets, and those that the table shows: those that are new, and a part of the earlier ones.

    A version that unlearns a dataset has no new one, and one that merges another model may have several.
    """

    added: Sequence[CandidateDataset]
    earlier: Sequence[CandidateDataset]
    shown: Sequence[CandidateDataset]
    wanted: Wanted

    @property
    def next_cursor(self) -> int | None:
        """The first row of the next part."""
        following = self.wanted.skipped + len(self.shown)
        return following if following < len(self.earlier) else None

    @property
    def measured(self) -> Sequence[CandidateDataset]:
        """The earlier datasets with R@1 in this version and in the one that learned them."""
        return [each for each in self.earlier if change_since_learned(each) is not None]

    @property
    def certified(self) -> int:
        """How many earlier datasets have a drift here: all, or without a bound those whose turn it was."""
        return sum(each.drift_after is not None for each in self.earlier)

    @property
    def lost_most(self) -> CandidateDataset | None:
        """The earlier dataset with the smallest change of R@1 since it was learned; None: none was measured twice."""
        return min(self.measured, key=_by_change, default=None)

    @property
    def drifted_most(self) -> CandidateDataset | None:
        """The earlier dataset with the largest drift."""
        known = [each for each in self.earlier if each.drift_after is not None]
        return max(known, key=lambda each: each.drift_after or 0.0, default=None)

    @property
    def mean_change(self) -> float | None:
        """Mean change of R@1 of the earlier datasets since each was learned."""
        changes = map(change_since_learned, self.earlier)
        known = [change for change in changes if change is not None]
        return fmean(known) if known else None

    @property
    def mean_recall(self) -> float | None:
        """Mean R@1 of all datasets with held-out rows."""
        both = (*self.earlier, *self.added)
        known = [each.recall_after.at_1 for each in both if each.recall_after]
        return fmean(known) if known else None

    @property
    def has_quality(self) -> bool:
        """Whether the loss of an earlier dataset is known."""
        return any(each.quality_after for each in self.earlier)


def compare(datasets: Sequence[CandidateDataset], wanted: Wanted) -> Comparison:
    added = [each for each in datasets if each.is_new]
    earlier = [each for each in datasets if not each.is_new]
    # Sorting keeps the order of learning where values are equal or missing.
    in_order = sorted(earlier, key=_KEYS[wanted.order])
    shown = in_order[wanted.skipped : wanted.skipped + _ROWS]
    return Comparison(added, earlier, shown, wanted)


def change_since_learned(dataset: CandidateDataset) -> float | None:
    """Change of R@1 since the dataset was learned."""
    if dataset.is_new or dataset.recall_learned is None or dataset.recall_after is None:
        return None
    return dataset.recall_after.at_1 - dataset.recall_learned.at_1


def change_by_version(dataset: CandidateDataset) -> float | None:
    """Change of R@1 from the parent to this version."""
    if dataset.recall_before is None or dataset.recall_after is None:
        return None
    return dataset.recall_after.at_1 - dataset.recall_before.at_1


def comparison_values(
    datasets: Sequence[CandidateDataset],
    wanted: Wanted,
    bound: float | None,
    seconds: Mapping[str, float],
) -> dict[str, object]:
    comparison = compare(datasets, wanted)
    drift = {each.name: each.drift_after for each in comparison.earlier}
    phases = [JobPhase(phase=name, seconds=spent) for name, spent in seconds.items()]
    return {
        "comparison": comparison,
        "changes": {"since_learned": change_since_learned, "by_version": change_by_version},
        "drift": figure(lambda width: drift_bars(drift, bound, width=width)) if drift else None,
        "time": figure(lambda width: job_phases(phases, width=width)) if phases else None,
        "orders": ORDERS,
    }


def _by_change(dataset: CandidateDataset) -> float:
    change = change_since_learned(dataset)
    return float("inf") if change is None else change


def _by_gap(dataset: CandidateDataset) -> float:
    quality = dataset.quality_after
    if quality is None:
        return float("inf")
    return -(quality.now - (-1.0 if quality.best is None else quality.best))


_KEYS: Mapping[str, Callable[[CandidateDataset], float]] = {
    "lost": _by_change,
    "drift": lambda dataset: -(dataset.drift_after or 0.0),
    "loss": _by_gap,
    "learned": lambda dataset: dataset.version,
}


class ComparedDataset(BaseModel):
    """A dataset in both versions. Recall is R@1; None: not measured, or not learned yet."""

    dataset: str
    name: str
    is_learned_before: bool
    is_learned_after: bool
    recall_before: float | None
    recall_after: float | None
    drift_before: float | None
    drift_after: float | None

    @property
    def change(self) -> float | None:
        """The change of R@1; None without both."""
        if self.recall_before is None or self.recall_after is None:
            return None
        return self.recall_after - self.recall_before


class VersionChange(BaseModel):
    """A version beside the one that it replaces. `before` is None if no version is live.

    `datasets` are those that change most, and `more` the number of the others. The means are of the `measured_in_both`:
    means over different datasets do not compare.
    """

    before: VersionSummary | None
    after: VersionSummary
    datasets: list[ComparedDataset]
    more: int
    lost: int
    gained: int
    measured_in_both: int
    mean_before: float | None
    mean_after: float | None


def read_figures(
    model: str, version: int, principal: Principal, context: Context
) -> VersionSummary:
    """The measurements of one version. Raises NotFound."""
    found = list_versions(
        model, principal, context, Seek(version - 1, "asc", 1), by_dataset=True
    ).items
    if not found or found[0].version != version:
        raise NotFound(f"model {model!r} has no version {version}")
    return found[0]


def compare_versions(
    model: str,
    before: int | None,
    after: int,
    principal: Principal,
    context: Context,
    most: int = _MOST_SHOWN,
) -> VersionChange:
    """Compare two versions: of at most `most` datasets, those that are lost first, then those whose recall changes most. Raises NotFound."""
    new = read_figures(model, after, principal, context)
    old = read_figures(model, before, principal, context) if before is not None else None
    known = _learned_by(model, after, principal, context)
    known_before = {} if before is None else _learned_by(model, before, principal, context)
    recall_before, drift_before = _measured(old)
    recall_after, drift_after = _measured(new)
    compared = [
        ComparedDataset(
            dataset=dataset,
            name=name,
            is_learned_before=dataset in known_before,
            is_learned_after=dataset in known,
            recall_before=recall_before.get(dataset),
            recall_after=recall_after.get(dataset),
            drift_before=drift_before.get(dataset),
            drift_after=drift_after.get(dataset),
        )
        for dataset, name in {**known_before, **known}.items()
    ]
    compared.sort(key=_importance)
    in_both = [
        (each.recall_before, each.recall_after)
        for each in compared
        if each.recall_before is not None and each.recall_after is not None
    ]
    return VersionChange(
        before=old,
        after=new,
        datasets=compared[:most],
        more=max(0, len(compared) - most),
        lost=len(known_before.keys() - known.keys()),
        gained=len(known.keys() - known_before.keys()) if old is not None else 0,
        measured_in_both=len(in_both),
        mean_before=fmean(before for before, _ in in_both) if in_both else None,
        mean_after=fmean(after for _, after in in_both) if in_both else None,
    )


def _learned_by(model: str, version: int, principal: Principal, context: Context) -> dict[str, str]:
    """Names of the datasets that a version has learned, by id."""
    lineage = read_version(model, version, principal, context, matrix=False).lineage
    return {line.dataset: line.name for line in lineage}


def _measured(version: VersionSummary | None) -> tuple[Mapping[str, float], Mapping[str, float]]:
    found = version.by_dataset if version else None
    return (found.recall, found.drift) if found else ({}, {})


def _importance(compared: ComparedDataset) -> tuple[bool, float, str]:
    is_lost = compared.is_learned_before and not compared.is_learned_after
    return (not is_lost, -abs(compared.change or 0.0), compared.name)


@dataclass(frozen=True)
class Differences:
    """Of the rows that were searched for, those whose partner fell furthest first, as each version ranks them; or why
    none could be searched for."""

    modality: str = ""
    rows: Sequence[tuple[RankedRow, RankedRow]] = ()
    asked: int = 0
    problem: EndpointProblem | None = None


class Ends(BaseModel):
    """The two versions, and the dataset that is looked at closely; None: the one that lost most."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    before: VersionNumber
    after: VersionNumber
    dataset: Annotated[str, Field(max_length=80)] | None = None


@router.get("/models/{model}/compare")
async def compare_page(
    request: Request,
    model: ModelPath,
    principal: Reader,
    context: ContextDep,
    ends: Annotated[Ends, Query()],
) -> Response:
    """Any two versions: the datasets that both measured, and what one of these lost, with rows that show it."""
    before, after, dataset = ends.before, ends.after, ends.dataset
    summary = await run_in_threadpool(read_summary, model, principal, context)
    compared = await run_in_threadpool(
        compare_versions, model, before, after, principal, context, _MOST_COMPARED
    )
    both = [each for each in compared.datasets if each.change is not None]
    worst = min(both, key=lambda each: each.change or 0.0, default=None)
    chosen = next((each for each in compared.datasets if each.dataset == dataset), worst)
    if dataset is not None and (chosen is None or chosen.dataset != dataset):
        raise NotFound(f"versions {before} and {after} have no dataset {dataset!r}")
    # The endpoint may be slow, and others of the owner need the slot.
    release_slot(request)
    differences = None
    if chosen is not None and chosen.change is not None:
        endpoint, visitor = request.app.state.endpoint, visitor_of(request)
        pair = (f"{model}@{before}", f"{model}@{after}")
        differences = await _differences(endpoint, visitor, pair, chosen.dataset)
    changes = [RecallChange(each.name, each.recall_before, each.recall_after) for each in both]
    names = (f"v{before}", f"v{after}")

    def render() -> Response:
        steps = _steps(model, (before, after), chosen, principal, context) if chosen else []
        return pages_of(request).render(
            request,
            "compare.html",
            model=summary,
            comparison=compared,
            lost=sum((each.change or 0.0) <= -NOTICEABLE for each in both),
            worst=worst,
            chosen=chosen,
            steps=steps,
            differences=differences,
            recall=figure(lambda width: recall_changes(changes, *names, width=width), WHOLE)
            if changes
            else None,
        )

    return await run_in_threadpool(render)


def _steps(
    model: str,
    ends: tuple[int, int],
    dataset: ComparedDataset,
    principal: Principal,
    context: Context,
) -> list[tuple[VersionSummary, float]]:
    """The versions between the two that changed the recall of a dataset, and by how much, the largest change first."""
    low, high = sorted(ends)
    if high - low > _OFFERED:
        return []
    seek = Seek(low - 1, "asc", high - low + 1)
    found = list_versions(model, principal, context, seek, by_dataset=True).items
    steps, last = [], None
    for version in found:
        now = _measured(version)[0].get(dataset.dataset)
        if now is not None and last is not None and abs(now - last) >= NOTICEABLE:
            steps.append((version, now - last))
        last = last if now is None else now
    return sorted(steps, key=lambda step: -abs(step[1]))


async def _differences(
    endpoint: Endpoint, visitor: Visitor, versions: tuple[str, str], dataset: str
) -> Differences:
    """Ask both versions for the ranks of the first held-out rows of a dataset."""
    try:
        before, after = await asyncio.gather(
            *(
                endpoint.ask(
                    visitor,
                    HeldOutRanks,
                    f"/v1/models/{each}/held-out/{dataset}/ranks",
                    {"limit": _ASKED_ROWS},
                )
                for each in versions
            )
        )
    except EndpointProblem as problem:
        return Differences(problem=problem)
    both = zip(before.data, after.data, strict=True)
    rows = [(old, new) for old, new in both if old.rank != new.rank]
    rows.sort(key=lambda row: row[0].rank - row[1].rank)
    return Differences(after.modality, rows[:_SHOWN_ROWS], len(after.data))
