"""`POST /v1/migrate`: map stored vectors of one version to those of another, without encoders.

Shapes: B rows, E width of the embeddings.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import Response

from cmcl.contract.api.endpoint import MigrationResponse
from cmcl.contract.errors import StorageUnavailable, WorkerError
from workers.model.migration import (
    CannotMigrate,
    NothingKept,
    OtherConditioning,
    TooInexact,
    check_error,
)
from workers.nullspace.migrate import Migration
from workers.serve.api.context import (
    ANSWERED_VERSION,
    ASKED_VERSION,
    Replica,
    RequestContext,
    held_body,
    hold_answer,
    hold_until_sent,
    read_context,
    run_if_large,
    run_steps_if_large,
    within_deadline,
)
from workers.serve.api.openapi import BODY, BYTES, json_body, operation, query_parameters
from workers.serve.api.wire.requests import STRICT, Encoding, Feature, parse, parse_parameters
from workers.serve.api.wire.vectors import (
    ARROW,
    DTYPE,
    JSON,
    RAW,
    answer_bytes,
    binary_rows,
    check_count,
    checked,
    content_type_of,
    dtype_of,
    from_base64,
    from_lists,
    json_embeddings,
    vectors_response,
    width_of,
)
from workers.serve.background import Steps
from workers.serve.errors import (
    InvalidRequest,
    NotReady,
    Unprocessable,
    VersionDamaged,
    WrongRow,
    shortened,
)
from workers.serve.migration import Migrations
from workers.serve.telemetry import StageTimer
from workers.serve.versions.live import ModelReference, parse_reference
from workers.serve.versions.loading import Float32Array, ServedVersion

_CODES = {
    OtherConditioning: ("other_conditioning", "from_version"),
    NothingKept: ("nothing_kept", "from_version"),
    TooInexact: ("too_inexact", "most_error"),
}


class MigrateParameters(BaseModel):
    """Which vectors these are, and which to make. Query parameters, where the body is rows."""

    model_config = STRICT

    model: str = Field(description="name without a version", examples=["street-scenes"])
    from_version: int = Field(ge=1, lt=10**9, description="of the stored vectors")
    to_version: int | None = Field(
        default=None,
        ge=1,
        lt=10**9,
        description="of the vectors to make; by default the version that answers",
    )
    modality: str = Field(examples=["image"], description="of all rows")
    most_error: float = Field(
        default=0.5, ge=0, le=1, description="relative error above which nothing is migrated"
    )


class MigrateRequest(MigrateParameters):
    """Stored vectors: as lists of numbers, or base64 of float32, little endian."""

    input: Annotated[
        Feature
        | Annotated[list[Feature], Field(fail_fast=True)]
        | str
        | Annotated[list[str], Field(fail_fast=True)],
        Field(union_mode="left_to_right"),
    ]
    encoding_format: Encoding = Field(default="float", description="base64: float32, little endian")


class _BinaryParameters(MigrateParameters):
    dtype: str | None = DTYPE


def router(replica: Replica) -> APIRouter:
    made = APIRouter(tags=["migrate"])
    described = operation(
        "migrate_vectors",
        MigrationResponse,
        BODY | {409, 415, 422},
        body={**json_body(MigrateRequest), RAW: BYTES, ARROW: BYTES},
        parameters=[
            *ASKED_VERSION,
            *query_parameters(_BinaryParameters, "where the body is no JSON"),
        ],
        success={"headers": ANSWERED_VERSION, "content": {RAW: BYTES, ARROW: BYTES}},
    )
    made.post("/v1/migrate", **described)(_Migrate(replica).answer)
    return made


@dataclass(frozen=True)
class _Query:
    """`rows`: the vectors of a body, once it is known how wide they are and whose."""

    asked: MigrateParameters
    encoding: Encoding
    rows: Callable[[str, int], Float32Array]


class _Migrate:
    """Finds both versions and the map between them, and applies it: one product."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self._migrations = Migrations(replica.store, replica.background)

    async def answer(self, request: Request) -> Response:
        """Map stored vectors to those of another version, and report how exactly.

        JSON; or rows as raw floats (`application/octet-stream`) or Arrow, and everything else as
        parameters. `Accept` asks for the answer in either of these forms.
        """
        replica, timer = self._replica, StageTimer(self._replica.metrics)
        context = read_context(request, replica)
        body = await held_body(request, replica, context.owner)
        async with within_deadline(context):
            most = replica.args.max_rows
            query = await run_if_large(
                replica, context.owner, len(body), _read, request, body, most
            )
            old, new = await self._versions(query.asked, context)
            for each in (old, new):
                width_of(query.asked.modality, each)
            what, width = f"a vector of {old.label}", old.spec.width
            vectors_BE = await run_if_large(
                replica, context.owner, len(body), query.rows, what, width
            )
            rows = len(vectors_BE)
            check_count(rows, replica.args.max_rows)
            hold_until_sent(request, replica.admission.rows, context.owner, rows)
            size = answer_bytes(request, rows * new.spec.width, query.encoding)
            hold_answer(request, replica.admission.bytes, context.owner, size)
            found = await self._map(query.asked, old, new, context.owner)
            migrated_BE = await replica.background.run(context.owner, _apply, found, vectors_BE)
            owner, size = context.owner, migrated_BE.nbytes
            response = await run_steps_if_large(
                replica, owner, size, _response(request, query, (old, new), found, migrated_BE)
            )
        replica.metrics.answered(new.model, rows, timer.seconds)
        return response

    async def _versions(
        self, asked: MigrateParameters, context: RequestContext
    ) -> tuple[ServedVersion, ServedVersion]:
        name = parse_reference(asked.model)
        if name.version is not None:
            raise InvalidRequest(
                f"model is {shortened(asked.model)}; permitted is a name without a version, because the "
                "versions are in from_version and to_version",
                "model",
            )
        find = self._replica.lookup.find
        old = await find(ModelReference(name.name, asked.from_version), 0, context.caller)
        wanted = ModelReference(name.name, asked.to_version)
        return old, await find(wanted, context.min_version, context.caller)

    async def _map(
        self, asked: MigrateParameters, old: ServedVersion, new: ServedVersion, owner: str
    ) -> Migration:
        try:
            found = await self._migrations.between(asked.modality, old, new, owner)
            check_error(asked.modality, found, asked.most_error)
        except CannotMigrate as error:
            code, field = _CODES[type(error)]
            raise Unprocessable(str(error), field, code) from error
        except StorageUnavailable as error:
            message = f"the moments of {old.label} are unavailable; try again"
            raise NotReady(message, "from_version") from error
        except WorkerError as error:
            message = f"{old.label} is stored, but its moments fail their checks"
            raise VersionDamaged(message, "from_version") from error
        return found


