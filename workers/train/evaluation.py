"""Recall on held-out rows: of datasets that a version has learned, and of datasets that are measured only.

By item, where rows that share one count as hits, and by own row; and class accuracy where rows have labels.

Shapes: N rows, Q of them as queries, C classes, E width of the embeddings.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import fmean

import numpy as np
import pyarrow.parquet as pq
import torch
from pydantic import BaseModel
from torch import Tensor

from cmcl.contract.dataset import EvaluationDataset, Shard
from cmcl.contract.encoder import EncoderIdentity
from cmcl.contract.errors import InvalidDataset, InvalidVersion, ObjectNotFound, StorageUnavailable
from cmcl.contract.job import JobSpec
from cmcl.contract.modality import Modality, ModalityPair
from cmcl.contract.version import (
    EvaluationResult,
    LearnedDataset,
    MeasuredDataset,
    Overlap,
    Recall,
    datasets_to_measure,
)
from cmcl.storage import layout
from cmcl.storage.documents import read_document, write_document
from cmcl.storage.object_store import ObjectStore, retry_unavailable
from workers.files.shards import Rows, Scratch, check_room, open_in_pieces, open_verified, rows_of
from workers.model.heads import ModalityHeads, PairedRows
from workers.model.loss import unit
from workers.nullspace.centred import components
from workers.nullspace.compression import score_errors
from workers.nullspace.overlap import BEST, expected_overlap
from workers.train.certify import Certificate
from workers.train.dataset import paired_rows
from workers.train.distributed import World, all_gather_dict, barrier, rank_share
from workers.train.versions import Parent, check_encoders, read_version_heads

# What a missing or damaged object of one dataset raises. Others are measured nevertheless.
UNREADABLE = (InvalidDataset, ObjectNotFound, InvalidVersion)
# Every query is scored against all rows: more would take minutes without changing recall noticeably.
MOST_HELD_OUT = 16_384
# Scores of this many queries against all rows are held at once.
_QUERIES_AT_ONCE = 1024
# The rows of a gallery for which an overlap is expected where no rows are held out.
_SEARCHED = 1000


@dataclass(frozen=True)
class Evaluation:
    """Recall on held-out rows.

    `before`: of the parent on the new dataset, None if it has no held-out rows. `now`: by dataset, as `score_errors` of
    its embeddings are. `overlap`: by past dataset, with the parent. `missing`: the error, by past dataset whose held-out
    rows cannot be read.
    """

    before: Recall | None = None
    now: dict[str, Recall] = field(default_factory=dict)
    overlap: dict[str, float] = field(default_factory=dict)
    score_errors: dict[str, dict[str, float]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def gathered(self, here: World) -> "Evaluation":
        """With what the other ranks have found; `before` is this rank's."""
        barrier(here)
        return Evaluation(
            self.before,
            all_gather_dict(self.now, here),
            all_gather_dict(self.overlap, here),
            all_gather_dict(self.score_errors, here),
            all_gather_dict(self.missing, here),
        )

    def add(
        self,
        dataset: str,
        heads: ModalityHeads,
        pair: ModalityPair,
        rows: "HeldOut",
        parent: ModalityHeads | None = None,
    ) -> None:
        """Measure one more dataset, and what its results have in common with those of the parent."""
        now = embeddings(heads, pair, rows)
        then = None if parent is None else embeddings(parent, pair, rows)
        self.now[dataset], overlap = recall_and_overlap(now, then, rows)
        if overlap is not None:
            self.overlap[dataset] = overlap
        self.score_errors[dataset] = score_errors(*now)


