"""The steps of a job until its rows are prepared: begin, write the request, read progress and result; and cancel.

The control plane opens no file of a user. It writes a request to object storage, a process on the cluster carries it
out (`workers.driver`), and the control plane reads progress and result from object storage. Each step may be
interrupted and repeated, also by two instances at a time: a result has the number of its request, and the manifest is
written once.
"""

import logging
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeVar, get_args

from cmcl.contract.api.jobs import FailureReason, JobState
from cmcl.contract.dataset import DatasetManifest, ShardRef
from cmcl.contract.errors import InvalidDataset, InvalidVersion, ObjectNotFound
from cmcl.contract.prepare import (
    PreparationPhase,
    PrepareFailure,
    PrepareProgress,
    PrepareReport,
    PrepareRequest,
)
from cmcl.storage import layout
from cmcl.storage.datasets import read_dataset_manifest
from cmcl.storage.documents import read_document, write_document
from service.context import Context
from service.core.clock import Seconds
from service.database.queries import datasets, job_queue, jobs, models
from service.database.queries.instances import DriverRow
from service.database.rows import DatasetRow, JobRow, ModelRow, PreparedRows
from service.datasets.intake import SCHEME, NewDataset, bound_encoders, mismatch
from service.datasets.uploads import resolve
from service.jobs import scheduler
from service.jobs.attempts import dataset_of, trace_stages
from service.jobs.transitions import fail, move, quarantine, run_step, set_message
from service.jobs.workqueue import Backoff
from service.telemetry.spans import preparation_span

logger = logging.getLogger(__name__)

Result = TypeVar("Result", PrepareProgress, PrepareFailure, PrepareReport)

_SHORTEST_PAUSE, _LONGEST_PAUSE = timedelta(seconds=0.2), timedelta(seconds=2)
# The pause between two reads of results, as a share of the time since the preparation began: a small dataset does not
# wait long, and a large one causes few reads.
_PAUSE_SHARE = 0.25
# A request is written again after this long without progress: a delayed process may have overwritten or removed it.
_BETWEEN_REQUESTS = timedelta(seconds=30)
# A process that runs takes a request up within two seconds.
_BEFORE_A_MESSAGE = timedelta(seconds=5)
_PHASES = get_args(PreparationPhase)
_WAITS_FOR_TURN = "waits for its turn: earlier datasets of the model are learned first"


@dataclass
class _Poll:
    """The state of one preparation in this process. It is not stored; a restart begins a new one.

    `quiet_since`: time of the last progress. It moves on during an outage of the launcher, and while the
    driver waits in a queue of the cluster. `furthest`: phase and
    number of rows that the preparation has reached.
    """

    revision: int
    due: datetime
    quiet_since: datetime
    asked_at: datetime | None = None
    seen: PrepareProgress | None = None
    furthest: tuple[int, int] = (-1, 0)

    def take(self, now: PrepareProgress) -> bool:
        """Store the progress. Returns whether the preparation got further, or waits behind others of a driver that
        runs.

        Work that is repeated after a crash is no progress: the same crash may repeat without end.
        """
        before, self.seen = self.seen, now
        if now.note is not None:
            return False
        if now.phase == "waiting":
            return now != before
        reached = (_PHASES.index(now.phase), now.rows_done)
        is_further = reached > self.furthest
        self.furthest = max(reached, self.furthest)
        return is_further


