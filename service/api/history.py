"""Measurements of a model over its versions: drift, quality, recall, and the room that is left."""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Self

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field
from sqlalchemy import Connection

from cmcl.contract.capacity import FULL_BELOW, RECENT, forecast
from cmcl.contract.job import JobKind
from cmcl.contract.modality import Modality, ModalityPair
from cmcl.contract.model import ModelSpec
from cmcl.contract.version import HeadCapacity, MeasuredDataset
from service.api.dependencies import ContextDep, Flag, ModelPath, Reader
from service.api.pagination import LARGEST_NUMBER, NumberSeek, Page, page
from service.auth.ownership import get_model
from service.database.queries import datasets, versions
from service.database.queries.versions import Capacities
from service.database.rows import FiguresByDataset, VersionFigures

router = APIRouter(prefix="/v1/models/{model}", tags=["versions"])


class DatasetFigures(BaseModel):
    """Measurements of a version by id of the dataset. Datasets that were not measured are missing."""

    recall: dict[str, float] = Field(
        description="R@1 on held-out rows: share of queries whose partner is the best result"
    )
    recall_at_10: dict[str, float] = Field(description="the same among the ten best results")
    drift: dict[str, float] = Field(
        description="of earlier datasets: root mean square change of their scores since they were learned, relative to "
        "their size"
    )
    quality: dict[str, float] = Field(
        description="of earlier datasets: their spectral contrastive loss, scaled so that the version that learned them "
        "has -1; lower is better"
    )
    best: dict[str, float] = Field(
        description="of earlier datasets: the lowest such loss that any two heads of this width reach on them alone"
    )
    evaluation_only: dict[str, float] = Field(
        description="R@1 of datasets that are measured and never learned"
    )


class VersionFiguresView(BaseModel):
    """The measurements of a version, without its manifest."""

    version: int
    parent: int | None
    job: str | None = Field(description="null for a version that a branch has from its source")
    kind: JobKind
    dataset: str | None = Field(description="null: it unlearned one, or merged")
    dataset_name: str
    pair: ModalityPair
    created_at: datetime
    stored_at: datetime | None
    retired_at: datetime | None
    max_drift: float | None = Field(
        description="largest drift of an earlier dataset since it was learned; null: there is none"
    )
    mean_recall: float | None = Field(
        description="mean of `recall`; null: there are no held-out rows"
    )
    free_share: dict[Modality, float] = Field(
        description="by modality learned so far: share of its head's entries that the next dataset may change; empty if "
        "heads were solved from moments, which closes no entry"
    )
    by_dataset: DatasetFigures | None = Field(
        description="by dataset, to six significant digits; null if not asked for"
    )

    @classmethod
    def of(cls, version: VersionFigures, measured_after: Sequence[MeasuredDataset]) -> Self:
        """Create it from a record, and the datasets that were measured after the version was made."""
        return cls(
            version=version.number,
            parent=version.parent,
            job=version.job,
            kind=version.kind,
            dataset=version.dataset,
            dataset_name=version.dataset_name,
            pair=ModalityPair(first=version.pair_first, second=version.pair_second),
            created_at=version.created_at,
            stored_at=version.stored_at,
            retired_at=version.retired_at,
            max_drift=version.max_drift,
            mean_recall=version.mean_recall,
            free_share={name: each["free_share"] for name, each in version.capacity.items()},
            by_dataset=_by_dataset(version.figures, measured_after) if version.figures else None,
        )


def _by_dataset(
    figures: FiguresByDataset, measured_after: Sequence[MeasuredDataset]
) -> DatasetFigures:
    after = {each.dataset: each.recall.at_1 for each in measured_after if each.recall is not None}
    return DatasetFigures.model_validate(
        {**figures, "evaluation_only": after | figures["evaluation_only"]}
    )


class FreeShare(BaseModel):
    """Entries of a head that the next dataset may change, after one version."""

    version: int
    free_share: float = Field(description="0 to 1")
    learned: bool = Field(description="whether the version's dataset had the modality")


