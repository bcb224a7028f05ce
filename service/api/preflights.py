"""Pre-flights: check a dataset against a model before it is posted."""

from datetime import datetime
from typing import Annotated, Self

from fastapi import APIRouter, Path
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from sqlalchemy import Connection

from cmcl.contract.modality import ModalityPair
from cmcl.contract.preflight import Outlook
from service.api.dependencies import ContextDep, IdempotencyKeyDep, ModelPath, Reader, Trainer
from service.api.idempotency import respond, response_record
from service.api.pagination import Limit, NumberCursor, Page, page
from service.database.queries import preflights
from service.database.queries.preflights import PreflightRecord, PreflightState
from service.database.rows import ResponseRecord
from service.datasets.addresses import Intake
from service.datasets.request import NewShards
from service.jobs.preflights import NewPreflight, ask, get_preflight
from service.lookup import get_model

router = APIRouter(prefix="/v1", tags=["preflights"])

PreflightPath = Annotated[str, Path(alias="preflight", pattern=r"^pf-[0-9a-f]{12}$")]


class PreflightView(BaseModel):
    """A pre-flight, its state and its result."""

    id: str
    model: str
    version: int = Field(description="newest version when it was posted")
    pair: ModalityPair
    state: PreflightState
    attempt: int = Field(description="number of the newest attempt")
    outlook: Outlook | None = Field(description="the result; null before it is done")
    message: str | None = Field(description="why there is no result, or what it waits for")
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None

    @classmethod
    def of(cls, preflight: PreflightRecord) -> Self:
        """Create it from a record."""
        request = NewPreflight.model_validate(preflight.request)
        named = ("id", "model", "version", "state", "attempt", "message")
        moments = ("created_at", "started_at", "finished_at")
        return cls(
            pair=request.pair,
            outlook=preflight.result,
            **{field: getattr(preflight, field) for field in (*named, *moments)},
        )


@router.post("/models/{model}/preflight", status_code=202, response_model=PreflightView)
def post_preflight(
    model: ModelPath,
    body: NewPreflight,
    principal: Trainer,
    context: ContextDep,
    key: IdempotencyKeyDep,
) -> JSONResponse:
    """Check a dataset against the newest version: its rows, what is protected, what capacity is left.

    Nothing is trained or stored. 409 if the model has no version.
    """
    posted = NewShards(shards=body.shards)
    intake = Intake.of(principal, context.clock(), context.settings.allowed_prefixes, posted)

    def effect(connection: Connection) -> ResponseRecord:
        asked = ask(connection, model, body, intake)
        return response_record(key, 202, PreflightView.of(asked), f"/v1/preflights/{asked.id}")

    return respond(context, key, effect)


@router.get("/preflights/{preflight}")
def read_preflight(
    preflight: PreflightPath, principal: Reader, context: ContextDep
) -> PreflightView:
    """Read a pre-flight, with its result once it is done."""
    with context.database.read() as connection:
        return PreflightView.of(get_preflight(connection, preflight, principal))


@router.get("/models/{model}/preflights")
def list_preflights(
    model: ModelPath,
    principal: Reader,
    context: ContextDep,
    cursor: NumberCursor,
    limit: Limit = 50,
) -> Page[PreflightView]:
    """List pre-flights of a model in the order of their arrival; old ones are removed."""
    with context.database.read() as connection:
        get_model(connection, model, principal)
        found = preflights.page(connection, model, cursor, limit + 1)
    return page(found, limit, PreflightView.of, lambda preflight: preflight.sequence)
