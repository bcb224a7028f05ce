"""Folders in memory, for tests that flush files to disk thousands of times."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

_MEMORY = Path("/dev/shm")
# Containers often have 64 MB there.
_ENOUGH_BYTES = 1 << 30


@contextmanager
def memory_folder() -> Iterator[Path]:
    """An empty folder, in memory if possible, that is removed afterwards."""
    is_large = _MEMORY.is_dir() and shutil.disk_usage(_MEMORY).free >= _ENOUGH_BYTES
    parent = _MEMORY if is_large else None
    # A thread of a test may still write when the test has ended.
    with TemporaryDirectory(dir=parent, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """In place of pytest's own, which stays on the disk until three sessions later."""
    with memory_folder() as folder:
        yield folder
