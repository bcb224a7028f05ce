"""Figures of one fault, from all requests around it."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.endpoint.load import Answers
from benchmarks.outages.retrying import Call
from benchmarks.swaps import figures

_OK = 200


@dataclass(frozen=True)
class Outcome:
    """Figures of one fault, in seconds. `failed`: requests of plain clients without status 200, by
    kind. `wrong`: responses to any client that do not match the version. `patient_failed`: calls of
    `cmcl.Client` that raised. `silence`: longest time without a response to any plain client.
    `whole`: time from the fault until both replicas and HAProxy responded again.
    """

    case: str
    words: str
    settings: str
    answers: int
    failed: dict[str, int]
    wrong: int
    silence: float
    slowest: float
    patient_calls: int
    patient_failed: dict[str, int]
    patient_slowest: float
    whole: float

    @property
    def lost(self) -> int:
        """Number of failed requests of plain clients."""
        return sum(self.failed.values())


@dataclass(frozen=True)
class Moment:
    """Times of a fault and of the recovery, by time.time()."""

    case: str
    words: str
    settings: str
    begin: float
    whole: float
    end: float


def outcome(moment: Moment, answers: Answers, calls: Sequence[Call]) -> Outcome:
    """Return figures of requests that were in progress at the fault or sent after it."""
    ended = answers["sent"] + answers["seconds"]
    seen = answers[(ended > moment.begin) & (answers["sent"] < moment.end)]
    mine = [c for c in calls if c.at + c.seconds > moment.begin and c.at < moment.end]
    patient = Counter(call.ended for call in mine)
    wrong = figures.wrong(seen) + patient.pop("wrong", 0)
    patient.pop("right", None)
    return Outcome(
        case=moment.case,
        words=moment.words,
        settings=moment.settings,
        answers=len(seen),
        failed=figures.failures(seen),
        wrong=wrong,
        silence=_silence(seen, moment),
        slowest=float(seen["seconds"].max(initial=0)),
        patient_calls=len(mine),
        patient_failed=dict(patient),
        patient_slowest=max((call.seconds for call in mine), default=0.0),
        whole=moment.whole - moment.begin,
    )


def _silence(seen: Answers, moment: Moment) -> float:
    good = seen[seen["status"] == _OK]
    times = np.sort(good["sent"] + good["seconds"])
    times = np.concatenate([[moment.begin], times[times > moment.begin], [moment.end]])
    return float(np.diff(times).max())
