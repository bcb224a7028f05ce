"""Jobs: looked at, followed, cancelled, tried again, approved."""

from collections.abc import Callable, Sequence

from pydantic import ValidationError

from cmcl.calls.feeds import PROGRESS, Feed, JobEvents, Waiting
from cmcl.errors import CmclError, TookTooLong, may_pass
from cmcl.flow.api import Api, given, posted_reason, segment
from cmcl.flow.effects import Flow, Item, Items, Pause
from cmcl.types import Event, Job, JobProgress


def jobs(api: Api, model: str | None = None, state: str | None = None) -> Items[Job]:
    """All jobs, or those of a model or in a state, in the order of their arrival."""
    return api.pages(Job, "/v1/jobs", given(model=model, state=state))


def job(api: Api, job: str) -> Flow[Job]:
    """One job with its progress."""
    return api.get(Job, _path(job))


def cancel(api: Api, job: str) -> Flow[Job]:
    """Ask for a job to be stopped; refused while its candidate is judged, and after its end."""
    return api.post(Job, f"{_path(job)}/cancel")


def retry(api: Api, job: str) -> Flow[Job]:
    """Give a failed job new attempts."""
    return api.post(Job, f"{_path(job)}/retry")


def approve(api: Api, job: str, reason: str = "") -> Flow[Job]:
    """Publish a candidate that is held for approval, or that the policy rejected."""
    return api.post(Job, f"{_path(job)}/approve", posted_reason(reason))


def reject(api: Api, job: str, reason: str = "") -> Flow[Job]:
    """Say no to a candidate that is held for approval."""
    return api.post(Job, f"{_path(job)}/reject", posted_reason(reason))


def events(api: Api, job: str, patience: float = 60.0) -> Items[Event]:
    """What happens to a job, from its beginning to its end, as it happens.

    A stream that breaks is connected again behind the last event, for up to `patience` seconds
    without a service that answers. Where there are no streams, the job is looked at instead.
    """
    source = JobEvents(api, job, Waiting(patience=patience))
    while (event := (yield from source.next())) is not None:
        yield Item(event)


def all_events(api: Api, model: str | None = None, kinds: Sequence[str] = ()) -> Items[Event]:
    """Everything that has happened and is still kept, the first one first."""
    return api.pages(Event, "/v1/events", given(model=model, kind=list(kinds)))


def follow_events(
    api: Api,
    model: str | None = None,
    kinds: Sequence[str] = (),
    after: int | None = None,
    patience: float = 60.0,
) -> Items[Event]:
    """Everything that happens, as it happens, without an end.

    It begins behind the event with the id `after`, and without one with what happens next.
    """
    behind = None if after is None else str(after)
    params = given(model=model, kind=list(kinds), after=behind)
    feed = Feed(api, "/v1/events", params, Waiting(patience=patience))
    while (event := (yield from feed.next())) is not None:
        yield Item(event)


def watch(
    api: Api,
    job: str,
    on_change: Callable[[Job], None] = lambda _: None,
    timeout: float = 3600.0,
    poll_seconds: float = 0.2,
) -> Flow[Job]:
    """Follow a job to its end; raises TookTooLong when `timeout` seconds are over.

    A control plane that restarts meanwhile is waited for: the job goes on without it.
    """
    deadline = api.clock() + timeout
    now = yield from api.get(Job, _path(job))
    on_change(now)
    waiting = Waiting(deadline, patience=timeout, poll_seconds=poll_seconds)
    source = JobEvents(api, job, waiting)
    while not now.has_ended:
        event = yield from source.next()
        fresh = yield from _after(api, now, event)
        if fresh != now:
            on_change(fresh)
        now = fresh
        if not now.has_ended and api.clock() >= deadline:
            raise TookTooLong(f"job {job} did not end within {timeout:g} seconds")
        if event is None:
            # The stream ended before the job did: a retry took it up again, or it is about to end.
            yield Pause(poll_seconds)
            source = JobEvents(api, job, waiting)
    return now


def _after(api: Api, now: Job, event: Event | None) -> Flow[Job]:
    """The job after an event; progress is told whole, so nobody has to be asked for it."""
    if event is not None and event.kind == PROGRESS:
        try:
            progress = JobProgress.model_validate(event.details, extra="allow")
            return now.model_copy(update={"progress": progress})
        except ValidationError:
            pass  # Told in a form of its own: the job itself will do.
    try:
        return (yield from api.get(Job, _path(now.id)))
    except CmclError as error:
        if not may_pass(error):
            raise
        return now


def _path(job: str) -> str:
    return f"/v1/jobs/{segment(job)}"
