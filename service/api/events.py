"""Events: as pages, or as a stream (server-sent events)."""

import json
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from sse_starlette import EventSourceResponse, ServerSentEvent
from sse_starlette.sse import AppStatus, SendTimeoutError
from starlette.types import Receive, Scope, Send

from cmcl.contract.api.events import Event, EventKind
from cmcl.contract.api.jobs import FINAL_STATES
from service.api.dependencies import ContextDep, JobPath, JobQuery, ModelQuery, Reader
from service.api.pagination import NumberSeek, Page, page
from service.auth.ownership import get_job
from service.context import Context
from service.core.errors import FieldProblem, Unprocessable
from service.core.principal import Principal
from service.database.engine import Seek
from service.database.queries import events
from service.database.queries.events import EventFilter
from service.database.rows import EventRow
from service.events.feed import Feed, Item, Progress, number_events

logger = logging.getLogger(__name__)

router = APIRouter(prefix="/v1", tags=["events"])

_EVENT_STREAM = "text/event-stream"
_LARGEST_POSITION = 2**63 - 1
# Delay before a client reconnects. During a stream, comment lines keep proxies from closing it.
_RECONNECT_MILLISECONDS = 2000
_HEARTBEAT_SECONDS = 15
# A client that takes nothing for this long is disconnected.
_SEND_SECONDS = 30.0
# Time for a stream to end when the server stops.
_GOODBYE_SECONDS = 1.0

_STREAMED: dict[int | str, dict[str, object]] = {
    200: {
        "content": {_EVENT_STREAM: {"schema": {"type": "string"}}},
        "description": "Events; in a stream, `data` is one of the items of a page",
    }
}
_ENDED: dict[int | str, dict[str, object]] = {
    204: {"description": "The job has ended and all its events were sent: do not reconnect"}
}


def to_event(event: EventRow) -> Event:
    return Event.model_validate(vars(event) | {"id": event.sequence, "details": dict(event.data)})


class Stream(EventSourceResponse):
    """Server-sent events. A client that takes nothing is disconnected and logged."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        except SendTimeoutError:
            logger.info(
                "a client of a stream took nothing for %g s and was disconnected", _SEND_SECONDS
            )


def is_server_stopping() -> bool:
    """Return whether the server is stopping. It waits for its streams, which end then."""
    return AppStatus.should_exit


def get_feed(request: Request) -> Feed:
    feed: Feed = request.app.state.feed
    return feed


def get_seen_event(
    after: Annotated[
        int | None, Query(ge=0, le=_LARGEST_POSITION, description="id of the last event seen")
    ] = None,
    last_event_id: Annotated[
        str | None, Header(alias="Last-Event-ID", description="the same, as browsers send it")
    ] = None,
) -> int | None:
    """The event after which a stream starts. The header takes precedence: it is newer than the URL."""
    if not last_event_id:
        return after
    is_number = last_event_id.isascii() and last_event_id.isdigit() and len(last_event_id) <= 19
    if not is_number or int(last_event_id) > _LARGEST_POSITION:
        message = "give the id of an event, a whole number"
        raise Unprocessable(message, FieldProblem("Last-Event-ID", message, last_event_id))
    return int(last_event_id)


def get_filter(
    principal: Reader,
    model: ModelQuery = None,
    job: JobQuery = None,
    kind: Annotated[list[EventKind] | None, Query(description="can be repeated")] = None,
) -> EventFilter:
    return EventFilter(owner=principal.owner, model=model, job=job, kinds=frozenset(kind or ()))


FeedDep = Annotated[Feed, Depends(get_feed)]
SeenEvent = Annotated[int | None, Depends(get_seen_event)]
FilterDep = Annotated[EventFilter, Depends(get_filter)]


@router.get("/events", response_model=Page[Event], responses=_STREAMED)
async def list_events(
    request: Request, context: ContextDep, wanted: FilterDep, seen: SeenEvent, seek: NumberSeek
) -> Response | Page[Event]:
    """List events in their order, or with `order=desc` the newest first; with `Accept: text/event-stream`, stream them.

    A stream starts after `Last-Event-ID` or `after`, and without either with the next event.
    """
    if _EVENT_STREAM not in request.headers.get("accept", ""):
        return await run_in_threadpool(read_page, context, wanted, seek)
    feed = get_feed(request)
    feed.check_room(wanted.owner)
    after = await feed.start(seen)
    return stream(feed.follow(wanted, after, wanted.owner), _encode, after)


@router.get(
    "/jobs/{job}/events", response_class=EventSourceResponse, responses={**_STREAMED, **_ENDED}
)
async def follow_job(
    job: JobPath, principal: Reader, context: ContextDep, feed: FeedDep, seen: SeenEvent
) -> Response:
    """Stream a job's events from the first one, and its progress or that of its preparation, as server-sent events.

    The stream ends with the event of a final state. It also ends after 15 minutes, or when the service stops:
    reconnect with `Last-Event-ID`, as browsers do. 204 means that no more events will follow.
    """
    after = await feed.start(seen or 0)
    if await run_in_threadpool(is_over, context, job, principal, after):
        return Response(status_code=204)
    feed.check_room(principal.owner)
    return stream(feed.follow_job(job, after, principal.owner), _encode, after)


def read_page(context: Context, wanted: EventFilter, seek: Seek[int]) -> Page[Event]:
    """The page of events that match, numbered until now."""
    number_events(context.database)
    with context.database.read() as connection:
        found = events.page(connection, wanted, seek.peek())
    return page(found, seek, to_event, lambda event: event.sequence)


def is_over(context: Context, job: str, principal: Principal, after: int) -> bool:
    """Return whether the job has ended and its last event was seen. Raises NotFound.

    In this order, so that the event of the state that was read is numbered before events are read.
    """
    with context.database.read() as connection:
        state = get_job(connection, job, principal).state
    number_events(context.database)
    with context.database.read() as connection:
        return state in FINAL_STATES and not events.page(
            connection, EventFilter(job=job), Seek(after, limit=1)
        )


def stream(
    items: AsyncGenerator[Item, None], encode: Callable[[Item], ServerSentEvent], after: int
) -> Stream:
    """The response that streams items, which come after the event of that number."""
    return Stream(
        _encoded(items, encode, after),
        ping=_HEARTBEAT_SECONDS,
        send_timeout=_SEND_SECONDS,
        shutdown_grace_period=_GOODBYE_SECONDS,
    )


async def _encoded(
    items: AsyncGenerator[Item, None], encode: Callable[[Item], ServerSentEvent], after: int
) -> AsyncGenerator[ServerSentEvent, None]:
    # With an id, so that a client that has seen no event yet continues from here when it connects again.
    yield ServerSentEvent(retry=_RECONNECT_MILLISECONDS, id=str(after))
    async with aclosing(items):
        async for item in items:
            yield encode(item)


def _encode(item: Item) -> ServerSentEvent:
    """Encode an item. Progress has no id: a client that reconnects gets the newest, and misses no event."""
    if isinstance(item, Progress):
        name, values = item.newest
        return ServerSentEvent(json.dumps(values), event=name)
    view = to_event(item)
    return ServerSentEvent(view.model_dump_json(), event=item.kind, id=str(item.sequence))