def evaluate(
    store: ObjectStore,
    job: JobSpec,
    parent: Parent,
    now: ModalityHeads,
    here: World,
    scratch: Scratch,
) -> Evaluation:
    """Recall on the held-out rows of the new dataset and of earlier ones, as far as they have some.

    Rank 0 measures the new one, and all ranks the others. For a new modality the parent's head is the initial one,
    with today's conditioning: that is not part of what is trained. Raises InvalidDataset for rows of the new dataset only.
    """
    earlier = rank_share(datasets_to_measure(job, parent.learned), here)
    found = _evaluate(store, [(line, parent.model_state.heads) for line in earlier], now, scratch)
    new = job.learns
    if here.is_leader and (rows := held_out_rows(new.evaluation_shards, scratch)) is not None:
        before = parent.model_state.heads.conditioned(now.conditioning)
        found.add(new.dataset, now, new.pair, rows)
        found = replace(found, before=measure(before, new.pair, rows))
    return found.gathered(here)


def overlaps(
    certified: Mapping[str, Certificate], evaluation: Evaluation, learned: Iterable[LearnedDataset]
) -> dict[str, Overlap]:
    """What the ten best results on each earlier dataset have in common with those of the parent."""
    halves = {line.dataset: line.halves for line in learned}
    found = {}
    for dataset, each in certified.items():
        recall_now = evaluation.now.get(dataset)
        rows = recall_now.rows if recall_now else _SEARCHED
        found[dataset] = Overlap(
            rows=rows,
            expected=fmean(expected_overlap(way, rows) for way in each.correlations),
            halves=expected_overlap(own.correlation, rows) if (own := halves[dataset]) else None,
            measured=evaluation.overlap.get(dataset),
        )
    return found


def evaluate_learned(
    store: ObjectStore,
    learned: Sequence[tuple[LearnedDataset, ModalityHeads]],
    now: ModalityHeads,
    here: World,
    scratch: Scratch,
) -> Evaluation:
    """Measure learned datasets, each on one of the ranks, as far as their held-out rows can be read.

    Each beside the heads to compare its results with.
    """
    return _evaluate(store, rank_share(learned, here), now, scratch).gathered(here)


def _evaluate(
    store: ObjectStore,
    learned: Iterable[tuple[LearnedDataset, ModalityHeads]],
    now: ModalityHeads,
    scratch: Scratch,
) -> Evaluation:
    found = Evaluation()
    for line, before in learned:
        try:
            rows = held_out_rows(held_out_part(store, line.dataset).evaluation_shards, scratch)
        except UNREADABLE as error:
            found.missing[line.dataset] = str(error)
            continue
        # None if they were deleted on purpose.
        if rows is not None:
            found.add(line.dataset, now, line.pair, rows, before)
    return found


class _HeldOutPart(BaseModel):
    """The part of a dataset's manifest that an evaluation reads; the rest may refer to deleted files."""

    evaluation_shards: tuple[Shard, ...] = ()
    encoders: dict[Modality, EncoderIdentity] = {}


def held_out_part(store: ObjectStore, dataset: str) -> _HeldOutPart:
    """Raises `UNREADABLE`, StorageUnavailable."""
    key = layout.dataset_manifest(dataset)
    return retry_unavailable(partial(read_document, store, key, _HeldOutPart))


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
    retry_unavailable(partial(write_document, store, key, result))


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
        stored = held_out_part(store, dataset.dataset)
        check_encoders(stored.encoders, version.encoders)
        _check_room(stored.evaluation_shards, scratch)
        rows = held_out_rows(stored.evaluation_shards, scratch)
    except UNREADABLE as error:
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


# --- Held-out rows -------------------------------------------------------------------------------


@dataclass(frozen=True)
class HeldOut:
    """Held-out rows: raw features, content keys of both sides, and class numbers or None."""

    rows: PairedRows
    labels_N: Tensor | None

    def __len__(self) -> int:
        return len(self.rows)


