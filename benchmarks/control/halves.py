"""Split each of a stream's five datasets in half, to get ten small ones."""

from pathlib import Path

import pyarrow.parquet as pq

from cmcl.demo.stream import Stream, StreamDataset


def halves(stream: Stream, folder: Path) -> list[StreamDataset]:
    """Write the halves to `folder`. Return the first halves in order, then the second ones."""
    folder.mkdir(parents=True, exist_ok=True)
    return [
        StreamDataset(
            name=f"{dataset.name}-{'ab'[half]}",
            pair=dataset.pair,
            train=_half(dataset.train, half, folder),
            evaluation=_half(dataset.evaluation, half, folder),
        )
        for half in (0, 1)
        for dataset in stream.datasets
    ]


def _half(path: Path, half: int, folder: Path) -> Path:
    table = pq.read_table(path)
    middle = table.num_rows // 2
    part = table.slice(0, middle) if half == 0 else table.slice(middle)
    target = folder / f"{path.stem}-{half}.parquet"
    pq.write_table(part, target)
    return target
