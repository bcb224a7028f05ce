"""Pre-flights: how a dataset would fare, predicted before it is posted.

    queued ──> running ──> done, failed
      ^           │
      └───────────┘ its attempt was lost, once

The result needs torch, so a worker computes it, run by the launcher like an attempt of a job. It
only reads versions and writes one object under its own prefix. So two replicas may advance the same
pre-flight, and an attempt that counts as lost may still run: the later write finds the row changed.
"""

import logging
import shlex
import threading
from collections.abc import Callable, Mapping

from pydantic import Field, ValidationError
from sqlalchemy import Connection

from cmcl.contract.dataset import ShardRef
from cmcl.contract.errors import InvalidDataset, ObjectNotFound, StorageUnavailable
from cmcl.contract.job import submission_id
from cmcl.contract.modality import Frozen, ModalityPair
from cmcl.contract.preflight import AskedShard, AskedShards, PreflightAnswer
from service.context import Context, is_past
from service.database.queries import preflights
from service.database.queries.preflights import NewRow, PreflightRecord, PreflightState
from service.database.rows import random_id
from service.datasets.addresses import Intake, check_addresses, contents_of
from service.datasets.intake import check_modalities
from service.datasets.request import NewShards, Shards
from service.datasets.uploads import resolve
from service.errors import Conflict, DatabaseUnavailable, NotFound
from service.jobs.attempts import labels
from service.launchers.port import (
    LauncherError,
    LauncherRefused,
    LaunchState,
    LaunchStatus,
    Submission,
)
from service.lookup import get_model, get_version
from service.loops import PeriodicLoop
from service.principal import Principal
from workers.storage import layout

logger = logging.getLogger(__name__)

# Pre-flights of different models. The limit for one owner keeps its hanging ones from blocking others;
# the cluster decides which of them run concurrently.
_AT_ONCE = 64
_OF_ONE_OWNER = 8
_ATTEMPTS = 2
_OUTAGES = (LauncherError, StorageUnavailable, DatabaseUnavailable)


class NewPreflight(Frozen):
    """A pre-flight request: the pair and the training shards of a planned dataset."""

    pair: ModalityPair
    shards: Shards = Field(min_length=1)


def ask(
    connection: Connection, model: str, request: NewPreflight, intake: Intake
) -> PreflightRecord:
    """Create a pre-flight against the model's newest version.

    Raises NotFound, Unprocessable for problems visible without opening a shard, and Conflict for a
    model without a version.
    """
    current = get_model(connection, model, intake.principal)
    check_modalities(current, request.pair)
    posted = NewShards(shards=request.shards)
    contents = contents_of(connection, posted.uris, intake.principal)
    check_addresses(connection, posted, intake, contents)
    if current.head == 0:
        raise Conflict(
            f"model {model!r} has no version yet, so there is nothing to compare a dataset "
            "with; post the first dataset"
        )
    version = get_version(connection, model, current.head, intake.principal)
    if version.stored_at is None:
        message = f"version {version.number} of {model!r} is still being stored"
        raise Conflict(f"{message}; try again shortly")
    document = request.model_dump(mode="json")
    row = NewRow(f"pf-{random_id()}", current.owner, model, version.number, document)
    preflights.create(connection, row, intake.now)
    return get_preflight(connection, row.id, intake.principal)


def get_preflight(connection: Connection, preflight: str, principal: Principal) -> PreflightRecord:
    """The pre-flight of that id. Raises NotFound."""
    found = preflights.find(connection, preflight)
    if found is None or not principal.sees(found.owner):
        raise NotFound(f"there is no pre-flight {preflight!r}")
    return found


