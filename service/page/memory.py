"""The memory of a model: what each version retrieves of each dataset, and how far scores moved.

A long history is shown in evenly spaced versions, or in a range of versions that follow each other.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import Response

from cmcl.contract.api.versions import Version, VersionSummary
from cmcl.contract.version import LearnedDataset, Recall
from cmcl.pictures import (
    Learned,
    Memory,
    MemoryRow,
    Picture,
    drift_curve,
    forgetting_matrix,
    retention_curves,
)
from cmcl.pictures.matrix import recall_table
from service.api.dependencies import ContextDep, ModelPath, Reader
from service.api.models import read_summary
from service.api.pagination import LARGEST_NUMBER
from service.api.versions import list_versions, read_version
from service.context import Context
from service.core.principal import Principal
from service.database.engine import Seek
from service.page.comparison import Kept, Losses
from service.page.rendering import PREFIX, TWO_THIRDS, WHOLE, figure, pages_of

router = APIRouter(prefix=PREFIX)

# Versions of one page.
MOST = 26
# Datasets of the pictures, of the table of datasets, and of the table of the matrix.
_MEASURED, _ROWS, _COLUMNS = 100, 50, 16


@dataclass(frozen=True)
class Wanted:
    """The part of the memory that is shown.

    `to`: the newest of versions that follow each other; None: evenly spaced ones. `at`: recall among how many results.
    `rows`: datasets before those of the table.
    """

    to: int | None = None
    at: Literal["1", "10"] = "1"
    rows: int = 0


def get_wanted(
    to: Annotated[int | None, Query(ge=1, le=LARGEST_NUMBER)] = None,
    at: Literal["1", "10"] = "1",
    rows: Annotated[int, Query(ge=0, le=LARGEST_NUMBER)] = 0,
) -> Wanted:
    return Wanted(to, at, rows)


@dataclass(frozen=True)
class Retained:
    """A dataset: its recall when it was learned, and in the newest of the versions shown."""

    line: LearnedDataset
    is_new: bool
    then: float | None
    now: float | None
    drift: float | None

    @property
    def column(self) -> "Column":
        return Column(self.line.dataset, self.line.name, self.line.version, self.then)

    @property
    def change(self) -> float | None:
        """The change of its recall since it was learned; None for the dataset of the newest version."""
        if self.is_new or self.then is None or self.now is None:
            return None
        return self.now - self.then


@router.get("/models/{model}/memory")
def memory_page(
    request: Request,
    model: ModelPath,
    principal: Reader,
    context: ContextDep,
    wanted: Annotated[Wanted, Depends(get_wanted)],
) -> Response:
    """What a model retrieves of each dataset in each version."""
    summary = read_summary(model, principal, context)
    newest = summary.newest.version if summary.newest else 0
    versions = _versions(model, newest, wanted.to, principal, context)
    values: dict[str, object] = {"memory": None}
    if versions:
        lineage = read_version(
            model, versions[-1].version, principal, context, matrix=False
        ).lineage
        values = _values(lineage, versions, wanted, summary.drift_bound)
    return pages_of(request).render(
        request,
        "memory.html",
        model=summary,
        newest=newest,
        versions=versions,
        every=distance(newest),
        most=MOST,
        wanted=wanted,
        **values,
    )


def _versions(
    model: str, newest: int, to: int | None, principal: Principal, context: Context
) -> list[VersionSummary]:
    """Versions that follow each other up to `to`, or evenly spaced ones with the newest; oldest first."""
    seek = Seek[int](None if to is None else min(to, newest) + 1, "desc", MOST)
    every = distance(newest) if to is None else 1
    found = list_versions(model, principal, context, seek, by_dataset=True, every=every)
    return found.items[::-1]


def _values(
    lineage: Sequence[LearnedDataset],
    versions: Sequence[VersionSummary],
    wanted: Wanted,
    bound: float | None,
) -> dict[str, object]:
    retained = [_retained(line, versions, wanted.at) for line in lineage]
    worst = sorted((each for each in retained if each.now is not None), key=_by_change)
    columns = [each.column for each in worst[:_MEASURED]]
    numbers = _memory(columns[:_COLUMNS], versions, wanted.at)
    columns += _unlearned(lineage, versions, wanted.at)
    # The order of learning again.
    columns.sort(key=lambda column: column.version)
    memory = _memory(columns, versions, wanted.at)
    if len(columns) <= _COLUMNS:
        numbers = memory

    def link(row: int, dataset: int) -> str:
        """The comparison of a version with the one that learned the dataset, from the address of the page."""
        column, version = columns[dataset], memory.rows[row].version
        if column.version == version:
            return f"./versions/{version}"
        query = {"before": column.version, "after": version, "dataset": column.dataset}
        return f"./compare?{urlencode(query)}"

    rows = sorted(retained, key=_by_change)[wanted.rows : wanted.rows + _ROWS]
    following = wanted.rows + len(rows)
    drifts = {each.version: each.max_drift for each in versions}
    return {
        "memory": memory,
        "measured": len(worst),
        "losses": Losses(
            [
                Kept(each.line.dataset, each.line.name, each.change, each.drift)
                for each in retained
                if not each.is_new
            ]
        ),
        # The drawing for a phone has cells that are too small to be touched.
        "matrix": figure(
            lambda width: forgetting_matrix(
                memory, width=width, link=link if width == WHOLE else None
            ),
            WHOLE,
        ),
        "retention": figure(lambda width: retention_curves(memory, width=width)),
        "drift": figure(lambda width: drift_curve(drifts, bound, width=width)),
        "rows": rows,
        "next_rows": following if following < len(retained) else None,
        "numbers": recall_table(numbers),
    }


def read_matrix(version: Version, principal: Principal, context: Context) -> Picture | None:
    """The forgetting matrix of the versions up to one, with the datasets that lost most; None if none was measured."""
    number = version.version
    versions = _versions(version.model, number, number, principal, context)
    retained = [_retained(line, versions, "1") for line in version.lineage]
    worst = sorted((each for each in retained if each.now is not None), key=_by_change)
    columns = sorted((each.column for each in worst[:_COLUMNS]), key=lambda column: column.version)
    memory = _memory(columns, versions, "1")
    return forgetting_matrix(memory, width=TWO_THIRDS) if columns else None


def _retained(line: LearnedDataset, versions: Sequence[VersionSummary], at: str) -> Retained:
    name, newest = line.dataset, versions[-1].by_dataset
    return Retained(
        line=line,
        is_new=line.version == versions[-1].version,
        then=_recall(line.recall, at),
        now=_recalls(versions[-1], at).get(name),
        drift=newest.drift.get(name) if newest else None,
    )


def _by_change(dataset: Retained) -> float:
    """What has lost most comes first; what was not measured twice, last."""
    return float("inf") if dataset.change is None else dataset.change


def _recalls(version: VersionSummary, at: str) -> Mapping[str, float]:
    if version.by_dataset is None:
        return {}
    return version.by_dataset.recall_at_10 if at == "10" else version.by_dataset.recall


def _recall(recall: Recall | None, at: str) -> float | None:
    if recall is None:
        return None
    return recall.at_10 if at == "10" else recall.at_1


@dataclass(frozen=True)
class Column:
    """A dataset of the matrix, the version that learned it, and its recall there."""

    dataset: str
    name: str
    version: int
    then: float | None


def _unlearned(
    lineage: Sequence[LearnedDataset], versions: Sequence[VersionSummary], at: str
) -> list[Column]:
    """The datasets that some of the versions learned and measured, and the newest has unlearned."""
    kept = {line.dataset for line in lineage}
    return [
        Column(dataset, each.dataset_name, each.version, _recalls(each, at)[dataset])
        for each in versions
        if (dataset := each.dataset) is not None
        and dataset not in kept
        and dataset in _recalls(each, at)
    ]


def _memory(columns: Sequence[Column], versions: Sequence[VersionSummary], at: str) -> Memory:
    rows = []
    for each in versions:
        recalls = _recalls(each, at)
        recall = [recalls.get(column.dataset) for column in columns]
        rows.append(MemoryRow(each.version, each.title, recall, each.kind == "unlearn"))
    learned = [Learned(column.version, column.then) for column in columns]
    return Memory([column.name for column in columns], rows, f"R@{at}", learned)


def distance(newest: int) -> int:
    """The distance of evenly spaced versions up to `newest`."""
    return max(1, -(-newest // MOST))
