"""The last steps of a dataset: check the results of its units together, and write the manifest or the report."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace

from cmcl.contract.dataset import DatasetManifest, RejectedRow, RejectedRows, Shard
from cmcl.contract.encoder import EncoderIdentity
from cmcl.contract.errors import InvalidDataset, ObjectExists
from cmcl.contract.prepare import DatasetReport, PreparationError, PrepareReport, PrepareRequest
from cmcl.storage import layout
from cmcl.storage.object_store import ObjectStore
from cmcl.storage.versions import entry_for
from workers.encoders.port import EncoderMismatch, EncoderUnusable
from workers.prepare.cluster import Cluster
from workers.prepare.progress import DatasetProgress, RowCounts
from workers.prepare.tasks import join_evaluation
from workers.prepare.units import FIRST_FLAT, DatasetContext, Prepared, UnitRecord, UnitTask

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


def as_failure(
    error: Exception, request: PrepareRequest, prepared: Prepared | None = None
) -> PreparationFailed:
    """Convert an error of a user's files or of an encoder to a failure, which names files as the user does."""
    reason: PreparationError = "invalid_dataset"
    match error:
        case PreparationFailed():
            reason, prepared = error.reason, prepared or error.prepared
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


def check_bad_rows_so_far(
    request: PrepareRequest,
    context: DatasetContext,
    records: Collection[UnitRecord],
    rows: RowCounts,
) -> None:
    """Raises PreparationFailed if more rows are left out than permitted, and more than are listed."""
    if rows.bad > _MOST_LISTED:
        check_bad_rows(request, context, records, rows)


