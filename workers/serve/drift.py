"""Drift of live queries: every replica adds up what it answers, and one of them compares the sums of all.

    add (event loop) ──> rows of this second ──> sums ── each minute, of 256 rows at least ──> queries/ in the store
                                                                                                   │
    drift/<model>.json <── compared with the datasets of the version <── all that replicas wrote ──┘

No query is stored, and none is in the way of an answer: rows wait for a second, and if there are many, some are left
out. Every replica that wrote something may make the report: from the same sums it is the same.
"""

import logging
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import torch

from cmcl.contract.drift import (
    FEWEST_ROWS,
    MOST_WINDOWS,
    DriftReport,
    DriftWindow,
    ModalityDrift,
    QuerySums,
    WrittenSum,
)
from cmcl.contract.errors import DigestMismatch, InvalidVersion, ObjectNotFound
from cmcl.contract.version import VersionManifest
from cmcl.storage import layout
from cmcl.storage.documents import read_document, write_document
from cmcl.storage.object_store import ObjectStore
from cmcl.storage.versions import read_blob, read_version
from workers.model.heads import unit_rows
from workers.model.tensor_bytes import load
from workers.nullspace.query_drift import KnownDataset, QuerySum, Reference, on_grid
from workers.serve.settings import ServeArgs
from workers.serve.versions.loading import Float32Array, ServedVersion

logger = logging.getLogger(__name__)

# Of one version and modality, in one second: beyond, they say nothing new. Adding them up takes 2 ms of a core.
_MOST_ROWS_PER_SECOND = 256
_ADD_SECONDS = 1.0
WINDOW_SECONDS = 60
_MONTH_SECONDS = 30 * 24 * 3600
# One in 30 days, of one modality that is queried all the time.
FALSE_ALARMS = WINDOW_SECONDS / _MONTH_SECONDS
# Of a model that is queried rarely, a window is as long as it takes; what is permitted then is not for one in a day.
_MOST_FALSE_ALARMS = 0.01
_NEAREST = 3
# Versions that were queried too rarely stay for a while.
_MOST_SUMS, _MOST_REFERENCES = 1000, 100
_LITTLE_ENDIAN = np.dtype("<f8")

_Key = tuple[str, int, str]
"""Model, version and modality."""


