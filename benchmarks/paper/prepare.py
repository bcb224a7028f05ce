"""Sources through the product's prepare stage: manifests, features, and what was left out.

Each pair of a source is one dataset of the prepare stage. Features of a modality are then joined by the ids of
the rows, so that VGGSound's three pairs encode each video once.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.paper.features import SourceFeatures, SplitFeatures
from benchmarks.paper.sources.source import SPLITS, InvalidSource, Row, Rows, Source, Split
from benchmarks.paper.this_process import ThisProcess
from cmcl.contract.dataset import Shard
from cmcl.contract.encoder import EncoderSpec
from cmcl.contract.errors import InvalidDataset
from cmcl.contract.modality import ModalityPair
from cmcl.contract.model import ModelSpec
from cmcl.contract.prepare import PrepareRequest
from cmcl.storage import layout
from cmcl.storage.datasets import read_dataset_manifest
from cmcl.storage.object_store import ObjectStore
from cmcl.storage.uris import locate
from workers.encoders.port import EncoderMismatch, EncoderUnusable
from workers.files.columns import FEATURES, float32_rows
from workers.prepare.dataset import Preparation, PreparationFailed, prepare_dataset
from workers.prepare.progress import DatasetProgress
from workers.prepare.tasks import end_children
from workers.prepare.units import UnitRecord

Advance = Callable[[int], None]
"""Called with numbers of rows that are done since the last call."""

_CONTAINERS = (".avi",)


class Workplace:
    """Where preparation keeps its files, and what it runs with."""

    def __init__(
        self, folder: Path, store: ObjectStore, max_bad_share: float | None = None
    ) -> None:
        self.folder, self.store, self.max_bad_share = folder, store, max_bad_share
        self.process = ThisProcess(store)
        folder.mkdir(parents=True, exist_ok=True)

    def close(self) -> None:
        """End the children that parsed files."""
        end_children()


@dataclass(frozen=True)
class Encoding:
    """Features of a source, and how many of its rows were left out."""

    features: SourceFeatures
    rejected: int


def encode_source(
    source: Source,
    rows: Rows,
    specs: Mapping[str, EncoderSpec],
    root: Path,
    work: Workplace,
    advance: Advance = lambda _: None,
) -> Encoding:
    """Encode all rows of a source. Raises InvalidSource, with the first rows that cannot be used."""
    found: dict[str, dict[Split, dict[str, np.ndarray]]] = {}
    rejected = 0
    for pair in source.pairs:
        prepared = _Pair(source, pair, rows, specs, root, work, advance).prepare()
        rejected += prepared.rejected
        for modality, by_split in prepared.by_modality.items():
            found.setdefault(modality, by_split)
    return Encoding({split: _joined(split, rows[split], found) for split in SPLITS}, rejected)


def _joined(
    split: Split, rows: Sequence[Row], found: Mapping[str, Mapping[Split, Mapping[str, np.ndarray]]]
) -> SplitFeatures:
    """Rows that have every modality, in the order of the recipe."""
    kept = [row for row in rows if all(row.id in by_split[split] for by_split in found.values())]
    labels = None
    if all(row.label is not None for row in rows):
        labels = np.array([row.label for row in kept], dtype=np.str_)
    return SplitFeatures(
        np.array([row.id for row in kept], dtype=np.str_),
        labels,
        {
            modality: np.stack([by_split[split][row.id] for row in kept])
            for modality, by_split in found.items()
        },
    )


@dataclass(frozen=True)
class _Prepared:
    by_modality: Mapping[str, dict[Split, dict[str, np.ndarray]]]
    rejected: int


@dataclass(frozen=True)
class _Pair:
    """One pair of a source as a dataset of the prepare stage."""

    source: Source
    pair: ModalityPair
    rows: Rows
    specs: Mapping[str, EncoderSpec]
    root: Path
    work: Workplace
    advance: Advance

    def prepare(self) -> _Prepared:
        request = self._request()
        key = layout.preparation_request(request.dataset)
        self.work.store.put(key, request.model_dump_json().encode())
        progress = _Reported(request.dataset, self.advance)
        try:
            prepare_dataset(Preparation(self.work.store, request, self.work.process, progress))
        except (PreparationFailed, InvalidDataset, EncoderUnusable, EncoderMismatch) as error:
            raise InvalidSource(f"{self.source.name} {self._name}: {error}") from error
        manifest = read_dataset_manifest(self.work.store, request.dataset)
        assert manifest is not None
        parts: dict[Split, Sequence[Shard]] = {
            "train": manifest.shards,
            "test": manifest.evaluation_shards,
        }
        by_modality: dict[str, dict[Split, dict[str, np.ndarray]]] = {
            name: {} for name in self.pair.modalities
        }
        for split, shards in parts.items():
            for modality, by_id in zip(self.pair.modalities, _features_by_id(shards), strict=True):
                by_modality[modality][split] = by_id
        read = sum(len(by_split) for by_split in by_modality[self.pair.first].values())
        return _Prepared(by_modality, sum(len(self.rows[split]) for split in SPLITS) - read)

    @property
    def _name(self) -> str:
        return f"{self.pair.first}-{self.pair.second}"

    def _request(self) -> PrepareRequest:
        first, second = (self.specs[name] for name in self.pair.modalities)
        manifests = [self._write_manifest(split) for split in SPLITS]
        # Another file, release or encoder is another dataset; the same one is found as it was prepared.
        described = [path.read_text() for path in manifests] + [
            spec.model_dump_json() for spec in (first, second)
        ]
        digest = hashlib.sha256("\n".join(described).encode()).hexdigest()[:12]
        return PrepareRequest(
            dataset=f"ds-{digest}",
            request=0,
            owner="paper",
            model="paper",
            name=f"{self.source.name}-{self._name}",
            spec=_spec_of(self.pair, first, second),
            pair=self.pair,
            shards=({"uri": manifests[0].as_uri()},),
            evaluation_shards=({"uri": manifests[1].as_uri()},),
            max_bad_share=self.work.max_bad_share,
            encoders={self.pair.first: first, self.pair.second: second},
            allowed_prefixes=(self.root.resolve().as_uri(), self.work.folder.resolve().as_uri()),
        )

    def _write_manifest(self, split: Split) -> Path:
        path = (
            self.work.folder.resolve()
            / "manifests"
            / f"{self.source.name}-{self._name}-{split}.jsonl"
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        converted = self.work.folder.resolve() / "converted" / self.source.name
        lines = [
            json.dumps(manifest_row(row, self.pair, split, converted)) for row in self.rows[split]
        ]
        path.write_text("".join(f"{line}\n" for line in lines))
        return path


def manifest_row(row: Row, pair: ModalityPair, split: Split, converted: Path) -> dict[str, str]:
    """One line of a manifest: texts as they are, files by their address. Ids are unique over both splits."""
    line = {"id": f"{split}/{row.id}"}
    if row.label is not None:
        line["label"] = row.label
    for modality in pair.modalities:
        item = row.items[modality]
        if isinstance(item, Path):
            line[f"{modality}_file_name"] = readable(item, converted).resolve().as_uri()
        else:
            line[modality] = item
    return line


def readable(path: Path, converted: Path) -> Path:
    """The file, or a copy in a container that the product reads. Raises InvalidSource.

    UCF101's AVI files are copied into MP4, frame by frame, without being decoded.
    """
    if path.suffix.lower() not in _CONTAINERS:
        return path
    copy = converted / f"{path.parent.name}-{path.stem}.mp4"
    if not copy.is_file():
        converted.mkdir(parents=True, exist_ok=True)
        _remux(path, copy)
    return copy


def _remux(path: Path, copy: Path) -> None:
    unfinished = copy.with_suffix(".partial")
    try:
        with av.open(path, format="avi") as source, av.open(unfinished, "w", format="mp4") as out:
            stream = source.streams.video[0]
            target = out.add_stream_from_template(stream)
            for packet in source.demux(stream):
                if packet.dts is None:
                    continue
                # AVI has no times of showing. Its videos have no frames out of order.
                packet.pts = packet.dts if packet.pts is None else packet.pts
                packet.stream = target
                out.mux(packet)
    except (av.error.FFmpegError, IndexError, ValueError) as error:
        raise InvalidSource(
            f"{path} cannot be read as AVI, it may be half-downloaded: {error}"
        ) from error
    unfinished.replace(copy)


def _spec_of(pair: ModalityPair, first: EncoderSpec, second: EncoderSpec) -> ModelSpec:
    sides = zip(pair.modalities, (first, second), strict=True)
    modalities: dict[str, Any] = {
        name: {"width": spec.width, "encoder": spec.name} for name, spec in sides
    }
    return ModelSpec.model_validate(
        {"width": 2, "modalities": modalities, "training": {"batch_size": 2}}
    )


def _features_by_id(shards: Sequence[Shard]) -> list[dict[str, np.ndarray]]:
    """Features of both sides by the id of the row, without the name of its split."""
    found: list[dict[str, np.ndarray]] = [{}, {}]
    for shard in shards:
        store, key = locate(shard.uri)
        table = pq.read_table(pa.BufferReader(store.read(key)))
        ids = [name.partition("/")[2] for name in table.column("id").to_pylist()]
        for by_id, column in zip(found, FEATURES, strict=True):
            by_id |= dict(zip(ids, float32_rows(table.column(column)), strict=True))
    return found


class _Reported(DatasetProgress):
    """Progress that is passed on row by row."""

    def __init__(self, dataset: str, advance: Advance) -> None:
        super().__init__(dataset, 0)
        self._advance, self._counted = advance, dict[int, int]()

    def unit_in_work(self, index: int, rows: int) -> None:
        """See DatasetProgress."""
        super().unit_in_work(index, rows)
        self._count(index, rows)

    def unit_done(self, index: int, record: UnitRecord) -> None:
        """See DatasetProgress."""
        super().unit_done(index, record)
        self._count(index, record.rows)

    def _count(self, index: int, rows: int) -> None:
        before = self._counted.get(index, 0)
        if rows > before:
            self._counted[index] = rows
            self._advance(rows - before)
