"""Recall on held-out rows: of datasets that a version has learned, and of datasets that are measured only."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial

from pydantic import BaseModel, ValidationError

from cmcl.contract.dataset import EvaluationDataset, Shard
from cmcl.contract.encoder import EncoderIdentity
from cmcl.contract.errors import InvalidDataset, ObjectNotFound, StorageUnavailable
from cmcl.contract.job import JobSpec
from cmcl.contract.modality import Modality, ModalityPair
from cmcl.contract.version import EvaluationResult, LearnedDataset, MeasuredDataset, Recall
from cmcl.storage import layout
from cmcl.storage.object_store import ObjectStore, retry_unavailable
from workers.files.scratch import Scratch, check_room
from workers.model.evaluation import HeldOut, measure
from workers.model.heads import ModalityHeads
from workers.nullspace.centred import components
from workers.train.data.dataset import held_out_rows
from workers.train.versions import Parent, read_version_heads

# What a missing or damaged object of one dataset raises. Others are measured nevertheless.
_UNREADABLE = (InvalidDataset, ObjectNotFound, ValidationError)


@dataclass(frozen=True)
class Evaluation:
    """Recall on held-out rows.

    `before`: of the parent on the new dataset, None if it has no held-out rows. `now`: by dataset.
    `missing`: the error, by past dataset whose held-out rows cannot be read.
    """

    before: Recall | None
    now: dict[str, Recall]
    missing: dict[str, str]


def evaluate(
    store: ObjectStore, job: JobSpec, parent: Parent, now: ModalityHeads, scratch: Scratch
) -> Evaluation:
    """Recall on the held-out rows of every dataset so far that has some, the new one included.

    For a new modality the parent's head is the initial one, with today's conditioning: that is not
    part of what is trained. Raises InvalidDataset for rows of the new dataset only.
    """
    results, missing = recalls(store, parent.learned, now, scratch)
    new = job.learns
    rows = held_out_rows(new.evaluation_shards, scratch)
    if rows is None:
        return Evaluation(None, results, missing)
    before = parent.model_state.heads.conditioned(now.conditioning)
    results[new.dataset] = measure(now, new.pair, rows)
    return Evaluation(measure(before, new.pair, rows), results, missing)


def recalls(
    store: ObjectStore, learned: Iterable[LearnedDataset], now: ModalityHeads, scratch: Scratch
) -> tuple[dict[str, Recall], dict[str, str]]:
    """By dataset that was learned: recall on its held-out rows, or the error that kept them from being read."""
    results, missing = {}, {}
    for line in learned:
        try:
            rows = _held_out(store, line, scratch)
        except _UNREADABLE as error:
            missing[line.dataset] = str(error)
            continue
        if rows is not None:
            results[line.dataset] = measure(now, line.pair, rows)
    return results, missing


def _held_out(store: ObjectStore, learned: LearnedDataset, scratch: Scratch) -> HeldOut | None:
    """Held-out rows of a past dataset; None if they were deleted on purpose."""
    return held_out_rows(_stored(store, learned.dataset).evaluation_shards, scratch)


class _HeldOutPart(BaseModel):
    """The part of a dataset's manifest that an evaluation reads; the rest may refer to deleted files."""

    evaluation_shards: tuple[Shard, ...] = ()
    encoders: dict[Modality, EncoderIdentity] = {}


def _stored(store: ObjectStore, dataset: str) -> _HeldOutPart:
    text = retry_unavailable(partial(store.read, layout.dataset_manifest(dataset)))
    return _HeldOutPart.model_validate_json(text)


@dataclass(frozen=True)
class MeasuredVersion:
    """What a version consists of when datasets are measured with it that it has not learned.

    `learned`: pairs of its datasets. `encoders`: by modality, those of its features, as far as known.
    """

    number: int
    heads: ModalityHeads
    learned: tuple[ModalityPair, ...]
    encoders: Mapping[str, EncoderIdentity] = field(default_factory=dict)

    def unknown(self, pair: ModalityPair) -> list[str]:
        """Modalities of the pair that the version has not learned."""
        known = {name for each in self.learned for name in each.modalities}
        return [name for name in pair.modalities if name not in known]

    def are_connected(self, pair: ModalityPair) -> bool:
        """Whether learned pairs lead from one modality to the other; otherwise scores mean nothing."""
        groups = components(each.modalities for each in self.learned)
        return any({*pair.modalities} <= {*group} for group in groups)


def evaluate_version(store: ObjectStore, job: JobSpec, scratch: Scratch) -> None:
    """Carry out a job of the kind `evaluate`: measure its dataset with one version, and write the result.

    Raises StoreDamaged; StorageUnavailable after retries.
    """
    manifest, heads = read_version_heads(store, job.model, job.version)
    pairs = tuple(line.pair for line in manifest.learned)
    version = MeasuredVersion(job.version, heads, pairs, manifest.encoders)
    own = job.learns
    dataset = EvaluationDataset(dataset=own.dataset, name=own.name, pair=own.pair)
    (found,) = measure_only(store, [dataset], version, scratch)
    result = EvaluationResult(version=job.version, recall=found.recall, note=found.note)
    key = layout.run_evaluation(job.job, job.attempt)
    retry_unavailable(partial(store.put, key, result.model_dump_json().encode()))


def measure_only(
    store: ObjectStore,
    listed: Iterable[EvaluationDataset],
    version: MeasuredVersion,
    scratch: Scratch,
) -> tuple[MeasuredDataset, ...]:
    """Measure datasets that the model does not learn. Raises StorageUnavailable after retries.

    A dataset that cannot be measured has a note, and keeps no other from being measured: it may have been
    deleted since the job was queued.
    """
    return tuple(_measured(store, each, version, scratch) for each in listed)


def _measured(
    store: ObjectStore, dataset: EvaluationDataset, version: MeasuredVersion, scratch: Scratch
) -> MeasuredDataset:
    pair = dataset.pair
    found = MeasuredDataset(dataset=dataset.dataset, name=dataset.name, pair=pair)
    if unknown := version.unknown(pair):
        names = " and ".join(map(repr, unknown))
        return found.model_copy(
            update={"note": f"version {version.number} has not learned {names}"}
        )
    try:
        stored = _stored(store, dataset.dataset)
        _check_encoders(stored.encoders, version.encoders)
        _check_room(stored.evaluation_shards, scratch)
        rows = held_out_rows(stored.evaluation_shards, scratch)
    except _UNREADABLE as error:
        return found.model_copy(update={"note": str(error)})
    if rows is None:
        return found.model_copy(update={"note": "its held-out rows were removed"})
    note = None
    if not version.are_connected(pair):
        note = (
            f"no learned datasets connect {pair.first!r} with {pair.second!r}: their scores have no meaning, "
            "and the recall is that of chance"
        )
    recall = measure(version.heads, pair, rows)
    return found.model_copy(update={"recall": recall, "note": note})


def _check_room(shards: tuple[Shard, ...], scratch: Scratch) -> None:
    """Raises InvalidDataset: a retry would not find more room, and training must not fail for it."""
    try:
        check_room(shards, scratch)
    except StorageUnavailable as error:
        raise InvalidDataset(str(error)) from error


def _check_encoders(
    found: Mapping[str, EncoderIdentity], expected: Mapping[str, EncoderIdentity]
) -> None:
    """Raises InvalidDataset: features of another encoder would measure nothing."""
    for modality in found.keys() & expected.keys():
        if difference := found[modality].difference(expected[modality]):
            raise InvalidDataset(
                f"the features of {modality!r} are not of the encoder that computed the model's: {difference}"
            )
