"""Shards on the local disk: space is reserved before use, and a remote shard is copied in pieces.

Too little space fails at once, and memory does not depend on the size of a shard.
"""

import re
import shutil
import tempfile
from contextlib import closing
from pathlib import Path

import pytest

from cmcl.contract.errors import StorageUnavailable
from cmcl.storage.local import LocalStore
from tests.fakes.flaky_store import FlakyStore
from workers.files.shards import PIECE_BYTES, PIECES_AT_ONCE, Scratch, pieces

MIB = 1 << 20


def test_what_was_reserved_is_on_the_disk() -> None:
    with closing(Scratch().new_file()) as file:
        file.reserve(3 * MIB)
        file.reserve(MIB)
        assert file.seek(0, 2) == 3 * MIB


def test_a_disk_without_room_is_refused_before_anything_is_written() -> None:
    folder = tempfile.gettempdir()
    more = shutil.disk_usage(folder).free + (1 << 40)
    with (
        closing(Scratch().new_file()) as file,
        pytest.raises(
            StorageUnavailable,
            match=rf"{re.escape(folder)} has \d+ bytes free.*{more} more.*TMPDIR",
        ),
    ):
        file.reserve(more)


def test_files_share_the_limit_and_give_their_room_back() -> None:
    scratch = Scratch(limit=2 * MIB)
    with closing(scratch.new_file()) as one:
        one.reserve(MIB)
        with closing(scratch.new_file()) as other:
            with pytest.raises(StorageUnavailable, match="CMCL_SCRATCH_BYTES permits 2097152"):
                other.reserve(MIB + 1)
            other.reserve(MIB)
    with closing(scratch.new_file()) as after:
        after.reserve(2 * MIB)


def test_only_a_few_pieces_of_an_object_are_in_memory(tmp_path: Path) -> None:
    size = 100 * PIECE_BYTES + 7
    with (tmp_path / "key").open("wb") as file:
        file.truncate(size)  # Without a byte on the disk.
    store = FlakyStore(LocalStore(tmp_path))
    with closing(pieces(store, "key", size)) as found:
        assert len(next(found)) == PIECE_BYTES
        assert len(store.calls) <= PIECES_AT_ONCE
        next(found)
        assert len(store.calls) <= PIECES_AT_ONCE + 1


def test_pieces_are_the_object_in_its_order(tmp_path: Path) -> None:
    data = bytes(range(256)) * (PIECE_BYTES // 256) + b"the end"
    (tmp_path / "key").write_bytes(data)
    with closing(pieces(LocalStore(tmp_path), "key", len(data))) as found:
        assert b"".join(found) == data
