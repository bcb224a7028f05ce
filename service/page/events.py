"""Events: what happened, the newest first, and the stream of an open page.

The stream says that something has changed, and the page asks for its live parts again.
"""

import json

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response
from sse_starlette import ServerSentEvent

from cmcl.contract.api.events import EventKind
from service.api.dependencies import ContextDep, JobQuery, ModelQuery, Reader
from service.api.events import FeedDep, SeenEvent, is_over, read_page, stream
from service.api.pagination import CursorQuery, get_number_seek
from service.database.queries.events import EventFilter
from service.events.feed import Item, Progress
from service.maintenance.gc import EVENTS_KEPT_DAYS
from service.page.forms import KindFilter, ModelFilter
from service.page.rendering import PREFIX, pages_of

router = APIRouter(prefix=PREFIX)

_LISTED = 50

# A session that was ended elsewhere gets no news for longer than this: the browser connects again, and is refused.
_LONGEST_SECONDS = 30.0


@router.get("/events")
def events_page(
    request: Request,
    principal: Reader,
    context: ContextDep,
    model: ModelFilter = None,
    kind: KindFilter = None,
    cursor: CursorQuery = None,
) -> Response:
    """Events that the reader may see."""
    kinds = frozenset() if kind is None else frozenset({kind})
    wanted = EventFilter(owner=principal.owner, model=model, kinds=kinds)
    found = read_page(context, wanted, get_number_seek(cursor, "desc", _LISTED))
    return pages_of(request).render(
        request,
        "events.html",
        events=found.items,
        next_cursor=found.next_cursor,
        model=model,
        kind=kind,
        kinds=list(EventKind),
        kept_days=EVENTS_KEPT_DAYS,
    )


@router.get("/stream")
async def changes(
    principal: Reader,
    context: ContextDep,
    feed: FeedDep,
    seen: SeenEvent,
    model: ModelQuery = None,
    job: JobQuery = None,
) -> Response:
    """Changes since the browser's last event, or since now; with a job, its progress as well."""
    owner, after = principal.owner, await feed.start(seen)
    if job is None:
        feed.check_room(owner)
        wanted = EventFilter(owner=owner, model=model)
        return stream(feed.follow(wanted, after, owner, _LONGEST_SECONDS), _change, after)
    feed.check_room(owner)
    if await run_in_threadpool(is_over, context, job, principal, after):
        # It may still be retried.
        items = feed.follow(EventFilter(owner=owner, job=job), after, owner, _LONGEST_SECONDS)
    else:
        items = feed.follow_job(job, after, owner, _LONGEST_SECONDS)
    return stream(items, _change, after)


def _change(item: Item) -> ServerSentEvent:
    """What has changed, without its details: the live parts have them."""
    if isinstance(item, Progress):
        return ServerSentEvent(json.dumps({"kind": "progress"}), event="change")
    document = json.dumps({"kind": item.kind, "model": item.model, "job": item.job})
    return ServerSentEvent(document, event="change", id=str(item.sequence))
