"""The tracing interface. It traces nothing itself, so that OpenTelemetry is imported only if needed.

A traceparent of None means: not traced.

A job has a span for each state that it leaves, in the trace of the request that created it: its row has the traceparent
of that request, the parent of these spans, and every instance that advances the job adds to the same trace. A preparation
and an attempt have span ids that each instance derives, because others refer to them: their stages, and the next
preparation or attempt.
"""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from datetime import datetime

from fastapi.telemetry import TelemetryConfig

from cmcl.contract.api.jobs import JobState
from service.database.rows import Event, JobRow

Attributes = Mapping[str, str | int | float]


@dataclass(frozen=True)
class PastSpan:
    """A span of something that has ended.

    `parent`: the traceparent of its parent. `own`: its own traceparent, where others refer to it. `began_at`: None if it
    ends now. `links`: traceparents of related spans. `error`: why it failed, in a few fixed words.
    """

    name: str
    parent: str | None
    seconds: float
    attributes: Attributes = field(default_factory=dict)
    own: str | None = None
    began_at: datetime | None = None
    links: tuple[str, ...] = ()
    error: str | None = None


class Spans:
    """The tracing interface; this one traces nothing."""

    def of_requests(self) -> TelemetryConfig:
        """FastAPI's configuration: a span for each request except probes and scrapes."""
        return {"tracing": False, "metrics": False, "logs": False}

    def traceparent(self) -> str | None:
        """Return the traceparent of the current span, in a handler that of its request."""
        return None

    def inside(self, name: str, attributes: Attributes) -> AbstractContextManager[None]:
        """A span of a call, if it is part of a trace."""
        return nullcontext()

    def step(
        self, parent: str | None, name: str, attributes: Attributes
    ) -> AbstractContextManager[None]:
        """A span of one step of the reconciler, in the trace of its parent."""
        return nullcontext()

    def add(self, span: PastSpan) -> None:
        """Add a span that has ended."""

    def close(self) -> None:
        """Export what is left, for two seconds at most."""


def trace_id(traceparent: str | None) -> str | None:
    """The id of the trace: 32 hexadecimal digits."""
    return None if traceparent is None else traceparent[3:35]


def preparation_span(job: JobRow, number: int | None = None) -> str | None:
    """The traceparent of a preparation of the job's dataset, by default the current one; None if it is not traced."""
    return _derived(job, "preparation", job.preparation if number is None else number)


def attempt_span(job: JobRow, number: int | None = None) -> str | None:
    """The traceparent of an attempt of the job, by default the current one; None if it is not traced."""
    return _derived(job, "attempt", job.attempt if number is None else number)


def move_span(event: Event, state: JobState, current: str | None) -> PastSpan | None:
    """The span of the state that a job left for `state`. `current`: traceparent of the request that moved it."""
    job, source = event.seen, event.data.get("from")
    if job is None or job.traceparent is None or source is None:
        return None
    attributes = {**_attributes(job), "cmcl.to": state.value}
    reason = str(event.data.get("reason") or "")
    if reason:
        attributes["cmcl.reason"] = reason
    is_lost = source == JobState.RUNNING and state == JobState.PREPARED
    seconds = event.data.get("after_seconds")
    return PastSpan(
        str(source),
        job.traceparent,
        float(seconds) if isinstance(seconds, int | float) else 0.0,
        attributes,
        own=_own(job),
        links=tuple(_links(job, current)),
        error="attempt_lost" if is_lost else reason if state == JobState.FAILED else None,
    )


def _attributes(job: JobRow) -> dict[str, str | int]:
    """Return ids; of an attempt also its number and the last phase that it has shown."""
    attributes: dict[str, str | int] = {"cmcl.job": job.id, "cmcl.model": job.model}
    if job.dataset is not None:
        attributes["cmcl.dataset"] = job.dataset
    if job.state == JobState.RUNNING:
        attributes["cmcl.attempt"] = job.attempt
        if job.progress is not None:
            attributes["cmcl.phase"] = job.progress.phase
    return attributes


def _own(job: JobRow) -> str | None:
    match job.state:
        case JobState.PREPARING:
            return preparation_span(job)
        case JobState.RUNNING:
            return attempt_span(job)
    return None


def _links(job: JobRow, current: str | None) -> Iterator[str]:
    """The preparation or the attempt before this one, and a request of another trace that moved the job."""
    before = None
    if job.state == JobState.PREPARING:
        before = preparation_span(job, job.preparation - 1)
    elif job.state == JobState.RUNNING:
        before = attempt_span(job, job.attempt - 1)
    if before is not None:
        yield before
    if current is not None and trace_id(current) != trace_id(job.traceparent):
        yield current


def _derived(job: JobRow, what: str, number: int) -> str | None:
    if job.traceparent is None or number < 1 or not _is_sampled(job.traceparent):
        return None
    digest = hashlib.sha256(f"{job.id}/{what}/{number}".encode()).hexdigest()
    return f"{job.traceparent[:36]}{digest[:16]}{job.traceparent[52:]}"


def _is_sampled(traceparent: str) -> bool:
    return bool(int(traceparent[53:], 16) & 1)
