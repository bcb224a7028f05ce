"""THE ONE PLACE where events are counted, logged and traced: after they were committed.

Every change of a job, by the reconciler or a user, emits an event in the same transaction. So nothing
that was rolled back is counted, and nothing that was committed is missed.
"""

import logging
from collections.abc import Callable

from service.database.queries.events import SKIPPED
from service.database.rows import Event
from service.states import TERMINAL, FailureReason, JobState
from service.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

_JOB = "job."
_STATES = {f"{_JOB}{state}": state for state in JobState}
_ENDS = frozenset(TERMINAL)


class EventObserver:
    """Observes every event that this process commits."""

    def __init__(self, metrics: Metrics, wake: Callable[[str], None]) -> None:
        self._metrics = metrics
        self._wake = wake

    def __call__(self, event: Event) -> None:
        """Called after the commit. Wakes the reconciler, which need not wait for its next pass."""
        self._wake(event.model)
        _log(event)
        state = _STATES.get(event.kind)
        if state is not None:
            self._count_move(event, state)
            self._trace_move(event, state)
        elif event.kind in ("version.published", "version.promoted", "version.rolled_back"):
            self._metrics.promotions.labels(event.kind.partition(".")[2]).inc()
        elif event.kind in ("candidate.promoted", "candidate.aborted"):
            self._metrics.trials_ended.labels(event.kind.partition(".")[2]).inc()
        elif event.kind == SKIPPED:
            self._metrics.webhook_deliveries.labels("skipped").inc(_number(event))

    def _count_move(self, event: Event, state: JobState) -> None:
        source, reason = _text(event, "from"), _text(event, "reason")
        if source:
            self._metrics.stages.labels(source).observe(_seconds(event))
        if state == JobState.RUNNING:
            self._metrics.attempts.inc()
        if state in _ENDS:
            self._metrics.jobs_finished.labels(state, reason).inc()
        goes_back = source == JobState.RUNNING and state == JobState.QUEUED
        if goes_back or reason == FailureReason.ATTEMPTS_EXHAUSTED:
            self._metrics.attempts_lost.inc()

    def _trace_move(self, event: Event, state: JobState) -> None:
        source = _text(event, "from")
        if event.job is None:
            return
        if not source:
            self._metrics.spans.posted(event.job)
            return
        attributes = {"cmcl.model": event.model, "cmcl.to": state.value}
        if reason := _text(event, "reason"):
            attributes["cmcl.reason"] = reason
        self._metrics.spans.stage(event.job, source, _seconds(event), attributes)


def _log(event: Event) -> None:
    fields = {
        name: value
        for name in ("model", "dataset", "job", "version")
        if (value := getattr(event, name)) is not None
    }
    fields |= {name: event.data[name] for name in ("attempt", "reason") if event.data.get(name)}
    source = _text(event, "from")
    came = f" (it was {source})" if source else ""
    message = _text(event, "message")
    why = f": {message}" if message else ""
    subject = event.job or event.dataset or event.model
    logger.info("%s: %s%s%s", event.kind, subject, came, why, extra=fields)


def _text(event: Event, name: str) -> str:
    return str(event.data.get(name) or "")


def _seconds(event: Event) -> float:
    return _number(event, "after_seconds")


def _number(event: Event, name: str = "number") -> float:
    number = event.data.get(name)
    return float(number) if isinstance(number, int | float) else 0.0