class Preparations:
    """Runs the steps of jobs that are queued or being prepared. Each job has its own pauses.

    Those of different models may run side by side.
    """

    def __init__(self, context: Context, seconds: Seconds) -> None:
        self._context = context
        self._seconds = seconds
        self._backoff = Backoff(seconds)
        self._polls: dict[str, dict[str, _Poll]] = {}

    def models(self) -> list[str]:
        """Return the models of which datasets are being prepared."""
        return list(self._polls)

    def keep(self, model: str, listed: list[JobRow]) -> None:
        """Drop the state of jobs of the model that are not listed."""
        known = self._polls.pop(model, {})
        kept = {job.id: known.pop(job.id) for job in listed if job.id in known}
        if kept:
            self._polls[model] = kept
        for gone in known:
            self._backoff.forget(gone)

    def step(self, job: JobRow, model: ModelRow, driver: DriverRow) -> None:
        """Run the next step of a job that is queued or being prepared, if it is due. After an error, it pauses."""
        if self._backoff.paused_until(job.id) > self._seconds():
            return
        try:
            self._run(job, model, driver)
        except Exception:
            self._backoff.failed(job.id)
            raise
        self._backoff.forget(job.id)

    def next_due(self, model: str, listed: list[JobRow]) -> float | None:
        """Return the seconds until the next step of one of the jobs is due; None if all wait for the scheduler."""
        polls, now = self._polls.get(model, {}), self._context.clock()
        pauses = []
        for job in listed:
            if job.state == JobState.QUEUED and job.eligible_at is not None:
                continue
            poll = polls.get(job.id)
            pause = _SHORTEST_PAUSE if poll is None else max(_SHORTEST_PAUSE, poll.due - now)
            rest = self._backoff.paused_until(job.id) - self._seconds()
            pauses.append(max(pause.total_seconds(), rest))
        return min(pauses, default=None)

    def _run(self, job: JobRow, model: ModelRow, driver: DriverRow) -> None:
        if job.cancel_requested:
            run_step(self._context, job, "stop", lambda: _cancel(self._context, job))
        elif job.state == JobState.QUEUED:
            run_step(self._context, job, job.state, lambda: _begin(self._context, job, model))
        else:
            poll = self._poll(job)
            if self._context.clock() >= poll.due:
                poll.due = self._context.clock() + _pause(self._context, job)
                follow = _Follower(self._context, job, model, driver, poll).follow
                run_step(self._context, job, job.state, follow)

    def _poll(self, job: JobRow) -> _Poll:
        of_model = self._polls.setdefault(job.model, {})
        poll = of_model.get(job.id)
        if poll is None or poll.revision != job.revision:
            now = self._context.clock()
            poll = of_model[job.id] = _Poll(job.revision, due=now, quiet_since=now)
        return poll


def _begin(context: Context, job: JobRow, model: ModelRow) -> None:
    """Let a job wait for its preparation: queued -> preparing. A job that reads no rows is prepared at once."""
    if job.own_dataset is not None:
        if job.eligible_at is None:
            scheduler.enter(context, job, model.gate.priority)
        return
    with context.database.write() as connection:
        message = _WAITS_FOR_TURN if job_queue.must_wait(connection, job) else None
        jobs.move(connection, job, JobState.PREPARED, context.clock(), message=message)


def _cancel(context: Context, job: JobRow) -> None:
    """Cancel a job. Removing the request ends the preparation."""
    _remove_request(context, job)
    move(context, job, JobState.CANCELLED)


def _remove_request(context: Context, job: JobRow) -> None:
    if job.own_dataset is not None:
        context.store.delete(layout.preparation_request(job.own_dataset))


def _pause(context: Context, job: JobRow) -> timedelta:
    taken = context.clock() - job.state_changed_at
    return max(_SHORTEST_PAUSE, min(_LONGEST_PAUSE, taken * _PAUSE_SHARE))


