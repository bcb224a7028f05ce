"""A shard far away is read in pieces: how large it is makes no difference to memory."""

from contextlib import closing
from pathlib import Path

from tests.fakes.flaky_store import FlakyStore
from workers.storage.local import LocalStore
from workers.storage.verified import PIECE_BYTES, PIECES_AT_ONCE, pieces


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
