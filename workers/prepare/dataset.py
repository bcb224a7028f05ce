"""The main path of preparation: from a request to the manifest of the dataset. Read it top to bottom.

Functions that read users' files run on worker processes (`tasks.py`). This module runs in the driver, in one thread
for each dataset. If the driver is killed, the next one starts from the beginning and finds the units that are done.
"""

import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Self

from cmcl.contract.dataset import DatasetManifest, RejectedRow, RejectedRows, Shard
from cmcl.contract.encoder import EncoderIdentity
from cmcl.contract.errors import InvalidDataset, InvalidUri, ObjectExists, StorageUnavailable
from cmcl.contract.prepare import DatasetReport, PreparationError, PrepareReport, PrepareRequest
from cmcl.storage import layout
from cmcl.storage.datasets import read_dataset_manifest
from cmcl.storage.documents import document, write_document
from cmcl.storage.object_store import ObjectStore
from cmcl.storage.versions import entry_for
from workers.encoders.identity import check_identity
from workers.encoders.port import EncoderMismatch, EncoderUnusable
from workers.prepare.cluster import Cluster
from workers.prepare.encoding import EncoderLost, LeasedEncoder
from workers.prepare.progress import DatasetProgress, RowCounts
from workers.prepare.tasks import (
    dataset_report,
    find_repeated,
    join_evaluation,
    plan_dataset,
    prepare_unit,
)
from workers.prepare.units import (
    FIRST_FLAT,
    DatasetContext,
    DatasetSource,
    Prepared,
    SideSpec,
    UnitRecord,
    UnitTask,
    sides_of,
)

logger = logging.getLogger(__name__)

_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 10.0
FIRST_ROWS = 20
# Default of `max_bad_share` for raw rows.
_MAX_BAD_SHARE = 0.01
_ROWS_IN_EVALUATION_SHARD = 65536
# Unusable rows of a dataset that is refused. With more, the rest of its rows is not read.
_MOST_LISTED = 10_000


class PreparationFailed(Exception):
    """The dataset cannot be prepared, and the same request would fail again."""

    def __init__(
        self, reason: PreparationError, message: str, prepared: Prepared | None = None
    ) -> None:
        super().__init__(message)
        self.reason = reason
        # What could be prepared, with all rows that are left out as far as they are known.
        self.prepared = prepared or Prepared()


# The same request would fail again.
_FINAL_ERRORS = (InvalidDataset, InvalidUri, EncoderMismatch, EncoderUnusable, PreparationFailed)


@dataclass(frozen=True)
class Preparation:
    """One request in work."""

    store: ObjectStore
    request: PrepareRequest
    cluster: Cluster
    progress: DatasetProgress


def prepare_dataset(job: Preparation) -> None:
    """Write the dataset's manifest, or the report of a dry run.

    Raises PreparationFailed; StorageUnavailable, after which a retry can succeed; Cancelled.
    """
    store, request = job.store, job.request
    if read_dataset_manifest(store, request.dataset) is not None:
        return
    try:
        with _Dataset(job) as dataset:
            prepared = dataset.prepare()
    except _FINAL_ERRORS as error:
        failure = as_failure(error, request)
        if request.report_version is None or failure.reason == "encoder_unavailable":
            raise failure from error
        prepared = replace(failure.prepared, refusals=(str(failure),))
    if request.report_version is None:
        job.progress.write_stages(store)
        _write_manifest(store, request, prepared)
    else:
        job.progress.enter("reporting")
        report = job.cluster.run(
            dataset_report, store.uri, request, prepared, check=job.progress.check
        )
        job.progress.write_stages(store)
        _write_report(store, request, prepared, report)
    forget_units(store, request.dataset)


