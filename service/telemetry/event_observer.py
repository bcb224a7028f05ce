"""THE ONE PLACE where what happened is counted, logged and traced: after it was committed.

Whoever moves a job, the reconciler or a user, tells it as an event in the same transaction. So
nothing is counted that was rolled back, and nothing that happened is missed.
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


class Witness:
    """Hears of everything that this process did."""

    def __init__(self, metrics: Metrics, wake: Callable[[str], None]) -> None:
        self._metrics = metrics
        self._wake = wake

    def __call__(self, happening: Event) -> None:
        """It was committed. What follows from it need not wait for the next round."""
        self._wake(happening.model)
        _log(happening)
        state = _STATES.get(happening.kind)
        if state is not None:
            self._count_move(happening, state)
            self._trace_move(happening, state)
        elif happening.kind in ("version.published", "version.promoted", "version.rolled_back"):
            self._metrics.promotions.labels(happening.kind.partition(".")[2]).inc()
        elif happening.kind in ("candidate.promoted", "candidate.taken_back"):
            self._metrics.trials_ended.labels(happening.kind.partition(".")[2]).inc()
        elif happening.kind == SKIPPED:
            self._metrics.webhook_deliveries.labels("skipped").inc(_number(happening))

    def _count_move(self, happening: Event, state: JobState) -> None:
        source, reason = _told(happening, "from"), _told(happening, "reason")
        if source:
            self._metrics.stages.labels(source).observe(_seconds(happening))
        if state == JobState.RUNNING:
            self._metrics.attempts.inc()
        if state in _ENDS:
            self._metrics.jobs_finished.labels(state, reason).inc()
        goes_back = source == JobState.RUNNING and state == JobState.QUEUED
        if goes_back or reason == FailureReason.ATTEMPTS_EXHAUSTED:
            self._metrics.attempts_lost.inc()

    def _trace_move(self, happening: Event, state: JobState) -> None:
        source = _told(happening, "from")
        if happening.job is None:
            return
        if not source:
            self._metrics.spans.posted(happening.job)
            return
        attributes = {"cmcl.model": happening.model, "cmcl.to": state.value}
        if reason := _told(happening, "reason"):
            attributes["cmcl.reason"] = reason
        self._metrics.spans.stage(happening.job, source, _seconds(happening), attributes)


def _log(happening: Event) -> None:
    fields = {
        name: value
        for name in ("model", "dataset", "job", "version")
        if (value := getattr(happening, name)) is not None
    }
    fields |= {
        name: happening.data[name] for name in ("attempt", "reason") if happening.data.get(name)
    }
    source = _told(happening, "from")
    came = f" (it was {source})" if source else ""
    message = _told(happening, "message")
    why = f": {message}" if message else ""
    subject = happening.job or happening.dataset or happening.model
    logger.info("%s: %s%s%s", happening.kind, subject, came, why, extra=fields)


def _told(happening: Event, name: str) -> str:
    return str(happening.data.get(name) or "")


def _seconds(happening: Event) -> float:
    return _number(happening, "after_seconds")


def _number(happening: Event, name: str = "number") -> float:
    number = happening.data.get(name)
    return float(number) if isinstance(number, int | float) else 0.0
