"""The main path of preparation: from a request to the manifest of the dataset. Read it top to bottom.

Functions that read users' files run on worker processes (`tasks.py`). This module runs in the driver, in one thread
for each dataset. If the driver is killed, the next one starts from the beginning and finds the units that are done.
"""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Self

from cmcl.contract.errors import InvalidDataset, InvalidUri, StorageUnavailable
from cmcl.contract.prepare import PrepareRequest
from cmcl.storage.datasets import read_dataset_manifest
from cmcl.storage.object_store import ObjectStore
from workers.encoders.identity import check_identity
from workers.encoders.port import EncoderMismatch, EncoderUnusable
from workers.prepare.cluster import Cluster
from workers.prepare.encoding import EncoderLost, LeasedEncoder
from workers.prepare.finish import (
    PreparationFailed,
    as_failure,
    check_bad_rows_so_far,
    checked,
    forget_units,
    join_held_out,
    write_manifest,
    write_report,
)
from workers.prepare.progress import DatasetProgress
from workers.prepare.tasks import (
    Repeated,
    dataset_report,
    find_repeated,
    plan_dataset,
    prepare_unit,
)
from workers.prepare.units import (
    DatasetContext,
    DatasetPlan,
    DatasetSource,
    Prepared,
    SideSpec,
    UnitRecord,
    UnitTask,
    sides_of,
)

_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 10.0
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
        prepared = _prepared(job)
    except _FINAL_ERRORS as error:
        failure = as_failure(error, request)
        if request.report_version is None or failure.reason == "encoder_unavailable":
            raise failure from error
        prepared = replace(failure.prepared, refusals=(str(failure),))
    if request.report_version is None:
        job.progress.write_stages(store)
        write_manifest(store, request, prepared)
    else:
        job.progress.enter("reporting")
        report = job.cluster.run(
            dataset_report, store.uri, request, prepared, check=job.progress.check
        )
        job.progress.write_stages(store)
        write_report(store, request, prepared, report)
    forget_units(store, request.dataset)


def _prepared(job: Preparation) -> Prepared:
    progress = job.progress
    progress.enter("planning")
    context = _context(job)
    plan = job.cluster.run(plan_dataset, context, check=progress.check)
    _check_declared(job.request, plan, context)
    with _Units(job, context, plan) as units:
        if not units.use_without_encoders():
            units.lease()
        progress.enter("encoding" if plan.units else "reading", plan.rows, len(units.tasks))
        units.prepare(units.tasks)
        if len(units.tasks) > 1 and not plan.units:
            units.leave_out_repeated()
    progress.enter("finishing")
    prepared = checked(job.request, units.context, units.tasks, units.records)
    if plan.units and job.request.report_version is None:
        prepared = join_held_out(context, prepared, job.cluster, progress)
    return prepared


def _context(job: Preparation) -> DatasetContext:
    request = job.request
    source = DatasetSource(
        files=(*request.shards, *request.evaluation_shards),
        sides=sides_of(request.pair, request.spec, request.encoders),
        allowed_prefixes=request.allowed_prefixes,
        locations=request.locations,
    )
    return DatasetContext(
        store=job.store.uri,
        dataset=request.dataset,
        request=request.request,
        owner=request.owner,
        source=source,
        files_to_train=0 if request.evaluate_only else len(request.shards),
        share=request.evaluation_share,
        leaves_out=request.max_bad_share is not None,
        file_memory=job.cluster.file_memory,
    )


def _check_declared(request: PrepareRequest, plan: DatasetPlan, context: DatasetContext) -> None:
    """Compare the encoders that the user declared for features with those of the model's. Raises EncoderMismatch."""
    for side in context.source.sides:
        declared, expected = (
            known.get(side.modality) for known in (request.declared, request.identities)
        )
        is_encoded = plan.units and side.encoder is not None
        if declared is not None and expected is not None and not is_encoded:
            name = side.encoder.name if side.encoder else side.modality
            check_identity(name, declared, expected)