def _read(request: Request, body: bytes, most: int) -> _Query:
    form = content_type_of(request)
    if form != JSON:
        asked = parse_parameters(_BinaryParameters, dict(request.query_params))
        dtype = dtype_of(asked.dtype)
        return _Query(
            asked, "float", lambda what, width: binary_rows(form, body, dtype, what, width, most)
        )
    read = parse(MigrateRequest, body, most)
    return _Query(read, read.encoding_format, lambda what, width: _rows(read.input, what, width))


def _rows(given: Any, what: str, width: int) -> Float32Array:
    """Return one vector or several, of numbers or in base64; the parser has checked the types."""
    is_one = not given or isinstance(given, str) or not isinstance(given[0], list | str)
    several = [given] if is_one else given
    if isinstance(several[0], str):
        rows = [from_base64(text, index, what, width) for index, text in enumerate(several)]
        return checked(np.stack(rows))
    return from_lists(several, what, width)


@torch.inference_mode()
def _apply(found: Migration, vectors_BE: Float32Array) -> Float32Array:
    migrated_BE: Float32Array = found.apply_unit(torch.from_numpy(vectors_BE)).numpy()
    lost = np.flatnonzero(~migrated_BE.any(axis=1))
    if len(lost):
        raise WrongRow(int(lost[0]), "has no component that the new version can represent")
    return migrated_BE


def _response(
    request: Request,
    query: _Query,
    versions: tuple[ServedVersion, ServedVersion],
    found: Migration,
    migrated_BE: Float32Array,
) -> Steps[Response]:
    old, new = versions
    figures = {
        "predicted_error": found.predicted_error,
        "error_on_rows": found.error_on_rows,
        "rank": found.rank,
        "condition": found.condition,
        "exact": found.exact,
    }
    headers = {
        "x-model-version": str(new.number),
        "x-from-version": str(old.number),
        **{f"x-{name.replace('_', '-')}": str(value).lower() for name, value in figures.items()},
    }
    migration = {
        "from_version": old.number,
        "to_version": new.number,
        "modality": query.asked.modality,
        **figures,
    }
    return vectors_response(
        request,
        migrated_BE,
        headers,
        lambda: json_embeddings(new.label, migrated_BE, query.encoding, migration=migration),
    )
