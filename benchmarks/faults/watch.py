"""What was seen of a job while it ran, and the figures in it."""

import itertools
import time
from dataclasses import dataclass, field

from benchmarks.faults.attempts import Job
from cmcl.contract.job import Progress


@dataclass(frozen=True)
class Seen:
    """One look at the progress: when (seconds of the monotonic clock), of which attempt."""

    at: float
    attempt: int
    progress: Progress

    @property
    def done(self) -> int:
        """Updates, while it trains; none before."""
        return self.progress.updates_done if self.progress.phase == "training" else 0


@dataclass
class Watch:
    """Everything that a job told, each thing once."""

    job: Job
    seen: list[Seen] = field(default_factory=list)

    def look(self, attempt: int) -> Seen | None:
        """What it tells now; None before it tells anything."""
        progress = self.job.progress(attempt)
        if progress is None:
            return None
        found = Seen(time.monotonic(), attempt, progress)
        last = self.seen[-1] if self.seen else None
        if last is None or (last.attempt, last.progress) != (attempt, progress):
            self.seen.append(found)
        return found

    def done_before(self, moment: float) -> int:
        """Updates that were told of before that moment."""
        return max((each.done for each in self.seen if each.at <= moment), default=0)

    def resumed_after(self, moment: float) -> Seen | None:
        """The first update that ranks told of that were started after that moment."""
        is_new, before = False, self.done_before(moment)
        attempt = max((each.attempt for each in self.seen if each.at <= moment), default=1)
        for each in (each for each in self.seen if each.at > moment):
            starts_over = each.progress.phase in ("starting", "reading", "moments")
            is_new = is_new or each.attempt != attempt or starts_over or 0 < each.done < before
            if is_new and each.done > (each.progress.resumed_at or 0):
                return each
        return None

    def longest_pause_after(self, moment: float) -> float:
        """Seconds without news of another update."""
        times = [moment, *(each.at for each in self.seen if each.at > moment and each.done)]
        return max((b - a for a, b in itertools.pairwise(times)), default=0.0)

    def done_meanwhile(self, moment: float) -> int:
        """Updates between the last news before that moment and the first ones after it."""
        before = self.done_before(moment)
        later = (each.done for each in self.seen if each.at > moment and each.done > before)
        return next(later, before) - before
