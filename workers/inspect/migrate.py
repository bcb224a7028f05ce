"""Migrate stored vectors from one version to another, file to file, without encoders.

Shapes: N stored vectors, F width of the raw feature, E width of the embeddings.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cmcl.contract.version import VersionManifest
from workers.inspect.versions import (
    Unanswerable,
    check_modality,
    find_version,
    read_held_out,
)
from workers.model.heads import ModalityHeads
from workers.model.migration import (
    CannotMigrate,
    NumberedHeads,
    check_error,
    migration_between,
)
from workers.nullspace.compatibility import root_ratio
from workers.nullspace.migrate import Migration
from workers.storage.object_store import ObjectStore
from workers.train.versions import read_heads, read_memory

_ROWS_AT_ONCE = 65536
_PERCENTILE = 0.01


@dataclass(frozen=True)
class MigrationQuestion:
    """What to migrate. Nothing is written if the predicted relative error exceeds `most_error`."""

    model: str
    from_version: int
    to_version: int
    modality: str
    most_error: float = 0.5


@dataclass(frozen=True)
class MeasuredMigration:
    """Held-out rows of one modality, migrated and re-encoded.

    `error`: relative root mean square error of unnormalised embeddings. `cosine_mean` and
    `cosine_percentile_1`: between migrated and re-encoded unit vectors. `cosine_unmigrated`: the mean
    without migration.
    """

    rows: int
    error: float
    cosine_mean: float
    cosine_percentile_1: float
    cosine_unmigrated: float


@dataclass(frozen=True)
class Migrated:
    """What was written. Figures of the map are those of `nullspace.migrate.Migration`.

    `held_out`: by dataset of the modality, if it has held-out rows.
    """

    model: str
    from_version: int
    to_version: int
    modality: str
    vectors: int
    rank: int
    width: int
    condition: float
    predicted_error: float
    error_on_rows: float
    exact: bool
    held_out: Mapping[str, MeasuredMigration]


def migrate(store: ObjectStore, question: MigrationQuestion, source: Path, out: Path) -> Migrated:
    """Migrate unit vectors (N × E, float32, .npy) and write them atomically.

    The map comes from the modality's pooled input moment in the old version: stored vectors are assumed
    to resemble the datasets of that version. Raises Unanswerable, WorkerError, OSError.
    """
    before, after = (
        find_version(store, question.model, version)
        for version in (question.from_version, question.to_version)
    )
    check_modality(before, question.modality)
    heads = read_heads(store, before), read_heads(store, after)
    found = _map(store, question, before, *heads)
    stored_NE = read_vectors(source, before.spec.width)
    _write(found, stored_NE, out)
    return Migrated(
        question.model,
        question.from_version,
        question.to_version,
        question.modality,
        vectors=len(stored_NE),
        rank=found.rank,
        width=before.spec.width,
        condition=found.condition,
        predicted_error=found.predicted_error,
        error_on_rows=found.error_on_rows,
        exact=found.exact,
        held_out=_measured(store, found, question.modality, before, heads),
    )


def _map(
    store: ObjectStore,
    question: MigrationQuestion,
    before: VersionManifest,
    old: ModalityHeads,
    new: ModalityHeads,
) -> Migration:
    versions = (
        NumberedHeads(question.from_version, old),
        NumberedHeads(question.to_version, new),
    )
    try:
        found = migration_between(question.modality, read_memory(store, before), *versions)
        check_error(question.modality, found, question.most_error)
    except CannotMigrate as error:
        raise Unanswerable(str(error)) from error
    return found


def read_vectors(path: Path, width: int) -> np.ndarray:
    """Memory-map the rows of a .npy file. Raises Unanswerable unless they are N × width."""
    try:
        stored_NE: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise Unanswerable(f"{path} cannot be read as .npy: {error}") from error
    if not isinstance(stored_NE, np.ndarray) or stored_NE.ndim != 2 or stored_NE.shape[1] != width:
        shape = getattr(stored_NE, "shape", "an archive")
        raise Unanswerable(f"{path} has shape {shape}, it must be rows × {width}")
    if stored_NE.dtype != np.float32:
        raise Unanswerable(f"{path} holds {stored_NE.dtype}, it must be float32")
    if len(stored_NE) == 0:
        raise Unanswerable(f"{path} has no rows")
    return stored_NE


def _write(found: Migration, stored_NE: np.ndarray, out: Path) -> None:
    """Write to a temporary file, then rename: readers see the old file or the whole new one."""
    with tempfile.TemporaryDirectory(prefix=".cmcl-migrate-", dir=out.absolute().parent) as folder:
        path = Path(folder) / "vectors.npy"
        shape = (len(stored_NE), len(found.map_EE))
        target_NE = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
        for start in range(0, len(stored_NE), _ROWS_AT_ONCE):
            rows_BE = torch.from_numpy(np.array(stored_NE[start : start + _ROWS_AT_ONCE]))
            _check_rows(rows_BE, start)
            target_NE[start : start + len(rows_BE)] = found.apply_unit(rows_BE).numpy()
        target_NE.flush()
        path.replace(out)


def _check_rows(rows_BE: torch.Tensor, start: int) -> None:
    odd_B = ~rows_BE.isfinite().all(dim=1)
    if odd_B.any():
        raise Unanswerable(f"row {start + int(odd_B.int().argmax())} has NaN or infinity")
    zero_B = (rows_BE == 0).all(dim=1)
    if zero_B.any():
        row = start + int(zero_B.int().argmax())
        raise Unanswerable(f"row {row} is all zeros: it has no direction")


def _measured(
    store: ObjectStore,
    found: Migration,
    modality: str,
    before: VersionManifest,
    heads: tuple[ModalityHeads, ModalityHeads],
) -> dict[str, MeasuredMigration]:
    results = {}
    for learned in before.learned:
        if modality not in learned.pair.modalities:
            continue
        held_out = read_held_out(store, learned)
        if held_out is not None:
            of_first = modality == learned.pair.first
            raw_NF = held_out.rows.first_NI if of_first else held_out.rows.second_NJ
            results[learned.dataset] = measured_migration(found, modality, *heads, raw_NF)
    return results


def measured_migration(
    found: Migration, modality: str, old: ModalityHeads, new: ModalityHeads, raw_NF: Tensor
) -> MeasuredMigration:
    """Migrate the old version's embeddings of these rows, and compare them with the new one's."""
    stored_NE = old.outputs(modality, raw_NF).double()
    reencoded_NE = new.outputs(modality, raw_NF).double()
    missed = float((found.apply(stored_NE) - reencoded_NE).square().sum())
    unit_stored_NE = old.embed(modality, raw_NF)
    cosine_N = _cosines(found.apply_unit(unit_stored_NE), reencoded_NE)
    return MeasuredMigration(
        rows=len(raw_NF),
        error=root_ratio(missed, float(reencoded_NE.square().sum())),
        cosine_mean=float(cosine_N.mean()),
        cosine_percentile_1=float(cosine_N.quantile(_PERCENTILE)),
        cosine_unmigrated=float(_cosines(unit_stored_NE, reencoded_NE).mean()),
    )


def _cosines(one_NE: Tensor, other_NE: Tensor) -> Tensor:
    return torch.nn.functional.cosine_similarity(one_NE.double(), other_NE, dim=1)