class QueryWatch:
    """Sums of the queries that one replica answers. `add` is called by the event loop, `poll` by one other thread."""

    def __init__(self, replica: str, clock: Callable[[], float] = time.time) -> None:
        """`replica`: hexadecimal digits of its own."""
        self._replica = replica
        self._clock = clock
        self._waiting: dict[_Key, tuple[int, list[Float32Array]]] = {}
        self._lock = threading.Lock()
        self._sums: dict[_Key, QuerySum] = {}
        self._added_at = self._wrote_at = clock()
        self._has_written = False
        self._references: dict[_Key, KnownQueries] = {}

    def add(self, version: ServedVersion, modality: str, rows_BF: Float32Array) -> None:
        """Note raw features that a version embeds. They are kept for a second at most."""
        if modality not in version.learned:
            return
        key = (version.model, version.number, modality)
        with self._lock:
            rows, parts = self._waiting.get(key, (0, []))
            if rows < _MOST_ROWS_PER_SECOND:
                parts.append(rows_BF[: _MOST_ROWS_PER_SECOND - rows])
                self._waiting[key] = rows + len(parts[-1]), parts
                assert rows + len(parts[-1]) <= _MOST_ROWS_PER_SECOND

    def poll(self, store: ObjectStore) -> None:
        """Add up what waits; once a minute write sums and make reports. Raises StorageUnavailable."""
        now = self._clock()
        if now - self._added_at >= _ADD_SECONDS:
            self._added_at = now
            self._add_up()
        minute = int(now // WINDOW_SECONDS)
        if minute > self._wrote_at // WINDOW_SECONDS:
            if self._has_written:
                self._report(store, minute)
            self._has_written = self._write(store, minute)
            self._wrote_at = now

    def _add_up(self) -> None:
        with self._lock:
            waiting, self._waiting = self._waiting, {}
        for key, (_, parts) in waiting.items():
            for rows_BF in parts:
                grid_BF = on_grid(unit_rows(torch.from_numpy(rows_BF)))
                new, known = QuerySum(len(rows_BF), grid_BF.sum(0)), self._sums.get(key)
                assert new.sum_F.isfinite().all()
                assert known is None or known.sum_F.shape == new.sum_F.shape
                self._sums[key] = known + new if known else new
        for oldest in list(self._sums)[:-_MOST_SUMS]:
            del self._sums[oldest]

    def _write(self, store: ObjectStore, minute: int) -> bool:
        """Write all sums of enough rows, and begin new ones. Returns whether there were any."""
        enough = {key: each for key, each in self._sums.items() if each.rows >= FEWEST_ROWS}
        for model, version in {key[:2] for key in enough}:
            sums = {
                key[2]: _to_written(each)
                for key, each in enough.items()
                if key[:2] == (model, version)
            }
            written = QuerySums(model=model, version=version, sums=sums)
            write_document(store, layout.query_sums(model, minute, self._replica, version), written)
            for modality in sums:
                del self._sums[model, version, modality]
        return bool(enough)

    def _report(self, store: ObjectStore, minute: int) -> None:
        """Report what was written before this minute, of models of which this replica is the first that wrote last."""
        listed: dict[str, list[tuple[int, str, str]]] = {}
        for key in store.keys(layout.all_query_sums()):
            model, wrote_in, replica = layout.query_sums_in(key)
            if wrote_in < minute:
                listed.setdefault(model, []).append((wrote_in, replica, key))
        for model, found in listed.items():
            newest = max(wrote_in for wrote_in, _, _ in found)
            if (
                min(replica for wrote_in, replica, _ in found if wrote_in == newest)
                != self._replica
            ):
                continue
            keys = [key for _, _, key in found]
            try:
                report_drift(store, model, minute, keys, self._reference)
            except (ObjectNotFound, InvalidVersion, DigestMismatch, ValueError) as error:
                # The model was deleted, or has learned nothing that queries can be compared with.
                logger.warning("queries of %s are not compared: %s", model, error)
            for key in keys:
                store.delete(key)

    def _reference(self, store: ObjectStore, key: _Key) -> "KnownQueries":
        if key not in self._references:
            self._references[key] = KnownQueries.read(store, key)
            for oldest in list(self._references)[:-_MOST_REFERENCES]:
                del self._references[oldest]
        return self._references[key]


def watch_queries(args: ServeArgs, replica: str) -> QueryWatch | None:
    """The watch of a replica; None where it is off."""
    return QueryWatch(replica) if args.watch_queries else None


@dataclass(frozen=True)
class KnownQueries:
    """What queries of one modality of a version are compared with, and the ids of these datasets."""

    reference: Reference
    datasets: tuple[str, ...]

    @classmethod
    def read(cls, store: ObjectStore, key: _Key) -> "KnownQueries":
        """Raises ValueError where the version has learned none, ObjectNotFound, InvalidVersion, DigestMismatch."""
        model, version, modality = key
        known = dict(known_datasets(store, read_version(store, model, version), modality))
        return cls(Reference(list(known.values())), tuple(known))


def known_datasets(
    store: ObjectStore, manifest: VersionManifest, modality: str
) -> Iterator[tuple[str, KnownDataset]]:
    """The datasets of a version with this modality, by id. Raises ObjectNotFound, DigestMismatch."""
    for line in manifest.learned:
        if modality in line.pair.modalities and line.projections is not None:
            halves_2II = load(read_blob(store, line.projections))[modality]
            yield line.dataset, KnownDataset.from_halves(halves_2II)


def report_drift(
    store: ObjectStore,
    model: str,
    minute: int,
    keys: Iterable[str],
    find: Callable[[ObjectStore, _Key], KnownQueries],
) -> None:
    """Add windows of these sums to the report of a model. Raises as `KnownQueries.read`, StorageUnavailable."""
    sums: dict[_Key, QuerySum] = {}
    for key in keys:
        part = read_document(store, key, QuerySums)
        for modality, written in part.sums.items():
            of, new = (model, part.version, modality), _from_written(written)
            sums[of] = sums[of] + new if of in sums else new
    try:
        known = dict(read_document(store, layout.drift_report(model), DriftReport).modalities)
    except (ObjectNotFound, InvalidVersion):
        known = {}
    at = datetime.fromtimestamp(minute * WINDOW_SECONDS, UTC)
    # Windows of the newest version come last.
    for of, queries in sorted(sums.items()):
        _, version, modality = of
        before = known[modality].windows if modality in known else ()
        seconds = (at - before[-1].at).total_seconds() if before else 0
        windows_a_month = _MONTH_SECONDS / max(seconds, WINDOW_SECONDS) * len({*known, modality})
        false_alarms = min(1 / windows_a_month, _MOST_FALSE_ALARMS)
        compared = find(store, of)
        assert len(compared.datasets) == len(set(compared.datasets))
        # As far as the fewest queries may lie: where many show a smaller difference, it is not drift.
        found = compared.reference.deviation(queries.mean_K, FEWEST_ROWS, false_alarms)
        shares = zip(found.shares_D.tolist(), compared.datasets, strict=True)
        window = DriftWindow(
            at=at,
            version=version,
            rows=queries.rows,
            level=found.level,
            nearest={name: share for share, name in sorted(shares)[: -_NEAREST - 1 : -1] if share},
        )
        windows = (*before, window)[-MOST_WINDOWS:]
        known[modality] = ModalityDrift(windows=windows, mean=tuple(queries.mean_K.tolist()))
    report = DriftReport(model=model, modalities=known)
    write_document(store, layout.drift_report(model), report)


def _to_written(queries: QuerySum) -> WrittenSum:
    numbers = queries.sum_F.numpy().astype(_LITTLE_ENDIAN).tobytes()
    return WrittenSum(rows=queries.rows, sum=b64encode(numbers))


def _from_written(written: WrittenSum) -> QuerySum:
    numbers_F = np.frombuffer(written.sum, _LITTLE_ENDIAN).astype(np.float64)
    return QuerySum(written.rows, torch.from_numpy(numbers_F))
