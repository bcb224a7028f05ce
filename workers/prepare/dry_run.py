"""Dry run: what a prepared dataset would meet, in place of learning it.

Shapes: B rows, F and G raw widths of the two sides, I width of what a head reads, K directions of a span.
"""

import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor

from cmcl.contract.dataset import Shard
from cmcl.contract.drift import FEWEST_ROWS, DriftReport
from cmcl.contract.errors import ObjectNotFound
from cmcl.contract.modality import ModalityPair
from cmcl.contract.model import ModelSpec
from cmcl.contract.prepare import BadShard, DatasetReport, RowFindings
from cmcl.contract.version import VersionManifest
from cmcl.storage import layout
from cmcl.storage.datasets import read_dataset_manifest
from cmcl.storage.documents import read_document
from cmcl.storage.object_store import ObjectStore
from cmcl.storage.versions import read_version
from workers.files.columns import FEATURES
from workers.files.shards import download, open_in_pieces, rows_of
from workers.methods.method import TrainingContext
from workers.methods.registry import method_for
from workers.model.heads import (
    ModalityHeads,
    PairedRows,
    initial_heads,
    unit_rows,
    with_new_modalities,
)
from workers.nullspace.closed_form import NO_VARIANCE
from workers.nullspace.conditioning import centring, conditioning
from workers.nullspace.moments import SecondMoment, pair_moments
from workers.nullspace.query_drift import KnownDataset, Reference, projected, sums_of_halves
from workers.nullspace.subspace import eigenbasis
from workers.prepare.adoption import Forecast, forecast
from workers.prepare.mismatches import mismatches
from workers.serve.drift import FALSE_ALARMS, known_datasets
from workers.train.agreement import agreement, comparable, halves_of
from workers.train.dataset import paired_rows
from workers.train.evaluation import held_out_rows
from workers.train.learn import (
    ModelState,
    condition_new_modalities,
    moments_of_halves,
    no_variance,
    prepare_rows,
    too_few_rows,
)
from workers.train.rows import RowsInMemory
from workers.train.run import Run
from workers.train.versions import (
    read_dataset_sums,
    read_heads,
    read_memory,
    read_method_state,
)

# Large datasets are sampled at regular intervals.
_MOST_SHARDS = 256
# 256 MiB as float32: moments are summed and duplicates searched in these values.
MOST_VALUES = 2**26
# Rows are multiples of each other if their cosines are 1 to float32 and float16 rounding.
_PARALLEL = 1e-6
# Familiarity was 0.20 or more between datasets of one real encoder (image, text and audio of shared/data/stream, kept
# energy 0.8 to 0.95), and at most 0.08 when its columns were shuffled.
_STRANGE = 0.15


@dataclass(frozen=True)
class Sample:
    """A regular sample of the `of` rows of a dataset. `shard_N`: the number of each row's shard."""

    rows: PairedRows
    of: int
    shard_N: Tensor

    @property
    def advice(self) -> tuple[str, ...]:
        """A sentence if these are not all rows."""
        if len(self.rows) == self.of:
            return ()
        return (
            f"Findings and shares are of a regular sample of {len(self.rows):,} of {self.of:,} rows.",
        )


