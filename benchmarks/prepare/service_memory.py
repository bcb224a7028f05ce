"""Memory of the control plane while large datasets are prepared.

The files are links to one file, so that ten large datasets need the disk space of one. They are dry runs: nothing
is trained.
"""

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import psutil

from benchmarks.training.reading import write_shards
from cmcl import Client
from cmcl.contract.model import ModelSpec
from cmcl.stack import LocalStack
from cmcl.stack_host import Ports

_MODEL, _WIDTH = "bench", 512
_BYTES_OF_ROW = 2 * 2 * _WIDTH
_SECONDS_BETWEEN_LOOKS = 0.2
_MIB, _GB = 1 << 20, 10**9


def service_memory(folder: Path, datasets: int, gigabytes: float) -> dict[str, float]:
    """Return the memory of the control plane in MiB before, while and after `datasets` are prepared.

    `gigabytes`: size of each. `growth_mb`: in MB, of the largest figure over the one before.
    """
    theirs = folder / "theirs"
    theirs.mkdir(parents=True)
    (shard,) = write_shards(theirs, 1, int(gigabytes * _GB) // _BYTES_OF_ROW, _WIDTH)
    first = theirs / "0.parquet"
    for number in range(1, datasets + 1):
        os.link(first, theirs / f"dataset-{number}.parquet")
    stack = LocalStack(folder / "stack", Ports.free(), ranks=1, allowed_prefixes=(theirs.as_uri(),))
    try:
        stack.prepare_folder()
        stack.start_ray()
        stack.start_service()
        stack.wait_for_ray()
        stack.wait_for_service()
        with Client(stack.service_url) as client:
            client.create_model(_MODEL, ModelSpec(width=64, modalities={"a": _WIDTH, "b": _WIDTH}))
            # Requests, the first preparation, and connections to Ray take memory once.
            _prepare(client, [first])
            service = psutil.Process(stack.processes["service"].pid)
            before = _memory(service)
            with _largest(service) as seen:
                _prepare(client, sorted(theirs.glob("dataset-*.parquet")))
            after = _memory(service)
    finally:
        stack.stop()
    return {
        "datasets": datasets,
        "gigabytes_of_each": shard.bytes / _GB,
        "before_mib": before,
        "largest_mib": max(seen),
        "after_mib": after,
        "growth_mb": (max(seen) - before) * _MIB / 10**6,
    }


def _prepare(client: Client, paths: list[Path]) -> None:
    """Prepare each file as a dataset, all of them at the same time."""

    def prepare(path: Path) -> None:
        found = client.dry_run(_MODEL, path.stem, ("a", "b"), [path.as_uri()])
        if found.report is None:
            raise RuntimeError(f"{path.name} was not prepared: {found.quarantine_reason}")

    with ThreadPoolExecutor(len(paths)) as threads:
        list(threads.map(prepare, paths))


def _memory(process: psutil.Process) -> float:
    """Return the private memory of a process in MiB."""
    return float(process.memory_full_info().uss / _MIB)


@contextmanager
def _largest(process: psutil.Process) -> Iterator[list[float]]:
    """Note the memory of a process some times a second, in another thread."""
    seen, has_ended = [_memory(process)], threading.Event()

    def look() -> None:
        while not has_ended.wait(_SECONDS_BETWEEN_LOOKS):
            seen.append(_memory(process))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        has_ended.set()
        thread.join()
