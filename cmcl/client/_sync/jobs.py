# Generated from cmcl/client/_async/jobs.py by `make docs`; edit that file.
"""Jobs, and the events of jobs and of the whole service."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing

from pydantic import ValidationError

from cmcl.client._sync.events import PROGRESS, Feed, JobEvents, Waiting
from cmcl.client._sync.session import Calls
from cmcl.client.answers import Event, Job, JobProgress
from cmcl.client.errors import CmclError, TookTooLong, may_pass
from cmcl.client.wire import given, posted_reason, segment


class JobCalls(Calls):
    """Calls about jobs and events."""

    def jobs(self, model: str | None = None, state: str | None = None) -> Iterator[Job]:
        """All jobs, or those of a model or in a state, in the order of their arrival."""
        return self._session.pages(Job, "/v1/jobs", given(model=model, state=state))

    def job(self, job: str) -> Job:
        """One job with its progress."""
        return self._session.get(Job, _path(job))

    def cancel(self, job: str) -> Job:
        """Cancel a job; refused while its candidate is evaluated, and after its end."""
        return self._session.post(Job, f"{_path(job)}/cancel")

    def retry(self, job: str) -> Job:
        """Give a failed job new attempts."""
        return self._session.post(Job, f"{_path(job)}/retry")

    def approve(self, job: str, reason: str = "") -> Job:
        """Publish a candidate that is held for approval, or that the policy rejected."""
        return self._session.post(Job, f"{_path(job)}/approve", posted_reason(reason))

    def reject(self, job: str, reason: str = "") -> Job:
        """Reject a candidate that is held for approval."""
        return self._session.post(Job, f"{_path(job)}/reject", posted_reason(reason))

    def events(self, job: str, patience: float = 60.0) -> Iterator[Event]:
        """Events of a job from its first to its last, as they happen.

        A broken stream is reconnected after the last event, for up to `patience` seconds without
        an answer of the service. Without streams, the job is polled instead.
        """
        with closing(JobEvents(self._session, job, Waiting(patience=patience))) as source:
            while (event := source.next()) is not None:
                yield event

    def all_events(self, model: str | None = None, kinds: Sequence[str] = ()) -> Iterator[Event]:
        """All events that are kept, the first one first."""
        return self._session.pages(Event, "/v1/events", given(model=model, kind=list(kinds)))

    def follow_events(
        self,
        model: str | None = None,
        kinds: Sequence[str] = (),
        after: int | None = None,
        patience: float = 60.0,
    ) -> Iterator[Event]:
        """Events of the whole service as they happen, without an end.

        Begins after the event with the id `after`; without it, with the next event.
        """
        behind = None if after is None else str(after)
        params = given(model=model, kind=list(kinds), after=behind)
        with closing(Feed(self._session, "/v1/events", params, Waiting(patience=patience))) as feed:
            while (event := feed.next()) is not None:
                yield event

    def watch(
        self,
        job: str,
        on_change: Callable[[Job], None] | None = None,
        timeout: float = 3600.0,
        poll_seconds: float = 0.2,
    ) -> Job:
        """Follow a job to its end; `on_change` is called with each state. Raises TookTooLong.

        `timeout` in seconds. Restarts of the control plane are waited for.
        """
        deadline = self._session.clock.now() + timeout
        now = self.job(job)
        if on_change:
            on_change(now)
        waiting = Waiting(deadline, patience=timeout, poll_seconds=poll_seconds)
        with closing(JobEvents(self._session, job, waiting)) as source:
            while not now.has_ended:
                event = source.next()
                fresh = self._after(now, event)
                if fresh != now and on_change:
                    on_change(fresh)
                now = fresh
                if not now.has_ended and self._session.clock.now() >= deadline:
                    raise TookTooLong(f"job {job} did not end within {timeout:g} seconds")
                if event is None:
                    # The stream ended before the job: a retry resumed it, or it is about to end.
                    self._session.clock.sleep(poll_seconds)
                    source.restart()
        return now

    def _after(self, now: Job, event: Event | None) -> Job:
        """The job after an event. An event of progress is complete, so it needs no request."""
        if event is not None and event.kind == PROGRESS:
            try:
                progress = JobProgress.model_validate(event.details, extra="allow")
                return now.model_copy(update={"progress": progress})
            except ValidationError:
                pass  # Of an unknown form: read the job itself.
        try:
            return self.job(now.id)
        except CmclError as error:
            if not may_pass(error):
                raise
            return now


def _path(job: str) -> str:
    return f"/v1/jobs/{segment(job)}"
