"""The process that reads one HDF5 file for `hdf5_apart`: `python -m ... JSON PARENT`, an Arrow stream out."""

import sys
from collections.abc import Iterator

import pyarrow as pa

from cmcl.contract.errors import InvalidDataset, StorageUnavailable
from workers.storage.bounds import bound, end_with
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
        sys.stderr.write("reading it takes more memory than one file may take")
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


if __name__ == "__main__":
    end_with(int(sys.argv[2]))
    bound(MOST_MEMORY, MOST_SECONDS)
    sys.exit(main(sys.argv[1]))
