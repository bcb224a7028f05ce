"""Folders in memory, for tests that flush files to disk thousands of times."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

_MEMORY = Path("/dev/shm")
# Containers often have 64 MB there.
_ENOUGH_BYTES = 1 << 30
_PREFIX = "cmcl-tests-"


@contextmanager
def memory_folder() -> Iterator[Path]:
    """An empty folder, in memory if possible, that is removed afterwards."""
    _remove_abandoned()
    is_large = _MEMORY.is_dir() and shutil.disk_usage(_MEMORY).free >= _ENOUGH_BYTES
    parent, prefix = _MEMORY if is_large else None, f"{_PREFIX}{os.getpid()}-"
    # A thread of a test may still write when the test has ended.
    with TemporaryDirectory(prefix=prefix, dir=parent, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@cache
def _remove_abandoned() -> None:
    """Remove the folders of processes that were killed, once in a process."""
    for folder in _MEMORY.glob(f"{_PREFIX}*"):
        if not Path("/proc", folder.name.removeprefix(_PREFIX).partition("-")[0]).exists():
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """In place of pytest's own, which stays on the disk until three sessions later."""
    with memory_folder() as folder:
        yield folder
