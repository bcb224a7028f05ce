"""Two versions of a model beside each other, dataset by dataset.

A version or a candidate beside its parent; what a promotion or a rollback changes for clients of the endpoint; and any two
versions, with the held-out rows of a dataset that they answer differently.
"""

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field

from cmcl.contract.api.endpoint import HeldOutHit, HeldOutRanks, HeldOutRow, RankedRow, StoredItem
from cmcl.contract.api.jobs import CandidateDataset
from cmcl.contract.api.versions import Version, VersionSummary
from cmcl.contract.version import LearnedDataset
from cmcl.pictures import NOTICEABLE, RecallChange, recall_changes
from service.api.dependencies import ContextDep, ModelPath, Reader
from service.api.jobs import to_candidate_dataset
from service.api.models import read_summary
from service.api.versions import list_versions, read_version
from service.context import Context
from service.core.errors import NotFound
from service.core.principal import Principal
from service.database.engine import Seek
from service.page.collections import find_items
from service.page.endpoint import Endpoint, EndpointProblem, release_slot
from service.page.forms import VersionNumber
from service.page.rendering import PREFIX, WHOLE, Visitor, figure, pages_of, visitor_of

router = APIRouter(prefix=PREFIX)

# Rows of the tables; a confirmation must be read at a glance.
MOST, MOST_AT_A_GLANCE = 50, 8
# Held-out rows that both versions are asked for, and those that are shown.
_ASKED_ROWS, _SHOWN_ROWS = 200, 5
# Versions that are looked through for those that changed a dataset.
_STEPS = 200


@dataclass(frozen=True)
class Kept:
    """An earlier dataset: the change of its recall since it was learned, and the drift of its scores; None: not measured."""

    dataset: str
    name: str
    change: float | None
    drift: float | None


@dataclass(frozen=True)
class Losses:
    """What earlier datasets lost since each was learned."""

    earlier: Sequence[Kept]

    @property
    def measured(self) -> list[float]:
        """Changes of the datasets that were measured when they were learned and now."""
        return [each.change for each in self.earlier if each.change is not None]

    @property
    def certified(self) -> int:
        """How many have a drift here: all, or without a bound those whose turn it was."""
        return sum(each.drift is not None for each in self.earlier)

    @property
    def lost_most(self) -> Kept | None:
        """The one with the smallest change of recall; None: none was measured twice."""
        known = [
            (each.change, place)
            for place, each in enumerate(self.earlier)
            if each.change is not None
        ]
        return self.earlier[min(known)[1]] if known else None

    @property
    def drifted_most(self) -> Kept | None:
        """The one with the largest drift."""
        known = [each for each in self.earlier if each.drift is not None]
        return max(known, key=lambda each: each.drift or 0.0, default=None)


@dataclass(frozen=True)
class Comparison:
    """Datasets in a version and in the one before, the new ones first, then those that lost most.

    A version that unlearns a dataset has no new one, and one that merges another model may have several.
    """

    datasets: Sequence[CandidateDataset]

    @property
    def added(self) -> list[CandidateDataset]:
        return [each for each in self.datasets if each.is_new]

    @property
    def losses(self) -> Losses:
        return Losses(
            [
                Kept(each.dataset, each.name, change_since_learned(each), each.drift_after)
                for each in self.datasets
                if not each.is_new
            ]
        )

    @property
    def mean_recall(self) -> float | None:
        """Mean R@1 of all datasets with held-out rows."""
        known = [each.recall_after.at_1 for each in self.datasets if each.recall_after]
        return fmean(known) if known else None


def change_since_learned(dataset: CandidateDataset) -> float | None:
    """Change of R@1 since the dataset was learned."""
    if dataset.is_new or dataset.recall_learned is None or dataset.recall_after is None:
        return None
    return dataset.recall_after.at_1 - dataset.recall_learned.at_1


def change_by_version(dataset: CandidateDataset) -> float | None:
    """Change of R@1 from the version before to this one."""
    if dataset.recall_before is None or dataset.recall_after is None:
        return None
    return dataset.recall_after.at_1 - dataset.recall_before.at_1


def recalls_of(dataset: CandidateDataset) -> tuple[float | None, float | None]:
    """R@1 in the version before and in this one."""
    before, after = dataset.recall_before, dataset.recall_after
    return before.at_1 if before else None, after.at_1 if after else None


CHANGES = {"since_learned": change_since_learned, "by_version": change_by_version}


def comparison_values(datasets: Sequence[CandidateDataset]) -> dict[str, object]:
    """What the page of a version or of a candidate shows of its datasets."""
    # Sorting keeps the order of learning where changes are equal or missing.
    in_order = sorted(
        datasets, key=lambda each: (not each.is_new, _last_if_none(change_since_learned(each)))
    )
    return {"comparison": Comparison(in_order), "changes": CHANGES, "most": MOST}


def _last_if_none(change: float | None) -> float:
    return float("inf") if change is None else change


@dataclass(frozen=True)
class VersionChange(Comparison):
    """A version beside the one that it replaces. `before` is None if no version is live.

    `missing`: datasets that the one before has learned and this one has not. The means are of the datasets that both
    measured: means over different datasets do not compare.
    """

    before: Version | None
    after: Version
    missing: Sequence[LearnedDataset]

    @property
    def measured(self) -> list[tuple[float, float]]:
        """R@1 before and after of the datasets that both measured."""
        return [
            (each.recall_before.at_1, each.recall_after.at_1)
            for each in self.datasets
            if each.recall_before and each.recall_after
        ]

    @property
    def lost(self) -> int:
        """How many datasets lost recall that is worth a word."""
        return sum(after - before <= -NOTICEABLE for before, after in self.measured)

    @property
    def means(self) -> list[float]:
        return [fmean(values) for values in zip(*self.measured, strict=True)]