class PreflightReconciler(PeriodicLoop):
    """Advances pre-flights: one per model at a time, one step per round."""

    name = "preflights"
    # Each pass asks the launcher, and a result takes seconds at least.
    pause_seconds = 1.0

    def __init__(self, context: Context) -> None:
        super().__init__()
        self._context = context

    def step(self, stop: threading.Event) -> float:
        """See PeriodicLoop."""
        self.tick()
        return self.pause_seconds

    def report(self, error: Exception) -> None:
        """See PeriodicLoop."""
        _report("a round of pre-flights failed; will retry", error)

    def tick(self) -> None:
        """Run one step of the oldest pre-flight of each model."""
        with self._context.database.read() as connection:
            found = preflights.current(connection, _AT_ONCE, _OF_ONE_OWNER)
        for preflight in found:
            self._advance(preflight)
            self.beat()

    def _advance(self, preflight: PreflightRecord) -> None:
        """Run one step; an error does not reach the other pre-flights."""
        try:
            _STEPS[preflight.state](self._context, preflight)
        except (LauncherError, StorageUnavailable) as error:
            _report(f"pre-flight {preflight.id} failed; will retry", error)
            _set_message(self._context, preflight, f"waiting: {error}")
        except Exception as error:  # noqa: BLE001
            _report(f"pre-flight {preflight.id} failed; will retry", error)


def submit(context: Context, preflight: PreflightRecord) -> None:
    """queued -> running. Idempotent: its id is in the database already."""
    try:
        asked = _asked_shards(context, preflight)
    except InvalidDataset as error:
        _fail(context, preflight, str(error))
        return
    context.store.put(_key(preflight, _ASKED), asked.model_dump_json().encode())
    try:
        context.launcher.submit(_submission(context, preflight))
    except LauncherRefused as error:
        # A cluster that has just started refuses submissions for a while.
        if not _is_late(context, preflight, context.settings.start_deadline_seconds):
            raise
        _fail(context, preflight, f"the cluster refused it: {error}")
        return
    now = context.clock()
    started = preflight.started_at or now
    with context.database.write() as connection:
        preflights.move(
            connection, preflight, PreflightState.RUNNING, now, started_at=started, message=None
        )


def watch(context: Context, preflight: PreflightRecord) -> None:
    """running -> done or failed as soon as there is a result, whatever the launcher reports."""
    if _take_answer(context, preflight):
        return
    status = context.launcher.status(_submission_id(preflight))
    if not status.has_ended:
        _end_if_late(context, preflight, status)
    elif not _take_answer(context, preflight):
        # Checked again: the result may have been written between the first check and the end.
        _lose_attempt(context, preflight, f"{status.state}, {status.message or 'no answer'}")


Step = Callable[[Context, PreflightRecord], None]

_STEPS: dict[PreflightState, Step] = {
    PreflightState.QUEUED: submit,
    PreflightState.RUNNING: watch,
}

_ASKED, _ANSWERED = "asked.json", "answer.json"


def _take_answer(context: Context, preflight: PreflightRecord) -> bool:
    """Store the worker's result. Returns False if there is none yet."""
    key = _key(preflight, _ANSWERED)
    try:
        answer = PreflightAnswer.model_validate_json(context.store.read(key))
    except ObjectNotFound:
        return False
    except ValidationError as error:
        logger.warning("%s cannot be read: %s", key, error)
        _fail(context, preflight, "its result cannot be read; does the worker run another release?")
        return True
    if answer.outlook is None:
        _take_error(context, preflight, answer)
        return True
    outlook = answer.outlook
    data = {"refused": bool(outlook.refusals)}
    _end(context, preflight, PreflightState.DONE, data, result=outlook.model_dump(mode="json"))
    return True


def _take_error(context: Context, preflight: PreflightRecord, answer: PreflightAnswer) -> None:
    message = answer.error or "the worker gave no reason"
    if answer.retry_can_help:
        _lose_attempt(context, preflight, message)
    else:
        _fail(context, preflight, message)