@dataclass(frozen=True)
class _Follower:
    """One round of a job that is being prepared."""

    context: Context
    job: JobRow
    model: ModelRow
    driver: DriverRow
    poll: _Poll

    def follow(self) -> None:
        """preparing -> prepared, reported or failed, if there is a result; otherwise store the progress.

        The result is read first: it counts even if the process that wrote it has ended.
        """
        assert self.job.state == JobState.PREPARING
        dataset = dataset_of(self.context, self.job)
        try:
            if self._take_end(dataset):
                key = layout.preparation_file(dataset.id, "stages")
                trace_stages(self.context, preparation_span(self.job), key, "prepare")
                return
            self._write_request(dataset)
        except (InvalidDataset, InvalidVersion) as error:
            # An upload was removed, or the manifest cannot be read.
            if quarantine(self.context, self.job, str(error)):
                _remove_request(self.context, self.job)
            return
        self._check_deadline()

    def _take_end(self, dataset: DatasetRow) -> bool:
        """Take the result or the failure. Returns whether there was one."""
        if self._take_result(dataset):
            return True
        return not self._take_progress(dataset) and self._take_failure(dataset)

    def _take_result(self, dataset: DatasetRow) -> bool:
        """Take the manifest or the report. Returns whether there was one."""
        if self.job.dry_run:
            found = self._read(dataset, "report", PrepareReport)
            return found is not None and self._report(found)
        manifest = dataset.manifest or read_dataset_manifest(self.context.store, dataset.id)
        if manifest is None:
            return False
        if (manifest.model, manifest.pair) != (dataset.model, dataset.pair):
            raise InvalidVersion(f"the manifest of {dataset.id} is of another dataset")
        self._take_manifest(manifest)
        return True

    def _take_manifest(self, manifest: DatasetManifest) -> None:
        """In one transaction: fix the model's encoders, store the manifest, move the job."""
        prepared = _prepared(manifest)
        with self.context.database.write() as connection:
            model = models.lock(connection, self.job.model)
            fixed = {} if model is None else dict(model.encoders)
            problem = mismatch(fixed, manifest.encoders)
            if problem is None:
                must_wait = job_queue.must_wait(connection, self.job)
                message = _WAITS_FOR_TURN if must_wait else None
                changes = {"prepared": prepared, "message": message}
                if jobs.move(
                    connection, self.job, JobState.PREPARED, self.context.clock(), **changes
                ):
                    datasets.set_manifest(connection, manifest)
                    # An evaluation must not determine the encoder of a later dataset.
                    new = {} if manifest.evaluate_only else manifest.encoders
                    if not new.keys() <= fixed.keys():
                        models.set_encoders(connection, self.job.model, new | fixed)
        if problem is not None:
            fail(self.context, self.job, FailureReason.ENCODER_MISMATCH, problem)
        _remove_request(self.context, self.job)

    def _report(self, found: PrepareReport) -> bool:
        report = found.report
        prepared = PreparedRows(
            rejected_rows=report.rejected_rows,
            rejected=report.rejected,
            encoders={modality: report.encoders.get(modality) for modality in report.pair},
        )
        # The dataset itself can be posted, and the same dry run again.
        move(self.context, self.job, JobState.REPORTED, report=report, prepared=prepared)
        _remove_request(self.context, self.job)
        return True

    def _take_failure(self, dataset: DatasetRow) -> bool:
        """Take the failure. Returns whether there was one."""
        failure = self._read(dataset, "failure", PrepareFailure)
        if failure is None:
            return False
        if failure.reason == "invalid_dataset":
            rejected = PreparedRows(
                rejected_rows=failure.rejected_rows,
                rejected=failure.rejected,
                needed_share=failure.needed_share,
            )
            quarantine(self.context, self.job, failure.message, rejected)
        else:
            reason = FailureReason(failure.reason)
            fail(self.context, self.job, reason, failure.message)
        _remove_request(self.context, self.job)
        return True

    def _take_progress(self, dataset: DatasetRow) -> bool:
        """Store the progress, and what the job waits for. Returns whether the preparation made progress."""
        progress = self._read(dataset, "progress", PrepareProgress)
        moved = progress is not None and self.poll.take(progress)
        if moved or self.driver.unavailable_since is not None:
            self.poll.quiet_since = self.context.clock()
        message = progress.note if progress is not None else None
        if message is None and (not self.driver.runs or self.driver.unavailable_since is not None):
            message = self.driver.message
        waited = self.context.clock() - self.job.state_changed_at
        if message is None and progress is None and waited > _BEFORE_A_MESSAGE:
            message = "waiting: the driver on the cluster is starting, or busy"
        if progress is None or progress == self.job.prepare_progress:
            set_message(self.context, self.job, message)
        else:
            with self.context.database.write() as connection:
                jobs.set_prepare_progress(connection, self.job, progress, message)
        return moved

    def _write_request(self, dataset: DatasetRow) -> None:
        """Write the request, unless this process wrote it and the preparation makes progress."""
        now, asked = self.context.clock(), self.poll.asked_at
        if asked is not None and now - max(asked, self.poll.quiet_since) < _BETWEEN_REQUESTS:
            return
        request = _prepare_request(self.context, self.job, dataset, self.model)
        key = layout.preparation_request(dataset.id)
        write_document(self.context.store, key, request)
        self.poll.asked_at = now

    def _check_deadline(self) -> None:
        seconds = self.context.tuning.prepare_deadline_seconds
        if self.context.clock() - self.poll.quiet_since <= timedelta(seconds=seconds):
            return
        seen = self.poll.seen
        note = (seen.note if seen is not None else None) or self.driver.message
        message = f"the preparation made no progress for {seconds:g} s; it was stopped"
        if note:
            message += f". The last note: {note}"
        fail(self.context, self.job, FailureReason.PREPARE_DEADLINE, message)
        _remove_request(self.context, self.job)

    def _read(self, dataset: DatasetRow, name: str, kind: type[Result]) -> Result | None:
        """Read what was written for this request; None if there is nothing, or only for an earlier request."""
        key = f"{layout.preparation_files(dataset.id)}{name}.json"
        try:
            # Through JSON again: a rate that is NaN becomes null, as databases require.
            written = read_document(self.context.store, key, kind)
            found = kind.model_validate_json(written.model_dump_json())
        except ObjectNotFound:
            return None
        except InvalidVersion as error:
            # Damaged, or written by another release. Without a readable result, the deadline ends the job.
            logger.warning("%s cannot be read: %s", key, error)
            return None
        return found if found.request == self.job.preparation else None