def dataset_outlook(
    store: ObjectStore,
    model: str,
    version: int,
    spec: ModelSpec,
    pair: ModalityPair,
    shards: Sequence[Shard],
) -> DatasetReport:
    """Report on prepared training shards. `version`: the latest one, 0 before the first. Raises WorkerError."""
    report = DatasetReport(
        version=version, pair=pair.modalities, refusals=(), findings={}, advice=()
    )
    if not shards:
        return report
    chosen = shards[:: -(-len(shards) // _MOST_SHARDS)]
    with tempfile.TemporaryDirectory(prefix="cmcl-dry-run-") as folder:
        paths = [Path(folder) / f"{index}.parquet" for index in range(len(chosen))]
        for path, shard in zip(paths, chosen, strict=True):
            download(shard, shard.uri, path)
        sample = replace(sampled(paths), of=sum(shard.rows for shard in shards))
    sides = dict(zip(pair.modalities, (sample.rows.first_NI, sample.rows.second_NJ), strict=True))
    findings = {modality: check_rows(raw_BF) for modality, raw_BF in sides.items()}
    refusals = tuple(_refused_by_training(spec, sides, sample.of))
    bad = () if refusals else tuple(_bad_shards(chosen, sample))
    manifest = read_version(store, model, version) if version else None
    expected, covered, mixed_up = None, dict[str, float](), None
    if not refusals:
        heads = _heads(store, manifest, spec, pair, sample.rows)
        if spec.solves:
            mixed_up = _mixed_up(store, manifest, spec, heads, pair, sample.rows)
    if not refusals and manifest:
        memory, method_state = read_memory(store, manifest), read_method_state(store, manifest)
        state = ModelState(heads, memory, method_state)
        familiar, is_open = _compared(state, spec, pair, sample.rows)
        expected = _forecast(store, manifest, spec, heads, pair, sample.rows)
        covered = dict(_covered_drift(store, manifest, sides, sample.rows))
        findings = {
            modality: found.model_copy(update={"familiarity": familiar[modality]})
            for modality, found in findings.items()
        }
        if not is_open:
            refusals = ("Nothing can be learned: all entries of both heads are blocked.",)
    advice = [
        *sample.advice,
        *([expected.advice] if expected else []),
        *([mixed_up] if mixed_up else []),
        *(each.advice for each in bad),
        *(
            f"Queries of {modality} drift. With this dataset, {share:.0%} of the drift is covered."
            for modality, share in covered.items()
        ),
        *(f"{name}: {words}" for name, one in findings.items() for words in advice_on_rows(one)),
    ]
    return report.model_copy(
        update={
            "refusals": refusals,
            "findings": findings,
            "bad_shards": bad,
            "covered_drift": covered,
            "advice": tuple(advice),
        }
    )


def _bad_shards(shards: Sequence[Shard], sample: Sample) -> Iterator[BadShard]:
    """The shards that have more pairs that do not belong together than the spread of the others explains."""
    files = [shard.source.uri if shard.source else shard.uri for shard in shards]
    parts, seen = Counter(files), Counter[str]()
    judged = mismatches(sample.rows, sample.shard_N)
    for number, (file, shard) in enumerate(zip(files, shards, strict=True)):
        seen[file] += 1
        found = judged.get(number)
        if found and found.is_bad:
            part = seen[file] if parts[file] > 1 else None
            yield BadShard(
                file=file,
                part=part,
                rows=shard.rows,
                mismatched=min(found.share, 1.0),
                limit=found.limit,
            )


def _mixed_up(
    store: ObjectStore,
    manifest: VersionManifest | None,
    spec: ModelSpec,
    heads: ModalityHeads,
    pair: ModalityPair,
    raw: PairedRows,
) -> str | None:
    """A sentence if the pairs agree less than those of an earlier dataset, or than chance has it."""
    sums = moments_of_halves(heads, pair, RowsInMemory(raw), Run())
    halves = halves_of(method_for(spec).choose(pair, sums))
    if halves is None:
        return None
    learned = comparable(manifest.learned if manifest else (), pair)
    known = ((line, read_dataset_sums(store, line)) for line in learned)
    found = agreement(pair, sums[0] + sums[1], halves, known)
    names = {line.dataset: line.name for line in learned}
    return found.remark(names) if found.score < found.least else None


def _refused_by_training(spec: ModelSpec, sides: Mapping[str, Tensor], rows: int) -> Iterator[str]:
    for modality, raw_BF in sides.items():
        unit_BF = unit_rows(raw_BF).double()
        variance = float((unit_BF - unit_BF.mean(0)).square().sum(1).mean())
        if variance <= NO_VARIANCE:
            yield no_variance(modality, variance)
    if rows < spec.fewest_rows:
        yield too_few_rows(rows, spec)


def _heads(
    store: ObjectStore,
    manifest: VersionManifest | None,
    spec: ModelSpec,
    pair: ModalityPair,
    raw: PairedRows,
) -> ModalityHeads:
    """The heads of the version, with the conditioning that new modalities would get from these rows."""
    heads = read_heads(store, manifest) if manifest else initial_heads(spec)
    heads = with_new_modalities(heads, spec)
    if spec.centred or not spec.solves:
        fit = centring if spec.solves else conditioning
        heads = condition_new_modalities(spec, heads, pair, RowsInMemory(raw), Run(), fit)
    return heads


def _forecast(
    store: ObjectStore,
    manifest: VersionManifest,
    spec: ModelSpec,
    heads: ModalityHeads,
    pair: ModalityPair,
    raw: PairedRows,
) -> Forecast | None:
    """How well a modality that is aligned to the other one will be found, where this is such a pair."""
    aligned = spec.aligned(pair)
    if aligned is None:
        return None
    if aligned == pair.second:
        pair = pair.swapped()
        raw = PairedRows(raw.second_NJ, raw.first_NI, raw.second_keys_N, raw.first_keys_N)
    measured = []
    for line in manifest.learned:
        if pair.second in line.pair.modalities and aligned not in line.pair.modalities:
            stored = read_dataset_manifest(store, line.dataset)
            held = held_out_rows(stored.evaluation_shards) if stored else None
            if held is not None:
                measured.append((line.pair, held))
    return forecast(heads, pair, raw, measured)


def _covered_drift(
    store: ObjectStore, manifest: VersionManifest, sides: Mapping[str, Tensor], rows: PairedRows
) -> Iterator[tuple[str, float]]:
    """By modality whose queries drift: the share of the distance beyond what is permitted that these rows take away."""
    try:
        report = read_document(store, layout.drift_report(manifest.model), DriftReport)
    except ObjectNotFound:
        return
    for modality in sides.keys() & set(report.drifting):
        known = [each for _, each in known_datasets(store, manifest, modality)]
        numbers = projected(unit_rows(sides[modality]))
        new = KnownDataset.from_halves(sums_of_halves(numbers, rows.in_second_half_N))
        mean_K = torch.tensor(report.modalities[modality].mean, dtype=torch.float64)
        before, after = (
            Reference(each).deviation(mean_K, FEWEST_ROWS, FALSE_ALARMS).excess
            for each in (known, [*known, new])
        )
        # Not so if the newest window is calm.
        if before:
            yield modality, max(1 - after / before, 0.0)


def _compared(
    state: ModelState, spec: ModelSpec, pair: ModalityPair, raw: PairedRows
) -> tuple[dict[str, float | None], bool]:
    """Return the familiarity by modality, None without earlier data; and whether an entry of a head may change."""
    heads = state.heads
    rows = prepare_rows(heads, pair, raw)
    moments = pair_moments(rows.first_NI, rows.second_NJ)
    familiar: dict[str, float | None] = {}
    for modality, new in zip(pair.modalities, (moments.first, moments.second), strict=True):
        earlier = state.memory.inputs_of(modality)
        familiar[modality] = None
        if earlier is not None:
            familiar[modality] = familiarity(new, earlier, spec.kept_energy)
    context = TrainingContext(
        heads, state.memory, state.method_state, pair, spec.training, spec.seed
    )
    spaces = method_for(spec).update_spaces(context)
    return familiar, any(spaces[modality].blocked_share < 1 for modality in pair.modalities)


def familiarity(new: SecondMoment, earlier: SecondMoment, kept_energy: float) -> float:
    """How much more of the new inputs lies in the span of earlier ones than of random directions: 0 no more, 1 all.

    The span has the leading directions that hold `kept_energy` of the earlier inputs. Low for another encoder.
    """
    basis = eigenbasis(earlier)
    span_IK = basis.vectors_II[:, : basis.rank_at(kept_energy)]
    sum_II = new.sum_II.to("cpu", torch.float64)
    outside = float(sum_II.trace() - (span_IK.mT @ sum_II @ span_IK).trace())
    # The constant 1 (the last column) lies inside of the span almost completely, since every earlier row has it: the
    # energy outside is that of the features alone. Random directions leave 1 - rank / width outside.
    features, chance = float(sum_II[:-1, :-1].trace()), span_IK.shape[1] / basis.width
    if chance >= 1 or features <= 0:
        return 1.0
    return min(max(1 - outside / features / (1 - chance), 0.0), 1.0)


def sampled(paths: Sequence[Path], most_values: int = MOST_VALUES) -> Sample:
    """A sample of at most `most_values` values over both sides, from shards that were verified."""
    width, counts = 0, list[int]()
    for file in _opened(paths):
        width = sum(file.schema_arrow.field(column).type.list_size for column in FEATURES)
        counts.append(file.metadata.num_rows)
    rows = sum(counts)
    every = -(-rows // max(1, most_values // width))
    shard_N = np.repeat(np.arange(len(counts)), counts)[::every]
    sample = paired_rows(rows_of(_opened(paths), every=every))
    return Sample(sample, rows, torch.from_numpy(shard_N))


def _opened(paths: Sequence[Path]) -> Iterator[pq.ParquetFile]:
    """Open the files one after the other; each is closed before the next one is opened."""
    for path in paths:
        with open_in_pieces(path) as file:
            yield file


def check_rows(raw_BF: Tensor) -> RowFindings:
    """Find what is odd in features of prepared rows, which are finite and not all zeros (any float type)."""
    rows_BF = raw_BF.to(torch.promote_types(raw_BF.dtype, torch.float32))
    is_single = len(rows_BF) < 2
    # Scaled first: squares overflow float32.
    unit_BF = torch.nn.functional.normalize(
        rows_BF / rows_BF.abs().amax(dim=1, keepdim=True), dim=1
    )
    return RowFindings(
        rows=len(rows_BF),
        width=rows_BF.shape[1],
        duplicate_rows=len(rows_BF) - len(torch.unique(rows_BF, dim=0)),
        constant_columns=0 if is_single else int((rows_BF == rows_BF[0]).all(dim=0).sum()),
        rank_one=not is_single and bool(((unit_BF @ unit_BF[0]).abs() >= 1 - _PARALLEL).all()),
    )


def advice_on_rows(found: RowFindings) -> Iterator[str]:
    """Yield one sentence for each oddity."""
    if found.duplicate_rows:
        yield (
            f"{found.duplicate_rows:,} of {found.rows:,} rows repeat an earlier one: they teach "
            "less than their number."
        )
    if found.constant_columns:
        yield (
            f"{found.constant_columns:,} of {found.width:,} columns are constant and carry "
            "nothing: is the encoder set up as it was meant to be?"
        )
    if found.familiarity is not None and found.familiarity < _STRANGE:
        yield (
            "The features have almost nothing in common with the earlier ones of this modality "
            f"(familiarity {found.familiarity:.2f} of 1): make sure that the same encoder made them."
        )
    if found.rank_one:
        yield "All rows are multiples of one row: at unit length there are at most two different ones."