def _end_if_late(context: Context, preflight: PreflightRecord, status: LaunchStatus) -> None:
    """Stop and fail it after its deadline; a result that comes later is ignored."""
    settings, is_pending = context.settings, status.state == LaunchState.PENDING
    seconds = settings.queue_deadline_seconds if is_pending else settings.preflight_deadline_seconds
    if not _is_late(context, preflight, seconds):
        return
    context.launcher.stop(_submission_id(preflight))
    done = "did not start it" if is_pending else "had no answer"
    _fail(context, preflight, f"the cluster {done} within {seconds:g} s; it was stopped")


def _lose_attempt(context: Context, preflight: PreflightRecord, why: str) -> None:
    if preflight.attempt >= _ATTEMPTS:
        _fail(context, preflight, f"{_ATTEMPTS} attempts gave no answer; the last one: {why}")
        return
    message = f"attempt {preflight.attempt} was lost: {why}"
    following = preflight.attempt + 1
    context.launcher.stop(_submission_id(preflight))
    with context.database.write() as connection:
        preflights.move(
            connection,
            preflight,
            PreflightState.QUEUED,
            context.clock(),
            attempt=following,
            message=message,
        )


def _fail(context: Context, preflight: PreflightRecord, message: str) -> None:
    _end(context, preflight, PreflightState.FAILED, {"message": message}, message=message)


def _end(
    context: Context,
    preflight: PreflightRecord,
    state: PreflightState,
    data: Mapping[str, object],
    result: dict[str, object] | None = None,
    message: str | None = None,
) -> None:
    now = context.clock()
    changes = {"result": result, "message": message}
    with context.database.write() as connection:
        preflights.finish(connection, preflight, state, now, changes, data)


def _set_message(context: Context, preflight: PreflightRecord, message: str) -> None:
    if message == preflight.message:
        return
    with context.database.write() as connection:
        preflights.set_message(connection, preflight, message)


def _asked_shards(context: Context, preflight: PreflightRecord) -> AskedShards:
    """Raises InvalidDataset if an upload has been removed."""
    request = NewPreflight.model_validate(preflight.request)
    return AskedShards(
        shards=tuple(_asked_shard(context, ref) for ref in request.shards),
        allowed_prefixes=context.settings.allowed_prefixes,
    )


def _asked_shard(context: Context, ref: ShardRef) -> AskedShard:
    place = resolve(context, ref.uri)
    address = None if place == ref.uri else place
    return AskedShard(uri=ref.uri, sha256=ref.sha256, address=address)


def _command(context: Context, preflight: PreflightRecord) -> list[str]:
    pair = NewPreflight.model_validate(preflight.request).pair
    return [
        *_python(context.settings.worker_command),
        *("-m", "workers.inspect", "preflight", "--store", context.store.uri),
        *("--model", preflight.model, "--version", str(preflight.version)),
        *("--pair", f"{pair.first},{pair.second}"),
        *("--shards-in", _key(preflight, _ASKED), "--into", _key(preflight, _ANSWERED)),
    ]


def _python(worker_command: str) -> list[str]:
    """The Python command of attempts, including any wrapper before it."""
    parts = shlex.split(worker_command)
    return parts[: parts.index("-m")] if "-m" in parts[1:] else ["python"]


def _submission(context: Context, preflight: PreflightRecord) -> Submission:
    """A single process, without ranks."""
    about = {"preflight": preflight.id, "model": preflight.model, "owner": preflight.owner}
    return Submission(
        id=_submission_id(preflight),
        command=_command(context, preflight),
        labels=labels(context.settings, about),
    )


def _submission_id(preflight: PreflightRecord) -> str:
    return submission_id(preflight.id, preflight.attempt)


def _key(preflight: PreflightRecord, name: str) -> str:
    return f"{layout.run_prefix(preflight.id, preflight.attempt)}/{name}"


def _is_late(context: Context, preflight: PreflightRecord, seconds: float) -> bool:
    return is_past(context, preflight.state_changed_at, seconds)


def _report(what: str, error: Exception) -> None:
    if isinstance(error, _OUTAGES):
        logger.warning("%s: %s", what, error)
    else:
        logger.error("%s", what, exc_info=error)