def held_out_rows(shards: Sequence[Shard], scratch: Scratch | None = None) -> HeldOut | None:
    """Rows of evaluation shards, a regular sample if there are many; None without shards.

    `scratch` is for a copy of one shard at a time. Raises InvalidDataset, StorageUnavailable.
    """
    every = -(-sum(shard.rows for shard in shards) // MOST_HELD_OUT)
    return held_out(rows_of(_files(shards, scratch or Scratch()), every)) if shards else None


def held_out(rows: Rows) -> HeldOut:
    """Rows to measure recall on. Classes are numbered in the order of their names."""
    labels = None
    if rows.label_B is not None:
        _, numbers = np.unique(rows.label_B.astype(str), return_inverse=True)
        labels = torch.from_numpy(numbers)
    return HeldOut(paired_rows(rows), labels)


def _files(shards: Sequence[Shard], scratch: Scratch) -> Iterator[pq.ParquetFile]:
    """Open the shards one after the other; each is closed before the next one is opened."""
    for shard in shards:
        with open_verified(shard, scratch).reading() as source:
            yield open_in_pieces(source)


# --- Recall --------------------------------------------------------------------------------------


def measure(heads: ModalityHeads, pair: ModalityPair, held_out: HeldOut) -> Recall:
    """Recall of these heads, averaged over both directions."""
    return recall(*embeddings(heads, pair, held_out), held_out)


def embeddings(
    heads: ModalityHeads, pair: ModalityPair, held_out: HeldOut
) -> tuple[Tensor, Tensor]:
    """Unit embeddings (N × E) of both sides."""
    rows = held_out.rows
    return heads.embed(pair.first, rows.first_NI), heads.embed(pair.second, rows.second_NJ)


def recall(first_NE: Tensor, second_NE: Tensor, held_out: HeldOut) -> Recall:
    """Recall of unit embeddings, averaged over both directions."""
    return recall_and_overlap((first_NE, second_NE), None, held_out)[0]


def recall_and_overlap(
    now: tuple[Tensor, Tensor], then: tuple[Tensor, Tensor] | None, held_out: HeldOut
) -> tuple[Recall, float | None]:
    """Recall of unit embeddings (N × E) of both sides, and the share of the ten best results that are among those of another
    version as well, `then`; None without one. Averaged over both directions.
    """
    rows, labels_N = held_out.rows, held_out.labels_N
    ways = (now, now[::-1])
    old = (None, None) if then is None else (then, then[::-1])
    keys = (rows.second_keys_N, rows.first_keys_N)
    places = [_places(*each, held_out) for each in zip(ways, old, keys, strict=True)]
    nearest_N, item_N, own_N, stay_P = (torch.cat(each) for each in zip(*places, strict=True))
    accuracy = None
    if labels_N is not None:
        accuracy = fmean(_class_accuracy(*way, labels_N) for way in ways)
    measured = Recall(
        rows=len(held_out),
        at_1=_share(nearest_N, 1),
        at_5=_share(item_N, 5),
        at_10=_share(item_N, 10),
        own_at_1=_share(own_N, 1),
        own_at_10=_share(own_N, 10),
        accuracy=accuracy,
    )
    assert measured.at_10 >= max(measured.at_5, _share(own_N, 10))
    return measured, None if then is None else float(stay_P.double().mean())


def _share(places_N: Tensor, most: int) -> float:
    return float((places_N <= most).double().mean())


def _places(
    now: tuple[Tensor, Tensor],
    then: tuple[Tensor, Tensor] | None,
    keys_N: Tensor,
    held_out: HeldOut,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Places, from 1, of the best row with the query's label or item, of the best one with its item, and of its own row;
    and whether each of the best rows was among them `then`.

    `now`, `then`: queries and gallery. `keys_N`: of the gallery's items. Places beyond the ten best are some number
    above ten.
    """
    queries_NE, gallery_NE = now
    rows, labels_N = held_out.rows, held_out.labels_N
    _, same_N, counts = torch.unique(keys_N, return_inverse=True, return_counts=True)
    nearest, items, owns = list[Tensor](), list[Tensor](), list[Tensor]()
    stay = [torch.zeros(0, dtype=torch.bool)]
    for start in range(0, len(queries_NE), _QUERIES_AT_ONCE):
        part_Q = torch.arange(start, min(start + _QUERIES_AT_ONCE, len(queries_NE)))
        found = Best.from_scores(queries_NE[part_Q] @ gallery_NE.mT, part_Q)
        same_item_P = found.share(rows.first_keys_N) | found.share(rows.second_keys_N)
        items.append(found.places(same_item_P))
        # Rows with the same item have the same embedding: they tie, however their scores are rounded.
        owns.append(found.places(found.share(keys_N)) + counts[same_N[part_Q]] - 1)
        if labels_N is not None:
            nearest.append(found.places(same_item_P | found.share(labels_N)))
        if then is not None:
            stay.append(found.are_best_of(then[0][part_Q] @ then[1].mT))
    return torch.cat(nearest or items), torch.cat(items), torch.cat(owns), torch.cat(stay)


@dataclass(frozen=True)
class Best:
    """The rows of each query that score no less than its tenth best one: ten, and more where these tie with others.

    Shapes: P such pairs of a query and a row. `index_P`: of the query among these Q.
    """

    queries_Q: Tensor
    index_P: Tensor
    rows_P: Tensor
    scores_P: Tensor

    @classmethod
    def from_scores(cls, scores_QN: Tensor, queries_Q: Tensor) -> "Best":
        best = scores_QN.topk(min(BEST + 1, scores_QN.shape[1]), dim=1)
        rows_QK, tenth_Q1 = best.indices[:, :BEST], best.values[:, :BEST][:, -1:]
        # Where the eleventh ties with the tenth, more rows may: all scores of these queries are compared.
        is_tied_Q = (best.values[:, BEST:] == tenth_Q1).any(dim=1)
        clear_Q, tied_Q = (each.nonzero()[:, 0] for each in (~is_tied_Q, is_tied_Q))
        queries, rows = (scores_QN[tied_Q] >= tenth_Q1[tied_Q]).nonzero(as_tuple=True)
        index_P = torch.cat([clear_Q.repeat_interleave(rows_QK.shape[1]), tied_Q[queries]])
        rows_P = torch.cat([rows_QK[clear_Q].flatten(), rows])
        return cls(queries_Q, index_P, rows_P, scores_QN[index_P, rows_P])

    def share(self, values_N: Tensor) -> Tensor:
        """Whether query and row have the same value (bool, P)."""
        return values_N[self.queries_Q[self.index_P]] == values_N[self.rows_P]

    def are_best_of(self, scores_QN: Tensor) -> Tensor:
        """Whether each is among the best of the same query by other scores (bool, P)."""
        tenth_Q = scores_QN.topk(min(BEST, scores_QN.shape[1]), dim=1).values[:, -1]
        return scores_QN[self.index_P, self.rows_P] >= tenth_Q[self.index_P]

    def places(self, is_hit_P: Tensor) -> Tensor:
        """The place of each query's best hit, from 1. Other rows that score the same come before it."""
        best_Q = self.scores_P.new_full(self.queries_Q.shape, -torch.inf)
        hits_P = self.scores_P.masked_fill(~is_hit_P, -torch.inf)
        best_Q = best_Q.scatter_reduce(0, self.index_P, hits_P, "amax")
        ahead_P = ~is_hit_P & (self.scores_P >= best_Q[self.index_P])
        places_Q = 1 + self.index_P[ahead_P].bincount(minlength=len(best_Q))
        return places_Q.masked_fill(best_Q.isneginf(), BEST + 1)


def _class_accuracy(queries_NE: Tensor, gallery_NE: Tensor, labels_N: Tensor) -> float:
    """Share of queries that are nearest to the mean embedding of their own class."""
    classes = int(labels_N.max()) + 1
    sums_CE = gallery_NE.new_zeros(classes, gallery_NE.shape[1]).index_add(0, labels_N, gallery_NE)
    nearest_N = (queries_NE @ unit(sums_CE).mT).argmax(dim=1)
    return float((nearest_N == labels_N).double().mean())
