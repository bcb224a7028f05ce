"""The main path of preparation: from a request to the manifest of the dataset. Read it top to bottom.

Functions that read users' files run on worker processes (`tasks.py`). This module runs in the driver, in one thread
for each dataset. If the driver is killed, the next one starts from the beginning and finds the units that are done.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial

from cmcl.contract.errors import InvalidDataset
from cmcl.contract.prepare import PrepareRequest
from cmcl.storage.datasets import read_dataset_manifest
from cmcl.storage.object_store import ObjectStore
from workers.encoders.identity import check_identity
from workers.encoders.port import EncoderMismatch, EncoderUnusable
from workers.prepare.cluster import Cluster
from workers.prepare.encoder_pool import LeasedEncoder
from workers.prepare.finish import (
    PreparationFailed,
    as_failure,
    check_bad_rows_so_far,
    checked,
    forget_units,
    join_held_out,
    refused,
    write_manifest,
    write_report,
)
from workers.prepare.progress import Progress
from workers.prepare.raw_rows import Plan, RawSource, SideSpec, sides_of
from workers.prepare.tasks import (
    Outcome,
    Prepared,
    Repeated,
    RowsDone,
    carry_out,
    dataset_report,
    find_repeated,
    plan_dataset,
)
from workers.prepare.units import DatasetContext, UnitRecord, UnitTask

_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 10.0

Records = dict[int, UnitRecord]
Lease = Callable[[DatasetContext], DatasetContext]


@dataclass(frozen=True)
class Preparation:
    """One request in work."""

    store: ObjectStore
    request: PrepareRequest
    cluster: Cluster
    progress: Progress


def prepare_dataset(job: Preparation) -> None:
    """Write the dataset's manifest, or the report of a dry run.

    Raises PreparationFailed; StorageUnavailable, after which a retry can succeed; Cancelled.
    """
    store, request = job.store, job.request
    if read_dataset_manifest(store, request.dataset) is not None:
        return
    try:
        prepared = _prepared(job)
    except (InvalidDataset, EncoderMismatch, EncoderUnusable, PreparationFailed) as error:
        failure = as_failure(error, request)
        if request.report_version is None or failure.reason == "encoder_unavailable":
            raise failure from error
        prepared = refused(failure)
    if request.report_version is None:
        job.progress.write_stages(store)
        write_manifest(store, request, prepared)
    else:
        job.progress.enter("reporting")
        report = job.cluster.run(
            dataset_report, store.uri, request, prepared, check=job.progress.check
        )
        job.progress.write_stages(store)
        write_report(store, request, prepared, report.result())
    forget_units(store, request.dataset)


def _prepared(job: Preparation) -> Prepared:
    context, progress = _context(job), job.progress
    progress.enter("planning")
    plan = job.cluster.run(plan_dataset, context, check=progress.check).result()
    _check_declared(job.request, plan, context)
    tasks = _tasks(plan)
    with ExitStack() as leases:
        lease = partial(_leased, job, plan, leases)
        context = _not_started(job, plan, context) or lease(context)
        progress.enter("encoding" if plan.units else "reading", plan.rows, len(tasks))
        records = _carry_out(job, context, tasks, lease)
        if len(tasks) > 1 and not plan.units:
            records = _without_repeated(job, context, tasks, records, lease)
    progress.enter("finishing")
    prepared = checked(job.request, context, tasks, records)
    if plan.units and job.request.report_version is None:
        prepared = join_held_out(context, prepared, job.cluster, progress)
    return prepared


def _context(job: Preparation) -> DatasetContext:
    request = job.request
    source = RawSource(
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


def _tasks(plan: Plan) -> list[UnitTask]:
    if plan.units:
        return [UnitTask(index, unit.file, unit) for index, unit in enumerate(plan.units)]
    return [UnitTask(index, file) for index, file in enumerate(plan.feature_files)]


def _leased(
    job: Preparation, plan: Plan, leases: ExitStack, context: DatasetContext
) -> DatasetContext:
    """Return the context with leased encoders. Those that it has already are given back: they may have ended."""
    leases.close()
    return replace(context, encoders=_encoders(job, context, plan, leases))


def _not_started(job: Preparation, plan: Plan, context: DatasetContext) -> DatasetContext | None:
    """Return the context with encoders that have not started; None if the identity of one is not known.

    It is known from earlier datasets of the model, or from a lease for any other one. It is enough if all items were
    encoded before. The first unit that has another one fails as if its encoder had ended.
    """
    sides = [_not_started_side(job, side) for side in context.source.sides]
    if not plan.units or any(
        found is None and side.encoder is not None
        for found, side in zip(sides, context.source.sides, strict=True)
    ):
        return None
    return replace(context, encoders=(sides[0], sides[1]))


def _not_started_side(job: Preparation, side: SideSpec) -> LeasedEncoder | None:
    if side.encoder is None:
        return None
    known = job.request.identities.get(side.modality) or job.cluster.identity_of(side.encoder)
    return None if known is None else LeasedEncoder(side.encoder, known, actors=())


def _encoders(
    job: Preparation, context: DatasetContext, plan: Plan, leases: ExitStack
) -> tuple[LeasedEncoder | None, LeasedEncoder | None]:
    """Lease the encoders of raw rows, and compare them with those of the model's features.

    One that is leased again is also compared with the earlier one, whose features other units have.

    Raises EncoderMismatch, EncoderUnusable.
    """
    encoders: list[LeasedEncoder | None] = []
    for side, before in zip(context.source.sides, context.encoders, strict=True):
        if not plan.units or side.encoder is None:
            encoders.append(None)
            continue
        lease = job.cluster.lease(side.encoder, len(plan.units), job.progress.check)
        leased = leases.enter_context(lease)
        expected = job.request.identities.get(side.modality)
        if expected is None and before is not None:
            expected = before.identity
        if expected is not None:
            check_identity(side.encoder.name, leased.identity, expected)
        encoders.append(leased)
    return encoders[0], encoders[1]


def _check_declared(request: PrepareRequest, plan: Plan, context: DatasetContext) -> None:
    """Compare the encoders that the user declared for features with those of the model's. Raises EncoderMismatch."""
    for side in context.source.sides:
        declared, expected = (
            known.get(side.modality) for known in (request.declared, request.identities)
        )
        is_encoded = plan.units and side.encoder is not None
        if declared is not None and expected is not None and not is_encoded:
            name = side.encoder.name if side.encoder else side.modality
            check_identity(name, declared, expected)


