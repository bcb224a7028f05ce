"""Read HDF5 in a child process with limits on memory and CPU time.

The HDF5 library is the only reader here that is known to crash on crafted files. A control plane that
crashes on one would crash again after every restart. The child runs `main`: it writes an Arrow stream
to its standard output, and errors in the file to its standard error.
"""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import IO

import pyarrow as pa
from pydantic import TypeAdapter

from cmcl.contract.errors import InvalidDataset, StorageUnavailable
from workers.files.formats.user_file import UserFile
from workers.files.process_limits import bound, end_with

# Exit statuses of the child. The last line of its standard error is the reason.
WRONG, UNAVAILABLE = 3, 4
MOST_MEMORY = 8 << 30
MOST_SECONDS = 3600
AS_JSON = TypeAdapter(UserFile)
_PACKAGES = Path(__file__).parents[3]
_PROGRAM = "workers.files.formats.hdf5_subprocess"
_LONGEST_COMPLAINT = 4000
# A crash or the time limit: another attempt at the same file would end in the same way.
_CAUSED_BY_FILE = {
    -number
    for number in (
        signal.SIGSEGV,
        signal.SIGABRT,
        signal.SIGBUS,
        signal.SIGFPE,
        signal.SIGILL,
        signal.SIGXCPU,
    )
}


def read(file: UserFile) -> Iterator[pa.RecordBatch]:
    """Batches in the internal form. Raises InvalidDataset, StorageUnavailable."""
    with tempfile.TemporaryFile() as complaints, _child(file, complaints) as child:
        try:
            broken = yield from _batches(child)
            _judge(child.wait(), complaints, file)
            if broken is not None:
                raise StorageUnavailable(f"{file.uri}: its reader broke off: {broken}")
        finally:
            # Also if the caller stops reading.
            child.kill()


def _child(file: UserFile, complaints: IO[bytes]) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-m", _PROGRAM, AS_JSON.dump_json(file), str(os.getpid())],
        cwd=_PACKAGES,
        # Disable loading of filter plugins.
        env={**os.environ, "HDF5_PLUGIN_PRELOAD": "::", "OPENBLAS_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=complaints,
        # Ctrl-C in a terminal must not reach the child: its exit status would blame the file.
        start_new_session=True,
    )


def _batches(
    child: "subprocess.Popen[bytes]",
) -> Generator[pa.RecordBatch, None, Exception | None]:
    """Yield what the child writes; return the error of the stream, if it is broken."""
    try:
        with pa.ipc.open_stream(child.stdout) as stream:
            yield from stream
    except pa.ArrowException as error:
        broken: Exception = error
        return broken
    return None


def _judge(status: int, complaints: IO[bytes], file: UserFile) -> None:
    if status == 0:
        return
    complaints.seek(0)
    lines = complaints.read()[-_LONGEST_COMPLAINT:].decode(errors="replace").strip().splitlines()
    words = lines[-1] if lines else "no message"
    if status == WRONG:
        raise file.wrong(words)
    if status > 0 and status != UNAVAILABLE:
        raise file.wrong(f"it cannot be read as HDF5: {words}")
    if status in _CAUSED_BY_FILE:
        raise file.wrong(f"it cannot be read as HDF5: the library ended by signal {-status}")
    raise StorageUnavailable(f"{file.uri}: its reader ended with {status}: {words}")


def main(text: str) -> int:
    """Runs in the child. Returns the exit status: 0, WRONG or UNAVAILABLE."""
    # The parent never loads the HDF5 library.
    from workers.files.formats import hdf5

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
