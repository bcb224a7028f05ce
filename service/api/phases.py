"""The phases of a job: how long it was in each state, and what its attempt did while it ran."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise

from fastapi import APIRouter

from cmcl.contract.api.jobs import FINAL_STATES, JobPhase, JobPhases, JobState
from cmcl.contract.job import Progress
from service.api.dependencies import ContextDep, JobPath, Reader
from service.api.events import read_page
from service.auth.ownership import get_job
from service.database.engine import Seek
from service.database.queries import versions
from service.database.queries.events import EventFilter
from service.database.rows import JobRow

router = APIRouter(prefix="/v1/jobs/{job}/phases", tags=["jobs"])

# Of the newest events of a job; each attempt has three.
_MOST_EVENTS = 200
_STATE = "job."


@dataclass(frozen=True)
class _Stay:
    """How long the job was in a state. `until` is None while it is in it."""

    state: str
    since: datetime
    until: datetime | None

    def seconds(self, now: datetime) -> float:
        return max(0.0, ((self.until or now) - self.since).total_seconds())


@router.get("")
def read_phases(job: JobPath, principal: Reader, context: ContextDep) -> JobPhases:
    """Read where the time of a job went, phase by phase."""
    with context.database.read() as connection:
        found = get_job(connection, job, principal)
        made = found.version if found.state == JobState.PUBLISHED else None
        beyond = None if made is None else Seek(made - 1, "asc", 1)
        version = versions.outlines(connection, found.model, beyond)[0] if beyond else None
    newest = read_page(context, EventFilter(job=job), Seek(None, "desc", _MOST_EVENTS)).items
    entered = [(event.kind, event.created_at) for event in reversed(newest)]
    stays = _stays(entered, found.state)
    if version is not None and stays:
        stays.append(_Stay("storing", stays[-1].until or version.created_at, version.stored_at))
    phases = list(_phases(found, stays, context.clock()))
    return JobPhases(job=job, seconds=sum(each.seconds for each in phases), phases=phases)


def _stays(entered: Sequence[tuple[str, datetime]], state: JobState) -> list[_Stay]:
    """The states that the job was in since it was queued the last time, but not the one that it ended in."""
    names = {_STATE + state: str(state) for state in JobState}
    moves = [(names[kind], at) for kind, at in entered if kind in names]
    queued = [place for place, (name, _) in enumerate(moves) if name == JobState.QUEUED]
    moves = moves[queued[-1] :] if queued else moves
    stays = [_Stay(name, since, until) for (name, since), (_, until) in pairwise(moves)]
    return stays if state in FINAL_STATES or not moves else [*stays, _Stay(*moves[-1], None)]


def _phases(job: JobRow, stays: Sequence[_Stay], now: datetime) -> Iterator[JobPhase]:
    runs = [stay for stay in stays if stay.state == JobState.RUNNING]
    for stay in stays:
        if stay.state == JobState.RUNNING and stay is runs[-1]:
            yield from _run(stay, job.progress, now)
        else:
            yield _phase(stay.state, stay.seconds(now), is_present=stay.until is None)


def _run(stay: _Stay, progress: Progress | None, now: datetime) -> Iterator[JobPhase]:
    """What the newest attempt did. Its ranks have another clock, which only places their phases within the stay."""
    seconds, is_present = stay.seconds(now), stay.until is None
    if progress is None or not progress.seconds:
        yield _phase("waiting" if is_present else stay.state, seconds, is_present=is_present)
        return
    spent = sum(progress.seconds.values())
    began = (progress.at - stay.since).total_seconds() - spent
    waited = min(max(0.0, began), max(0.0, seconds - spent))
    rest = max(0.0, seconds - waited - spent)
    yield _phase("waiting", waited)
    for phase, taken in progress.seconds.items():
        is_last = is_present and phase == progress.phase
        yield _phase(phase, taken + (rest if is_last else 0.0), is_present=is_last)
    if not is_present or progress.phase == "done":
        yield _phase("done", rest, is_present=is_present)


def _phase(name: str, seconds: float, *, is_present: bool = False) -> JobPhase:
    return JobPhase(phase=name, seconds=round(seconds, 3), running=is_present)