def _prepared(manifest: DatasetManifest) -> PreparedRows:
    rejected = manifest.rejected
    return PreparedRows(
        rejected_rows=rejected.rows if rejected else 0,
        rejected=rejected.first if rejected else (),
        encoders={
            modality: manifest.encoders.get(modality) for modality in manifest.pair.modalities
        },
        warnings=manifest.warnings,
    )


def _prepare_request(
    context: Context, job: JobRow, dataset: DatasetRow, model: ModelRow
) -> PrepareRequest:
    """Return the request for the driver. Raises InvalidDataset if an upload was removed."""
    posted = NewDataset.model_validate(dataset.request)
    uploaded = {uri: resolve(context, uri) for uri in posted.uris if uri.startswith(SCHEME)}

    def checked(ref: ShardRef) -> ShardRef:
        """The reference with the digest of its upload, unless it names one itself."""
        if ref.sha256 is not None or ref.uri not in uploaded:
            return ref
        return ref.model_copy(update={"sha256": uploaded[ref.uri].sha256})

    declarations = context.settings.encoders_by_name
    return PrepareRequest(
        dataset=dataset.id,
        request=job.preparation,
        owner=job.owner,
        model=model.name,
        name=dataset.name,
        spec=model.spec,
        pair=dataset.pair,
        shards=tuple(map(checked, posted.shards)),
        evaluation_shards=tuple(map(checked, posted.evaluation_shards)),
        evaluation_share=posted.evaluation_share,
        evaluate_only=posted.evaluate_only,
        max_bad_share=posted.max_bad_share,
        encoders=bound_encoders(model.spec, dataset.pair, declarations),
        declared=posted.encoders,
        identities={
            modality: model.encoders[modality]
            for modality in dataset.pair.modalities
            if modality in model.encoders
        },
        allowed_prefixes=context.settings.allowed_prefixes,
        locations={uri: stored.uri for uri, stored in uploaded.items()},
        report_version=model.head if job.dry_run else None,
        traceparent=preparation_span(job),
    )
