"""The process that reads one HDF5 file for `hdf5_apart`: `python -m ... JSON`, an Arrow stream out."""

import resource
import sys
from collections.abc import Iterator

import pyarrow as pa

from workers.contract.errors import InvalidDataset, StorageUnavailable
from workers.storage.formats import hdf5
from workers.storage.formats.hdf5_apart import AS_JSON, UNAVAILABLE, WRONG

MOST_MEMORY = 8 << 30
MOST_SECONDS = 3600


def main(text: str) -> int:
    """Exit status: 0, WRONG or UNAVAILABLE."""
    file = AS_JSON.validate_json(text)
    try:
        _write(hdf5.read(file))
    except (InvalidDataset, StorageUnavailable) as error:
        sys.stderr.write(str(error).removeprefix(f"{file.uri}: ").replace("\n", " "))
        return WRONG if isinstance(error, InvalidDataset) else UNAVAILABLE
    except MemoryError:
        sys.stderr.write(f"reading it takes more than {MOST_MEMORY >> 30} GiB of memory")
        return WRONG
    return 0


def _write(batches: Iterator[pa.RecordBatch]) -> None:
    first = next(batches, None)
    if first is None:
        return
    with pa.ipc.new_stream(sys.stdout.buffer, first.schema) as stream:
        stream.write_batch(first)
        for batch in batches:
            stream.write_batch(batch)


def _limit() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (MOST_SECONDS, MOST_SECONDS))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    _limit()
    sys.exit(main(sys.argv[1]))
