"""Measurements of a model over its versions: drift, quality, recall, and the room that is left."""

from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Query
from sqlalchemy import Connection

from cmcl.contract.api.versions import (
    FreeShare,
    ModalityCapacity,
    ModelCapacity,
    VersionFigures,
)
from cmcl.contract.capacity import FULL_BELOW, RECENT, forecast
from cmcl.contract.model import ModelSpec
from cmcl.contract.version import HeadCapacity, MeasuredDataset
from service.api.dependencies import ContextDep, Flag, ModelPath, Reader
from service.api.pagination import LARGEST_NUMBER, NumberSeek, Page, page
from service.auth.ownership import get_model
from service.database import rows
from service.database.queries import datasets, versions
from service.database.queries.versions import Capacities

router = APIRouter(prefix="/v1/models/{model}", tags=["versions"])


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


def to_figures(
    version: rows.VersionFigures, measured_after: Sequence[MeasuredDataset]
) -> VersionFigures:
    """Convert a row, and the datasets that were measured after the version was made."""
    by_dataset = None
    if version.figures:
        after = {
            each.dataset: each.recall.at_1 for each in measured_after if each.recall is not None
        }
        only = after | version.figures["evaluation_only"]
        by_dataset = {**version.figures, "evaluation_only": only}
    return VersionFigures.model_validate(
        {
            **vars(version),
            "version": version.number,
            "pair": {"first": version.pair_first, "second": version.pair_second},
            "free_share": {name: each["free_share"] for name, each in version.capacity.items()},
            "by_dataset": by_dataset,
        }
    )


@router.get("/history")
def list_history(
    model: ModelPath,
    principal: Reader,
    context: ContextDep,
    seek: NumberSeek,
    by_dataset: ByDataset = True,
    every: Every = 1,
) -> Page[VersionFigures]:
    """List measurements of the versions of a model, oldest first; with `order=desc`, the newest first."""
    with context.database.read() as connection:
        newest = get_model(connection, model, principal).head
        part = versions.Part(seek.peek(), newest, every)
        found = versions.figures(connection, model, part, by_dataset=by_dataset)
        measured_after = datasets.measured_after(connection, model) if by_dataset else {}
    return page(
        found,
        seek,
        lambda version: to_figures(version, measured_after.get(version.number, ())),
        lambda version: version.number,
    )


@router.get("/capacity")
def read_capacity(
    model: ModelPath, principal: Reader, context: ContextDep, limit: Newest = 200
) -> ModelCapacity:
    """Read how full each head is, how it filled, and a forecast of how many more datasets fit."""
    with context.database.read() as connection:
        spec = get_model(connection, model, principal).spec
        newest = versions.newest_capacities(connection, model, limit)
        now = newest[-1].by_modality if newest else {}
        own = {modality: _own_shares(connection, model, modality, newest) for modality in now}
    return ModelCapacity(
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