def _carry_out(
    job: Preparation, context: DatasetContext, tasks: Sequence[UnitTask], lease: Lease
) -> Records:
    """Prepare all units; those that fail because of an outage are retried, with encoders that are leased again.

    A dataset with more unusable rows than permitted is read to its end, so that all of them are listed, and what was
    encoded is used again once they are corrected. Raises the error of the first unit that cannot be prepared, and
    PreparationFailed for too many rows to list.
    """
    records: Records = {}
    waiting, pause = list(tasks), _FIRST_PAUSE
    while waiting:
        # Without encoders, the first unit shows whether all of its items were encoded before.
        some = waiting if records or context.encoders_have_started else waiting[:1]
        message = _try(job, context, some, records)
        waiting = [task for task in waiting if task.index not in records]
        if message:
            if context.encoders_have_started:
                _pause(
                    job, pause, f"{len(waiting)} of {len(tasks)} units are tried again: {message}"
                )
            pause = min(2 * pause, _LONGEST_PAUSE)
            context = lease(context)
    return records


def _try(
    job: Preparation, context: DatasetContext, tasks: Sequence[UnitTask], records: Records
) -> str:
    """Prepare units, and add their records. Returns why the others are to be tried again; empty if there are none.

    Raises as `_carry_out`.
    """
    failed: dict[int, Outcome[UnitRecord]] = {}
    message = ""
    for step in job.cluster.map(carry_out, context, tasks, check=job.progress.check):
        if isinstance(step, RowsDone):
            job.progress.unit_in_work(step.index, step.rows)
        elif step.value is not None:
            records[step.index] = step.value
            job.progress.unit_done(step.index, step.value)
            check_bad_rows_so_far(job.request, context, records.values(), job.progress.rows)
        elif step.error == "unavailable":
            message = step.message
        elif step.error == "lost":
            # The other units would fail one after another.
            message = step.message
            break
        else:
            failed[step.index] = step
        _raise_first(failed, [task for task in tasks if task.index not in records])
    _raise_first(failed, [])
    return message


def _raise_first(failed: dict[int, Outcome[UnitRecord]], waiting: Sequence[UnitTask]) -> None:
    """Raise the error of the first failed unit, once every unit before it is done.

    The message is then the same in every run.
    """
    if failed and not any(task.index < min(failed) for task in waiting):
        failed[min(failed)].result()


def _pause(job: Preparation, seconds: float, note: str) -> None:
    print(f"dataset {job.request.dataset}: {note}", flush=True)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        job.progress.check(note)
        time.sleep(0.1)


def _without_repeated(
    job: Preparation,
    context: DatasetContext,
    tasks: list[UnitTask],
    records: Records,
    lease: Lease,
) -> Records:
    """Find ids that are in several files of features. (Those of raw rows are found by the plan.)

    If rows may be left out, these files are read again without the later rows. Raises InvalidDataset otherwise.
    """
    call = job.cluster.run(find_repeated, context, tasks, check=job.progress.check)
    found = call.result()
    if found and not context.leaves_out:
        uri = context.source.files[tasks[found[0].index].file].uri
        raise InvalidDataset(f"{uri}: {_reason(found[0], context, tasks)}")
    by_task: dict[int, dict[int, str]] = {}
    for each in found:
        by_task.setdefault(each.index, {})[each.row] = _reason(each, context, tasks)
    again = [replace(tasks[index], left_out=reasons) for index, reasons in by_task.items()]
    kept = {index: record for index, record in records.items() if index not in by_task}
    job.progress.restart(kept)
    return kept | _carry_out(job, context, again, lease)


def _reason(each: Repeated, context: DatasetContext, tasks: Sequence[UnitTask]) -> str:
    uri = context.source.files[tasks[each.first_index].file].uri
    return (
        f"row {each.row} repeats the id of row {each.first_row} of {uri}; "
        "ids are unique over all shards of a dataset"
    )
