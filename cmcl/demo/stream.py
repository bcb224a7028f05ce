"""A stream: a folder with `stream.json` and its Parquet files."""

import json
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from cmcl.contract.dataset import ShardRef
from cmcl.contract.modality import ModalityPair


@dataclass(frozen=True)
class StreamDataset:
    """A dataset of the stream."""

    name: str
    pair: ModalityPair
    train: Path
    evaluation: Path

    @property
    def shards(self) -> list[ShardRef]:
        return [ShardRef(uri=self.train.as_uri())]

    @property
    def evaluation_shards(self) -> list[ShardRef]:
        return [ShardRef(uri=self.evaluation.as_uri())]


@dataclass(frozen=True)
class Stream:
    """Datasets in order, and the width of each modality's features."""

    folder: Path
    modalities: dict[str, int]
    datasets: list[StreamDataset]

    def probe_rows(self, rows: int, datasets: int | None = None) -> dict[str, list[list[float]]]:
        """Return a few held-out features for queries, of every modality of the first datasets, or of all."""
        probes: dict[str, list[list[float]]] = {}
        for dataset in self.datasets[:datasets]:
            columns = zip(dataset.pair.modalities, ("feature_a", "feature_b"), strict=True)
            for modality, column in columns:
                if modality not in probes:
                    # Not `read_table`, for which pyarrow imports its datasets.
                    with pq.ParquetFile(dataset.evaluation) as file:
                        table = file.read(columns=[column]).slice(0, rows)
                    probes[modality] = table.column(column).to_pylist()
        return probes


def read_stream(folder: Path) -> Stream:
    """Read `stream.json`. Raises FileNotFoundError."""
    folder = folder.resolve()
    document = json.loads((folder / "stream.json").read_text(encoding="utf-8"))
    datasets = [
        StreamDataset(
            name=entry["name"],
            pair=ModalityPair.model_validate(entry["pair"]),
            train=folder / entry["train"]["file"],
            evaluation=folder / entry["evaluation"]["file"],
        )
        for entry in document["datasets"]
    ]
    return Stream(folder, document["modalities"], datasets)