class ModalityCapacity(BaseModel):
    """The room that one head has left, and how it filled."""

    now: HeadCapacity
    datasets_left: int | None = Field(
        description="how many more datasets of the modality leave the free share at `full_below` or above, if each takes "
        "what the latest four took on average: an order of magnitude. null: too few datasets, or the share does not fall"
    )
    taken_per_dataset: float | None = Field(
        description="part of what is free that each dataset takes, 0 to 1: after k more, free_share * (1 - this)^k is "
        "free. null as above"
    )
    history: list[FreeShare] = Field(description="oldest first")


class CapacityView(BaseModel):
    """How full the heads of a model are."""

    model: str
    version: int | None = Field(
        description="newest version, which `now` is of; null before the first"
    )
    full_below: float = Field(description="below this free share a head counts as full")
    modalities: dict[Modality, ModalityCapacity] = Field(description="those learned so far")
    remark: str | None = Field(
        description="why there is no capacity to measure, or what it is worth; null: the method closes entries"
    )


Newest = Annotated[
    int, Query(ge=1, le=1000, description="number of newest versions in each `history`")
]


ByDataset = Annotated[
    Flag,
    Query(
        description="whether to include the measurements of each dataset, which are most of the response"
    ),
]
Every = Annotated[
    int,
    Query(
        ge=1,
        le=LARGEST_NUMBER,
        description="25: only every 25th version, counted back from the newest, to see a long history in one page",
    ),
]


@router.get("/history")
def list_history(
    model: ModelPath,
    principal: Reader,
    context: ContextDep,
    seek: NumberSeek,
    by_dataset: ByDataset = True,
    every: Every = 1,
) -> Page[VersionFiguresView]:
    """List measurements of the versions of a model, oldest first; with `order=desc`, the newest first."""
    with context.database.read() as connection:
        newest = get_model(connection, model, principal).head
        part = versions.Part(seek.peek(), newest, every)
        found = versions.figures(connection, model, part, by_dataset=by_dataset)
        measured_after = datasets.measured_after(connection, model) if by_dataset else {}
    return page(
        found,
        seek,
        lambda version: VersionFiguresView.of(version, measured_after.get(version.number, ())),
        lambda version: version.number,
    )


@router.get("/capacity")
def read_capacity(
    model: ModelPath, principal: Reader, context: ContextDep, limit: Newest = 200
) -> CapacityView:
    """Read how full each head is, how it filled, and a forecast of how many more datasets fit."""
    with context.database.read() as connection:
        spec = get_model(connection, model, principal).spec
        newest = versions.newest_capacities(connection, model, limit)
        now = newest[-1].by_modality if newest else {}
        own = {modality: _own_shares(connection, model, modality, newest) for modality in now}
    return CapacityView(
        model=model,
        version=newest[-1].number if newest else None,
        full_below=FULL_BELOW,
        modalities={
            modality: _capacity(modality, HeadCapacity.model_validate(head), newest, own[modality])
            for modality, head in now.items()
        },
        remark=_remark(spec),
    )


def _own_shares(
    connection: Connection, model: str, modality: str, newest: Sequence[Capacities]
) -> list[float]:
    """Free shares after the latest datasets of the modality, as many as the forecast uses."""
    own = [each for each in newest if modality in each.pair][-RECENT:]
    if len(own) < RECENT and newest[0].number > 1:
        own = versions.capacities_after_own(connection, model, modality, RECENT)
    return [_free_share(each, modality) for each in own if modality in each.by_modality]


def _free_share(version: Capacities, modality: str) -> float:
    return version.by_modality[modality]["free_share"]


def _capacity(
    modality: str, now: HeadCapacity, newest: Sequence[Capacities], own: Sequence[float]
) -> ModalityCapacity:
    room = forecast(own)
    return ModalityCapacity(
        now=now,
        datasets_left=room.datasets_left,
        taken_per_dataset=room.taken_per_dataset,
        history=[
            FreeShare(
                version=each.number,
                free_share=_free_share(each, modality),
                learned=modality in each.pair,
            )
            for each in newest
            if modality in each.by_modality
        ],
    )


def _remark(spec: ModelSpec) -> str | None:
    if spec.method:
        return f"the method {spec.method} closes no entries; shown is what preserve would close"
    if spec.solves:
        return "the policy improve solves all heads from moments, which closes no entries"
    return None