def check_bad_rows(
    request: PrepareRequest,
    context: DatasetContext,
    records: Collection[UnitRecord],
    rows: RowCounts,
) -> None:
    """Raises PreparationFailed if more rows are left out than permitted."""
    permitted = _MAX_BAD_SHARE if request.max_bad_share is None else request.max_bad_share
    total = max(rows.total, rows.done)
    if not rows.bad or rows.bad / total <= permitted:
        return
    rejected = _in_order([row for record in records for row in record.rejected], request, context)
    message = (
        f"{rows.bad:,} of {total:,} rows cannot be used: {100 * rows.bad / total:.3g} %, permitted: "
        f"{100 * permitted:g} %."
    )
    usable = total - rows.bad
    if usable and rows.bad <= _MOST_LISTED:
        # Rounded up to a whole percent.
        needed = -(-100 * rows.bad // total) / 100
        verb = "measured" if request.evaluate_only else "learned"
        message += f" {usable:,} usable rows would be {verb} with --max-bad-share {needed:g}."
    message += f" The first: {rejected[0].place}: {rejected[0].reason}"
    raise PreparationFailed("invalid_dataset", message, Prepared(rejected=rejected))


def _in_order(
    rejected: Sequence[RejectedRow], request: PrepareRequest, context: DatasetContext
) -> tuple[RejectedRow, ...]:
    """Sort rows by file and position. Their reasons name files as the user does."""
    places = {ref.uri: place for place, ref in reversed(list(enumerate(context.source.files)))}
    named = [
        row.model_copy(update={"reason": _with_names(row.reason, request)}) for row in rejected
    ]
    return tuple(sorted(named, key=lambda row: (places.get(row.file, len(places)), row.row)))


def checked(
    request: PrepareRequest,
    context: DatasetContext,
    tasks: Sequence[UnitTask],
    records: dict[int, UnitRecord],
) -> Prepared:
    """Return the results of all units, checked together. Raises InvalidDataset, PreparationFailed."""
    ordered = [records[task.index] for task in tasks]
    shards = tuple(record.training for record in ordered if record.training is not None)
    named, held_out = (
        tuple(
            record.evaluation
            for task, record in zip(tasks, ordered, strict=True)
            if record.evaluation is not None
            and (task.file >= context.files_to_train) == of_named_files
        )
        for of_named_files in (True, False)
    )
    rejected = _in_order([row for record in ordered for row in record.rejected], request, context)
    encoders = _identities(request, context)
    warnings = tuple(_warnings(ordered, context))
    prepared = Prepared(shards, (*named, *held_out), rejected, encoders, warnings=warnings)
    try:
        check_bad_rows(request, context, ordered, RowCounts.from_records(ordered))
        if request.evaluate_only:
            _check_any_held_out((*named, *held_out))
        else:
            _check_rows(shards, request)
        if request.evaluation_share is not None:
            _check_held_out(shards, held_out, request.evaluation_share)
    except (InvalidDataset, PreparationFailed) as error:
        raise as_failure(error, request, prepared) from error
    return prepared


def _warnings(records: Sequence[UnitRecord], context: DatasetContext) -> Iterator[str]:
    rows = sum(record.rows - len(record.rejected) for record in records)
    for side in context.source.sides:
        found = [record.flat[side.modality] for record in records if side.modality in record.flat]
        if found:
            first = [repr(id_) for each in found for id_ in each.first][:FIRST_FLAT]
            flat = sum(each.rows for each in found)
            yield (
                f"{flat:,} of {rows:,} rows have a picture ({side.modality}) of one flat colour after decoding, such as "
                f"{', '.join(first)}. Transparency is put on white: white drawings cannot be seen"
            )


def _check_rows(shards: Sequence[Shard], request: PrepareRequest) -> None:
    rows, needed = sum(shard.rows for shard in shards), request.spec.fewest_rows
    if rows < needed:
        left = "" if request.evaluation_share is None else " left to train on"
        batch = "" if request.spec.solves else "; one batch takes as many (training.batch_size)"
        raise InvalidDataset(
            f"the training shards have {rows} rows together{left}, and at least {needed} are needed{batch}"
        )


def _check_any_held_out(held_out: Sequence[Shard]) -> None:
    if not held_out:
        raise InvalidDataset("no row of its files can be used, at least 1 is needed")


def _check_held_out(training: Sequence[Shard], held_out: Sequence[Shard], share: float) -> None:
    """Rows with equal first items stay together, so with few distinct ones the share can be far off."""
    kept, rest = (sum(shard.rows for shard in shards) for shards in (held_out, training))
    if not kept or kept > (1 + share) / 2 * (kept + rest):
        raise InvalidDataset(
            f"{100 * share:g} % of the rows are to be held out, and {kept} of {kept + rest} would be: rows are "
            "chosen by their first item, which has too few distinct values for this share; choose another "
            "share or provide held-out files"
        )


def _identities(request: PrepareRequest, context: DatasetContext) -> dict[str, EncoderIdentity]:
    """Return, by modality, the encoder that computed the features or that the user declared for them."""
    known = {}
    for side, encoder in zip(context.source.sides, context.encoders, strict=True):
        identity = encoder.identity if encoder else request.declared.get(side.modality)
        if identity is not None:
            known[side.modality] = identity
    return known


def join_held_out(
    context: DatasetContext, prepared: Prepared, cluster: Cluster, progress: DatasetProgress
) -> Prepared:
    """Join the held-out rows of raw units to a few shards, which stay in the dataset's folder.

    Raises StorageUnavailable.
    """
    groups = list(enumerate(_groups(prepared.held_out)))
    joined: dict[int, Shard] = {}
    for (index, _), shard in cluster.map(join_evaluation, context, groups, check=progress.check):
        if isinstance(shard, Exception):
            raise shard
        joined[index] = shard
    return replace(prepared, held_out=tuple(joined[index] for index in sorted(joined)))


def _groups(shards: Sequence[Shard]) -> Iterator[tuple[Shard, ...]]:
    group: list[Shard] = []
    for shard in shards:
        if group and sum(one.rows for one in group) + shard.rows > _ROWS_IN_EVALUATION_SHARD:
            yield tuple(group)
            group = []
        group.append(shard)
    if group:
        yield tuple(group)


def write_manifest(store: ObjectStore, request: PrepareRequest, prepared: Prepared) -> None:
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
        store.create(key, manifest.model_dump_json().encode())
    except ObjectExists:
        print(f"dataset {request.dataset}: another process wrote its manifest", flush=True)


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


def write_report(
    store: ObjectStore, request: PrepareRequest, prepared: Prepared, report: DatasetReport
) -> None:
    """Write the report of a dry run and the list of rows that would be left out, and delete the prepared shards."""
    write_rejected(store, request.dataset, prepared.rejected)
    data = PrepareReport(request=request.request, report=report).model_dump_json().encode()
    store.put(layout.preparation_file(request.dataset, "report"), data)
    kept = (layout.preparation_files(request.dataset), layout.rejected_rows(request.dataset))
    for key in list(store.keys(layout.dataset_prefix(request.dataset))):
        if not key.startswith(kept):
            store.delete(key)


def forget_units(store: ObjectStore, dataset: str) -> None:
    """Delete the records of the units of a dataset, and the shards that were joined."""
    for key in list(store.keys(layout.preparation_units(dataset))):
        store.delete(key)