def compare_versions(
    model: str, before: int | None, after: int, principal: Principal, context: Context
) -> VersionChange:
    """Compare two versions: the datasets that lost most come first. Raises NotFound."""
    new = read_version(model, after, principal, context, matrix=False)
    old = None
    if before is not None:
        old = read_version(model, before, principal, context, matrix=False)
    known = {line.dataset for line in old.lineage} if old else set()
    recall = old.manifest.report.evaluation if old else {}
    # The manifest has these beside the parent of the version, which may be another one.
    of_parent = {} if before is None or before == new.parent else {"overlap": None}
    datasets = [
        to_candidate_dataset(line, new.manifest, old.manifest if old else None).model_copy(
            update={
                "is_new": line.dataset == new.dataset and line.dataset not in known,
                "recall_before": recall.get(line.dataset),
                **of_parent,
            }
        )
        for line in new.lineage
    ]
    datasets.sort(key=lambda each: _last_if_none(change_by_version(each)))
    kept = {line.dataset for line in new.lineage}
    missing = [line for line in (old.lineage if old else ()) if line.dataset not in kept]
    return VersionChange(datasets, old, new, missing)


@dataclass(frozen=True)
class Differences:
    """Of the rows that were searched for, those whose partner fell furthest first, as each version ranks them; or why
    none could be searched for."""

    modality: str = ""
    rows: Sequence[tuple[RankedRow, RankedRow]] = ()
    asked: int = 0
    problem: EndpointProblem | None = None
    items: Mapping[tuple[str, str], StoredItem] = field(default_factory=dict)

    def shown(self, row: HeldOutRow) -> HeldOutRow | StoredItem:
        """The item of a collection with the id of a row, best of the same side; the row itself if there is none."""
        side = row.modality if isinstance(row, HeldOutHit) else self.modality
        found = [each for (_, name), each in self.items.items() if name == _item_id(row)]
        return min(found, key=lambda each: each.modality != side, default=row)


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
    compared = await run_in_threadpool(compare_versions, model, before, after, principal, context)
    both = [each for each in compared.datasets if change_by_version(each) is not None]
    chosen = next((each for each in compared.datasets if each.dataset == dataset), None)
    if dataset is not None and chosen is None:
        raise NotFound(f"versions {before} and {after} have no dataset {dataset!r}")
    chosen = chosen or next(iter(both), None)
    # The endpoint may be slow, and others of the owner need the slot.
    release_slot(request)
    differences = None
    if chosen in both and chosen is not None:
        endpoint, visitor = request.app.state.endpoint, visitor_of(request)
        differences = await _differences(endpoint, visitor, context, model, ends, chosen.dataset)
    changes = [RecallChange(each.name, *recalls_of(each)) for each in both]
    names = (f"v{before}", f"v{after}")

    def render() -> Response:
        steps = _steps(model, (before, after), chosen.dataset, principal, context) if chosen else []
        return pages_of(request).render(
            request,
            "compare.html",
            model=summary,
            comparison=compared,
            changes=CHANGES,
            most=MOST,
            chosen=chosen,
            steps=steps,
            differences=differences,
            recall=figure(lambda width: recall_changes(changes, *names, width=width), WHOLE)
            if changes
            else None,
        )

    return await run_in_threadpool(render)


def _steps(
    model: str, ends: tuple[int, int], dataset: str, principal: Principal, context: Context
) -> list[tuple[VersionSummary, float]]:
    """The versions between the two that changed the recall of a dataset, and by how much, the largest change first."""
    low, high = sorted(ends)
    if high - low > _STEPS:
        return []
    seek = Seek(low - 1, "asc", high - low + 1)
    found = list_versions(model, principal, context, seek, by_dataset=True).items
    steps, last = [], None
    for version in found:
        now = version.by_dataset.recall.get(dataset) if version.by_dataset else None
        if now is not None and last is not None and abs(now - last) >= NOTICEABLE:
            steps.append((version, now - last))
        last = last if now is None else now
    return sorted(steps, key=lambda step: -abs(step[1]))


async def _differences(
    endpoint: Endpoint, visitor: Visitor, context: Context, model: str, ends: Ends, dataset: str
) -> Differences:
    """Ask both versions for the ranks of the first held-out rows of a dataset, and collections for their pictures."""

    def ask(version: int) -> Awaitable[HeldOutRanks]:
        path = f"/v1/models/{model}@{version}/held-out/{dataset}/ranks"
        return endpoint.ask(visitor, HeldOutRanks, path, {"limit": _ASKED_ROWS})

    try:
        before, after = await asyncio.gather(ask(ends.before), ask(ends.after))
    except EndpointProblem as problem:
        return Differences(problem=problem)
    both = zip(before.data, after.data, strict=True)
    rows = [(old, new) for old, new in both if old.rank != new.rank]
    rows.sort(key=lambda row: row[0].rank - row[1].rank)
    rows = rows[:_SHOWN_ROWS]
    ids = {_item_id(each) for old, new in rows for each in (new, old.first, new.first)}
    items = await find_items(visitor, context, endpoint, model, sorted(ids)) if ids else {}
    return Differences(after.modality, rows, len(after.data), items=items)


def _item_id(row: HeldOutRow) -> str:
    """The id that `cmcl collection add` gives the file of a row: each line of a text is a row of the same file."""
    return row.id.partition("#")[0]
