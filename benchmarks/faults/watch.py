"""Recorded progress of a job, and figures from it."""

import itertools
import time
from dataclasses import dataclass, field

from benchmarks.faults.attempts import Job
from cmcl.contract.job import Progress


@dataclass(frozen=True)
class ProgressSample:
    """A progress report, with its time (monotonic clock) and attempt."""

    at: float
    attempt: int
    progress: Progress

    @property
    def done(self) -> int:
        """Number of updates; 0 before training."""
        return self.progress.updates_done if self.progress.phase == "training" else 0


@dataclass
class ProgressLog:
    """All distinct progress reports of a job."""

    job: Job
    seen: list[ProgressSample] = field(default_factory=list)

    def look(self, attempt: int) -> ProgressSample | None:
        """Read the current report, or return None if there is none."""
        progress = self.job.progress(attempt)
        if progress is None:
            return None
        found = ProgressSample(time.monotonic(), attempt, progress)
        last = self.seen[-1] if self.seen else None
        if last is None or (last.attempt, last.progress) != (attempt, progress):
            self.seen.append(found)
        return found

    def done_before(self, moment: float) -> int:
        """Return the updates reported before that time."""
        return max((each.done for each in self.seen if each.at <= moment), default=0)

    def resumed_after(self, moment: float) -> ProgressSample | None:
        """Return the first report of an update by ranks that started after that time."""
        is_new, before = False, self.done_before(moment)
        attempt = max((each.attempt for each in self.seen if each.at <= moment), default=1)
        for each in (each for each in self.seen if each.at > moment):
            starts_over = each.progress.phase in ("starting", "reading", "moments")
            is_new = is_new or each.attempt != attempt or starts_over or 0 < each.done < before
            if is_new and each.done > (each.progress.resumed_at or 0):
                return each
        return None

    def longest_pause_after(self, moment: float) -> float:
        """Return the longest time in seconds without a new update."""
        times = [moment, *(each.at for each in self.seen if each.at > moment and each.done)]
        return max((b - a for a, b in itertools.pairwise(times)), default=0.0)

    def done_meanwhile(self, moment: float) -> int:
        """Return the updates between the last report before that time and the first one after
        it."""
        before = self.done_before(moment)
        later = (each.done for each in self.seen if each.at > moment and each.done > before)
        return next(later, before) - before