class _Dataset:
    """A dataset in work: its units, the records of those that are done, and their encoders. A context manager."""

    def __init__(self, job: Preparation) -> None:
        self._request, self._cluster, self._progress = job.request, job.cluster, job.progress
        self._leases = ExitStack()
        self._tasks: list[UnitTask] = []
        self._records: dict[int, UnitRecord] = {}
        # Sides that an encoder computes; none of a dataset of features.
        self._encoded: list[SideSpec] = []
        request = job.request
        sides = sides_of(request.pair, request.spec, request.encoders)
        self._context = DatasetContext(
            store=job.store.uri,
            dataset=request.dataset,
            request=request.request,
            owner=request.owner,
            source=DatasetSource(
                files=(*request.shards, *request.evaluation_shards),
                sides=sides,
                allowed_prefixes=request.allowed_prefixes,
                locations=request.locations,
            ),
            files_to_train=0 if request.evaluate_only else len(request.shards),
            share=request.evaluation_share,
            leaves_out=request.max_bad_share is not None,
            file_memory=job.cluster.file_memory,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._leases.close()

    def prepare(self) -> Prepared:
        """Plan the dataset, prepare its units, and check the results together."""
        progress = self._progress
        progress.enter("planning")
        plan = self._cluster.run(plan_dataset, self._context, check=progress.check)
        assert not (plan.units and plan.feature_files), "two tasks would have one number"
        self._tasks = [
            *(UnitTask(index, unit.file, unit) for index, unit in enumerate(plan.units)),
            *(UnitTask(index, file) for index, file in enumerate(plan.feature_files)),
        ]
        self._encoded = [side for side in self._sides if side.encoder is not None and plan.units]
        self._check_declared()
        if not self._use_without_encoders():
            self._lease()
        progress.enter("encoding" if plan.units else "reading", plan.rows, len(self._tasks))
        self._prepare(self._tasks)
        if len(self._tasks) > 1 and not plan.units:
            self._leave_out_repeated()
        progress.enter("finishing")
        prepared = self._checked()
        if plan.units and self._request.report_version is None:
            prepared = self._join_held_out(prepared)
        return prepared

    @property
    def _sides(self) -> tuple[SideSpec, SideSpec]:
        return self._context.source.sides

    def _check_declared(self) -> None:
        """Compare the encoders that the user declared for features with those of the model's. Raises EncoderMismatch."""
        for side in self._sides:
            declared = self._request.declared.get(side.modality)
            expected = self._request.identities.get(side.modality)
            if declared is not None and expected is not None and side not in self._encoded:
                check_identity(
                    side.encoder.name if side.encoder else side.modality, declared, expected
                )

    def _use(self, encoders: Iterable[LeasedEncoder | None]) -> None:
        first, second = encoders
        self._context = replace(self._context, encoders=(first, second))

    def _use_without_encoders(self) -> bool:
        """Use encoders that have not started, if the identity of each is known, and return whether it is.

        It is known from earlier datasets of the model, or from a lease for any other one. It is enough if all items
        were encoded before. The first unit that has another one fails as if its encoder had ended.
        """
        encoders: list[LeasedEncoder | None] = []
        for side in self._sides:
            if side.encoder is None or side not in self._encoded:
                encoders.append(None)
                continue
            known = self._request.identities.get(side.modality)
            known = known or self._cluster.identity_of(side.encoder)
            if known is None:
                return False
            encoders.append(LeasedEncoder(side.encoder, known, actors=()))
        self._use(encoders)
        return True

    def _lease(self) -> None:
        """Lease the encoders of raw rows, in place of those of an earlier lease, which may have ended.

        Each is compared with that of the model's features, or with the one of units that are done. Raises
        EncoderMismatch, EncoderUnusable.
        """
        self._leases.close()
        encoders: list[LeasedEncoder | None] = []
        for side, before in zip(self._sides, self._context.encoders, strict=True):
            if side.encoder is None or side not in self._encoded:
                encoders.append(None)
                continue
            lease = self._cluster.lease(side.encoder, len(self._tasks), self._progress.check)
            leased = self._leases.enter_context(lease)
            expected = self._request.identities.get(side.modality)
            if expected is None and before is not None:
                expected = before.identity
            if expected is not None:
                check_identity(side.encoder.name, leased.identity, expected)
            encoders.append(leased)
        self._use(encoders)

    def _prepare(self, tasks: Sequence[UnitTask]) -> None:
        """Prepare units; those that fail because of an outage are retried, with encoders that are leased again.

        A dataset with more unusable rows than permitted is read to its end, so that all of them are listed, and what
        was encoded is used again once they are corrected. Raises the error of the first unit that cannot be prepared,
        and PreparationFailed for too many rows to list.
        """
        waiting, pause = list(tasks), _FIRST_PAUSE
        while waiting:
            # Without encoders, the first unit shows whether all of its items were encoded before.
            have_started = self._context.encoders_have_started
            outage = self._try(waiting if self._records or have_started else waiting[:1])
            waiting = [task for task in waiting if task.index not in self._records]
            if outage:
                if have_started:
                    count = f"{len(waiting)} of {len(tasks)} units"
                    self._pause(pause, f"{count} are tried again: {outage}")
                pause = min(2 * pause, _LONGEST_PAUSE)
                self._lease()

    def _try(self, tasks: Sequence[UnitTask]) -> str:
        """Prepare units, and add their records. Returns why the others are to be tried again; empty if there are none.

        Raises as `_prepare`.
        """
        outage, failed = "", dict[int, Exception]()
        steps = self._cluster.map(prepare_unit, self._context, tasks, check=self._progress.check)
        for task, step in steps:
            match step:
                case int():
                    self._progress.unit_in_work(task.index, step)
                case UnitRecord():
                    self._add(task.index, step)
                case StorageUnavailable():
                    outage = str(step)
                case EncoderLost():
                    # The other units would fail one after another.
                    outage = str(step)
                    break
                case _:
                    failed[task.index] = step
            # The error of the first failed unit is raised once every unit before it is done: it is then the same in
            # every run.
            before = (one.index for one in tasks if one.index not in self._records)
            if failed and not any(index < min(failed) for index in before):
                raise failed[min(failed)]
        if failed:
            raise failed[min(failed)]
        return outage

    def _add(self, index: int, record: UnitRecord) -> None:
        if index in self._records:
            return  # A worker was lost after its last step, and its unit was done again.
        self._records[index] = record
        self._progress.unit_done(index, record)
        if self._progress.rows.bad > _MOST_LISTED:
            self._check_bad_rows(Prepared(rejected=self._rejected()), self._progress.rows)

    def _pause(self, seconds: float, note: str) -> None:
        logger.warning("dataset %s: %s", self._request.dataset, note)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._progress.check(note)
            time.sleep(0.1)

    def _leave_out_repeated(self) -> None:
        """Find ids that are in several files of features. (Those of raw rows are found by the plan.)

        If rows may be left out, these files are read again without the later rows. Raises InvalidDataset otherwise.
        """
        files = [self._context.source.files[task.file].uri for task in self._tasks]
        reasons: dict[int, dict[int, str]] = {}
        for each in self._cluster.run(
            find_repeated, self._context, self._tasks, check=self._progress.check
        ):
            reason = (
                f"row {each.row} repeats the id of row {each.first_row} of {files[each.first_index]}; "
                "ids are unique over all shards of a dataset"
            )
            if not self._context.leaves_out:
                raise InvalidDataset(f"{files[each.index]}: {reason}")
            reasons.setdefault(each.index, {})[each.row] = reason
            self._records.pop(each.index, None)
        self._progress.restart(self._records)
        self._prepare(
            [replace(self._tasks[index], left_out=rows) for index, rows in reasons.items()]
        )

    def _rejected(self) -> tuple[RejectedRow, ...]:
        """Return the rows that are left out, by file and position. Their reasons name files as the user does."""
        files = enumerate(self._context.source.files)
        places = {ref.uri: place for place, ref in reversed(list(files))}
        named = [
            row.model_copy(update={"reason": _with_names(row.reason, self._request)})
            for record in self._records.values()
            for row in record.rejected
        ]
        return tuple(sorted(named, key=lambda row: (places.get(row.file, len(places)), row.row)))

    def _check_bad_rows(self, prepared: Prepared, rows: RowCounts) -> None:
        """Raises PreparationFailed if more rows are left out than permitted."""
        request = self._request
        permitted = _MAX_BAD_SHARE if request.max_bad_share is None else request.max_bad_share
        total = max(rows.total, rows.done)
        if not rows.bad or rows.bad / total <= permitted:
            return
        message = (
            f"{rows.bad:,} of {total:,} rows cannot be used: {100 * rows.bad / total:.3g} %, permitted: "
            f"{100 * permitted:g} %."
        )
        usable, needed = total - rows.bad, None
        if usable and rows.bad <= _MOST_LISTED:
            # Rounded up to a whole percent.
            needed = -(-100 * rows.bad // total) / 100
            verb = "measured" if request.evaluate_only else "learned"
            message += f" {usable:,} usable rows would be {verb} with --max-bad-share {needed:g}."
        first = prepared.rejected[0]
        message += f" The first: {first.place}: {first.reason}"
        failed = replace(prepared, needed_share=needed)
        raise PreparationFailed("invalid_dataset", message, failed)

    def _checked(self) -> Prepared:
        """Return the results of all units, checked together. Raises PreparationFailed."""
        request, encoders = self._request, dict[str, EncoderIdentity]()
        for side, encoder in zip(self._sides, self._context.encoders, strict=True):
            identity = encoder.identity if encoder else request.declared.get(side.modality)
            if identity is not None:
                encoders[side.modality] = identity
        assert self._records.keys() == {task.index for task in self._tasks}
        records = [self._records[task.index] for task in self._tasks]
        shards = tuple(record.training for record in records if record.training is not None)
        named, held_out = list[Shard](), list[Shard]()
        for task, record in zip(self._tasks, records, strict=True):
            if record.evaluation is not None:
                is_named = task.file >= self._context.files_to_train
                (named if is_named else held_out).append(record.evaluation)
        prepared = Prepared(
            shards, (*named, *held_out), self._rejected(), encoders, warnings=self._warnings()
        )
        try:
            self._check_bad_rows(prepared, RowCounts.from_records(records))
            _check_rows(prepared.held_out if request.evaluate_only else shards, request)
            if request.evaluation_share is not None:
                _check_held_out(shards, held_out, request.evaluation_share)
        except (InvalidDataset, PreparationFailed) as error:
            raise as_failure(error, request, prepared) from error
        return prepared

    def _warnings(self) -> tuple[str, ...]:
        records = [self._records[task.index] for task in self._tasks]
        rows, warnings = sum(record.rows - len(record.rejected) for record in records), []
        for name in (side.modality for side in self._sides):
            found = [record.flat[name] for record in records if name in record.flat]
            if found:
                first = [repr(id_) for each in found for id_ in each.first][:FIRST_FLAT]
                flat = sum(each.rows for each in found)
                warnings.append(
                    f"{flat:,} of {rows:,} rows have a picture ({name}) of one flat colour after decoding, such as "
                    f"{', '.join(first)}. Transparency is put on white: white drawings cannot be seen"
                )
        return tuple(warnings)

    def _join_held_out(self, prepared: Prepared) -> Prepared:
        """Join the held-out rows of raw units to a few shards, which stay in the dataset's folder.

        Raises StorageUnavailable.
        """
        groups = list(enumerate(_groups(prepared.held_out)))
        joined: dict[int, Shard] = {}
        steps = self._cluster.map(
            join_evaluation, self._context, groups, check=self._progress.check
        )
        for (index, _), shard in steps:
            if isinstance(shard, Exception):
                raise shard
            joined[index] = shard
        assert joined.keys() == {index for index, _ in groups}, "a group was not joined"
        return replace(prepared, held_out=tuple(joined[index] for index in sorted(joined)))


def as_failure(
    error: Exception, request: PrepareRequest, prepared: Prepared | None = None
) -> PreparationFailed:
    """Convert an error of a user's files or of an encoder to a failure, which names files as the user does."""
    reason: PreparationError = "invalid_dataset"
    match error:
        case PreparationFailed():
            reason, prepared = error.reason, error.prepared
        case EncoderMismatch():
            reason = "encoder_mismatch"
        case EncoderUnusable():
            reason = "encoder_unavailable"
    return PreparationFailed(reason, _with_names(str(error), request), prepared)


def _with_names(message: str, request: PrepareRequest) -> str:
    for ref in (*request.shards, *request.evaluation_shards):
        if ref.name is not None:
            message = message.replace(ref.uri, ref.name)
    return message


def _check_rows(shards: Sequence[Shard], request: PrepareRequest) -> None:
    if request.evaluate_only:
        if not shards:
            raise InvalidDataset("no row of its files can be used, at least 1 is needed")
        return
    rows, needed = sum(shard.rows for shard in shards), request.spec.fewest_rows
    if rows < needed:
        left = "" if request.evaluation_share is None else " left to train on"
        batch = "" if request.spec.solves else "; one batch takes as many (training.batch_size)"
        raise InvalidDataset(
            f"the training shards have {rows} rows together{left}, and at least {needed} are needed{batch}"
        )


def _check_held_out(training: Sequence[Shard], held_out: Sequence[Shard], share: float) -> None:
    """Rows with equal first items stay together, so with few distinct ones the share can be far off."""
    kept, rest = (sum(shard.rows for shard in shards) for shards in (held_out, training))
    if not kept or kept > (1 + share) / 2 * (kept + rest):
        raise InvalidDataset(
            f"{100 * share:g} % of the rows are to be held out, and {kept} of {kept + rest} would be: rows are "
            "chosen by their first item, which has too few distinct values for this share; choose another "
            "share or provide held-out files"
        )


def _groups(shards: Sequence[Shard]) -> Iterator[tuple[Shard, ...]]:
    group: list[Shard] = []
    for shard in shards:
        if group and sum(one.rows for one in group) + shard.rows > _ROWS_IN_EVALUATION_SHARD:
            yield tuple(group)
            group = []
        group.append(shard)
    if group:
        yield tuple(group)


def _write_manifest(store: ObjectStore, request: PrepareRequest, prepared: Prepared) -> None:
    """Write the list of rows that were left out, then the manifest. If two drivers write it, the first one counts."""
    manifest = DatasetManifest(
        dataset=request.dataset,
        model=request.model,
        name=request.name,
        pair=request.pair,
        shards=prepared.shards,
        evaluation_shards=prepared.held_out,
        evaluate_only=request.evaluate_only,
        encoders=prepared.encoders,
        rejected=write_rejected(store, request.dataset, prepared.rejected),
        warnings=prepared.warnings,
    )
    try:
        key = layout.dataset_manifest(request.dataset)
        store.create(key, document(manifest, key))
    except ObjectExists:
        logger.info("dataset %s: another process wrote its manifest", request.dataset)


def write_rejected(
    store: ObjectStore, dataset: str, rejected: Sequence[RejectedRow]
) -> RejectedRows | None:
    """Write the list of rows that are left out, in place of that of an earlier request."""
    if not rejected:
        store.delete(layout.rejected_rows(dataset))
        return None
    data = b"".join(row.model_dump_json().encode() + b"\n" for row in rejected)
    store.put(layout.rejected_rows(dataset), data)
    first = tuple(rejected[:FIRST_ROWS])
    return RejectedRows(rows=len(rejected), file=entry_for(data), first=first)


def _write_report(
    store: ObjectStore, request: PrepareRequest, prepared: Prepared, report: DatasetReport
) -> None:
    """Write the report of a dry run and the list of rows that would be left out, and delete the prepared shards."""
    write_rejected(store, request.dataset, prepared.rejected)
    named = report.model_copy(
        update={"advice": tuple(_with_names(each, request) for each in report.advice)}
    )
    written = PrepareReport(request=request.request, report=named)
    write_document(store, layout.preparation_file(request.dataset, "report"), written)
    kept = (layout.preparation_files(request.dataset), layout.rejected_rows(request.dataset))
    for key in list(store.keys(layout.dataset_prefix(request.dataset))):
        if not key.startswith(kept):
            store.delete(key)


def forget_units(store: ObjectStore, dataset: str) -> None:
    """Delete the records of the units of a dataset, and the shards that were joined."""
    for key in list(store.keys(layout.preparation_units(dataset))):
        store.delete(key)