class _Units:
    """The units of a dataset in work, and the encoders that are leased for them: a context manager.

    `tasks`: all units. `records`: of those that are done, by index.
    """

    def __init__(self, job: Preparation, context: DatasetContext, plan: DatasetPlan) -> None:
        self._job, self._plan, self.context = job, plan, context
        self._leases = ExitStack()
        self.records: dict[int, UnitRecord] = {}
        self.tasks = [
            *(UnitTask(index, unit.file, unit) for index, unit in enumerate(plan.units)),
            *(UnitTask(index, file) for index, file in enumerate(plan.feature_files)),
        ]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._leases.close()

    def use_without_encoders(self) -> bool:
        """Use encoders that have not started, if the identity of each is known, and return whether it is.

        It is known from earlier datasets of the model, or from a lease for any other one. It is enough if all items
        were encoded before. The first unit that has another one fails as if its encoder had ended.
        """
        encoders: list[LeasedEncoder | None] = []
        for side in self.context.source.sides:
            if side.encoder is None or not self._plan.units:
                encoders.append(None)
                continue
            known = self._job.request.identities.get(side.modality)
            known = known or self._job.cluster.identity_of(side.encoder)
            if known is None:
                return False
            encoders.append(LeasedEncoder(side.encoder, known, actors=()))
        self.context = replace(self.context, encoders=(encoders[0], encoders[1]))
        return True

    def lease(self) -> None:
        """Lease the encoders of raw rows, in place of those of an earlier lease, which may have ended.

        Raises EncoderMismatch, EncoderUnusable.
        """
        self._leases.close()
        first, second = map(self._leased, self.context.source.sides, self.context.encoders)
        self.context = replace(self.context, encoders=(first, second))

    def _leased(self, side: SideSpec, before: LeasedEncoder | None) -> LeasedEncoder | None:
        """Lease an encoder, and compare it with that of the model's features, or with the one of units that are done."""
        job = self._job
        if not self._plan.units or side.encoder is None:
            return None
        lease = job.cluster.lease(side.encoder, len(self._plan.units), job.progress.check)
        leased = self._leases.enter_context(lease)
        expected = job.request.identities.get(side.modality)
        if expected is None and before is not None:
            expected = before.identity
        if expected is not None:
            check_identity(side.encoder.name, leased.identity, expected)
        return leased

    def prepare(self, tasks: Sequence[UnitTask]) -> None:
        """Prepare units; those that fail because of an outage are retried, with encoders that are leased again.

        A dataset with more unusable rows than permitted is read to its end, so that all of them are listed, and what
        was encoded is used again once they are corrected. Raises the error of the first unit that cannot be prepared,
        and PreparationFailed for too many rows to list.
        """
        waiting, pause = list(tasks), _FIRST_PAUSE
        while waiting:
            # Without encoders, the first unit shows whether all of its items were encoded before.
            some = waiting if self.records or self.context.encoders_have_started else waiting[:1]
            outage = self._try(some)
            waiting = [task for task in waiting if task.index not in self.records]
            if outage:
                if self.context.encoders_have_started:
                    count = f"{len(waiting)} of {len(tasks)} units"
                    self._pause(pause, f"{count} are tried again: {outage}")
                pause = min(2 * pause, _LONGEST_PAUSE)
                self.lease()

    def _try(self, tasks: Sequence[UnitTask]) -> str:
        """Prepare units, and add their records. Returns why the others are to be tried again; empty if there are none.

        Raises as `prepare`.
        """
        job, outage = self._job, ""
        failed: dict[int, Exception] = {}
        steps = job.cluster.map(prepare_unit, self.context, tasks, check=job.progress.check)
        for task, step in steps:
            match step:
                case int():
                    job.progress.unit_in_work(task.index, step)
                case UnitRecord():
                    self.records[task.index] = step
                    job.progress.unit_done(task.index, step)
                    records, rows = self.records.values(), job.progress.rows
                    check_bad_rows_so_far(job.request, self.context, records, rows)
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
            before = (one.index for one in tasks if one.index not in self.records)
            if failed and not any(index < min(failed) for index in before):
                raise failed[min(failed)]
        if failed:
            raise failed[min(failed)]
        return outage

    def _pause(self, seconds: float, note: str) -> None:
        print(f"dataset {self._job.request.dataset}: {note}", flush=True)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._job.progress.check(note)
            time.sleep(0.1)

    def leave_out_repeated(self) -> None:
        """Find ids that are in several files of features. (Those of raw rows are found by the plan.)

        If rows may be left out, these files are read again without the later rows. Raises InvalidDataset otherwise.
        """
        job = self._job
        found = job.cluster.run(find_repeated, self.context, self.tasks, check=job.progress.check)
        if found and not self.context.leaves_out:
            raise InvalidDataset(f"{self._uri(found[0].index)}: {self._reason(found[0])}")
        reasons: dict[int, dict[int, str]] = {}
        for each in found:
            reasons.setdefault(each.index, {})[each.row] = self._reason(each)
            self.records.pop(each.index, None)
        job.progress.restart(self.records)
        self.prepare([replace(self.tasks[index], left_out=rows) for index, rows in reasons.items()])

    def _uri(self, index: int) -> str:
        return self.context.source.files[self.tasks[index].file].uri

    def _reason(self, each: Repeated) -> str:
        return (
            f"row {each.row} repeats the id of row {each.first_row} of {self._uri(each.first_index)}; "
            "ids are unique over all shards of a dataset"
        )
