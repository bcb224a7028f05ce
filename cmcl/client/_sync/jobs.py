# Generated from cmcl/client/_async/jobs.py by `make docs`; edit that file.
"""Calls about jobs, and about events of jobs and of the whole service."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing

from pydantic import ValidationError

from cmcl.client._sync.events import PREPARATION, PROGRESS, Feed, JobEvents, WaitOptions
from cmcl.client._sync.session import Calls
from cmcl.client.errors import CmclError, WaitTimeout, is_transient
from cmcl.client.wire import Order, Request, T, given, posted_reason, read, segment
from cmcl.contract.api.events import Event, StreamedEvent
from cmcl.contract.api.jobs import Attempt, AttemptLog, Candidate, Job, JobPhases, ProgressHistory
from cmcl.contract.job import Progress
from cmcl.contract.prepare import PrepareProgress

# Seconds of an outage of the control plane that a wait outlasts.
_LONGEST_OUTAGE = 3600.0


class JobCalls(Calls):
    """Calls about jobs and events."""

    def jobs(
        self, model: str | None = None, state: str | None = None, order: Order = "asc"
    ) -> Iterator[Job]:
        """Iterate over all jobs, or those of a model or in a state; `order="desc"`: newest first."""
        return self._session.pages(Job, "/v1/jobs", given(model=model, state=state, order=order))

    def job(self, job: str) -> Job:
        """Return a job with its progress."""
        return self._session.get(Job, _path(job))

    def candidate(self, job: str) -> Candidate:
        """Return the candidate of a job that is held or was rejected, beside its parent."""
        return self._session.get(Candidate, f"{_path(job)}/candidate")

    def attempts(self, job: str, order: Order = "asc") -> Iterator[Attempt]:
        """Iterate over the attempts of a job; `order="desc"`: newest first."""
        return self._session.pages(Attempt, f"{_path(job)}/attempts", given(order=order))

    def progress(self, job: str, attempt: int | None = None) -> ProgressHistory:
        """Return the progress of an attempt over time, by default of the newest."""
        return self._of_attempt(ProgressHistory, f"{_path(job)}/progress", attempt)

    def phases(self, job: str) -> JobPhases:
        """Return the phases of a job with their seconds."""
        return self._session.get(JobPhases, f"{_path(job)}/phases")

    def log(self, job: str, attempt: int | None = None) -> AttemptLog:
        """Return the end of an attempt's log, by default of the newest."""
        return self._of_attempt(AttemptLog, f"{_path(job)}/log", attempt)

    def _of_attempt(self, kind: type[T], path: str, attempt: int | None) -> T:
        params = given(attempt=None if attempt is None else str(attempt))
        return read(kind, self._session.send(Request("GET", path, params=params)))

    def cancel(self, job: str, if_revision: int | None = None) -> Job:
        """Cancel a job. Fails while its candidate is being judged, and after its end.

        With `if_revision`, here and below, fails with 412 if the job's `revision` is another one.
        """
        return self._session.post(Job, f"{_path(job)}/cancel", if_match=if_revision)

    def retry(self, job: str, if_revision: int | None = None) -> Job:
        """Retry a failed or rejected job. The gate at the time of its next candidate applies."""
        return self._session.post(Job, f"{_path(job)}/retry", if_match=if_revision)

    def approve(self, job: str, reason: str = "", if_revision: int | None = None) -> Job:
        """Publish a candidate that is held for approval."""
        body = posted_reason(reason)
        return self._session.post(Job, f"{_path(job)}/approve", body, if_match=if_revision)

    def reject(self, job: str, reason: str = "", if_revision: int | None = None) -> Job:
        """Reject a candidate that is held for approval."""
        body = posted_reason(reason)
        return self._session.post(Job, f"{_path(job)}/reject", body, if_match=if_revision)

    def events(self, job: str, outage_timeout: float = 60.0) -> Iterator[StreamedEvent]:
        """Iterate over the events of a job from the first to the last, as they happen.

        A broken stream is reconnected after the last event. Raises if the service is unavailable for
        `outage_timeout` seconds. Polls the job if the service has no streams.
        """
        with closing(
            JobEvents(self._session, job, WaitOptions(outage_timeout=outage_timeout))
        ) as source:
            while (event := source.next()) is not None:
                yield event

    def all_events(
        self, model: str | None = None, kinds: Sequence[str] = (), order: Order = "asc"
    ) -> Iterator[Event]:
        """Iterate over all stored events; `order="desc"`: newest first."""
        params = given(model=model, kind=list(kinds), order=order)
        return self._session.pages(Event, "/v1/events", params)

    def follow_events(
        self,
        model: str | None = None,
        kinds: Sequence[str] = (),
        after: int | None = None,
        outage_timeout: float = 60.0,
    ) -> Iterator[StreamedEvent]:
        """Iterate over the events of the whole service as they happen, without an end.

        Starts after the event with the id `after`, or with the next event.
        """
        behind = None if after is None else str(after)
        params = given(model=model, kind=list(kinds), after=behind)
        with closing(
            Feed(self._session, "/v1/events", params, WaitOptions(outage_timeout=outage_timeout))
        ) as feed:
            while (event := feed.next()) is not None:
                yield event

    def watch(
        self,
        job: str,
        on_change: Callable[[Job], None] | None = None,
        timeout: float = 3600.0,
        poll_seconds: float = 0.2,
    ) -> Job:
        """Follow a job to its end, and call `on_change` at each change.

        Waits through outages of the control plane of an hour at most. Raises WaitTimeout after `timeout` seconds;
        `math.inf` waits without an end.
        """
        deadline = self._session.clock.now() + timeout
        now = self.job(job)
        if on_change:
            on_change(now)
        outage = min(timeout, _LONGEST_OUTAGE)
        waiting = WaitOptions(deadline, outage_timeout=outage, poll_seconds=poll_seconds)
        with closing(JobEvents(self._session, job, waiting)) as source:
            while not now.has_ended:
                event = source.next()
                fresh = self._after(now, event)
                if fresh != now and on_change:
                    on_change(fresh)
                now = fresh
                if not now.has_ended and self._session.clock.now() >= deadline:
                    raise WaitTimeout(f"job {job} did not end within {timeout:g} seconds")
                if event is None:
                    # The stream ended before the job: the job was retried, or is about to end.
                    self._session.clock.sleep(poll_seconds)
                    source.restart()
        return now

    def _after(self, now: Job, event: StreamedEvent | None) -> Job:
        """Return the job after an event. A progress event is complete, so it needs no request."""
        if event is not None and event.kind in _REPORTS:
            field, kind = _REPORTS[event.kind]
            try:
                report = kind.model_validate(event.details, extra="allow")
                return now.model_copy(update={field: report})
            except ValidationError:
                pass  # Unknown form: read the job instead.
        try:
            return self.job(now.id)
        except CmclError as error:
            if not is_transient(error):
                raise
            return now


# By kind of event: the field of a job, and its type.
_REPORTS: dict[str, tuple[str, type[Progress | PrepareProgress]]] = {
    PROGRESS: ("progress", Progress),
    PREPARATION: ("preparation", PrepareProgress),
}


def _path(job: str) -> str:
    return f"/v1/jobs/{segment(job)}"
