"""Objects of any size: read and written in pieces, alike in every store."""

import pytest

from cmcl.contract.errors import ObjectNotFound
from cmcl.storage.object_store import CHUNK_BYTES, ObjectStore
from cmcl.storage.s3 import Multipart
from cmcl.storage.uris import open_store

SIZES = [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 5 * CHUNK_BYTES + 3]


def patterned(size: int) -> bytes:
    """Bytes of which no two chunks are alike."""
    return (b"%9d" * (size // 9 + 1) % tuple(range(size // 9 + 1)))[:size] if size else b""


@pytest.mark.parametrize("size", SIZES)
def test_a_stream_gives_every_byte_in_chunks(store: ObjectStore, size: int) -> None:
    data = patterned(size)
    store.put("a/key", data)
    chunks = list(store.stream("a/key"))
    assert b"".join(chunks) == data
    assert all(0 < len(chunk) <= CHUNK_BYTES for chunk in chunks)


def test_a_range_has_its_bytes_and_ends_with_the_object(store: ObjectStore) -> None:
    data = patterned(1000)
    store.put("key", data)
    for start, stop in [(0, 1), (7, 500), (999, 1000), (990, 5000), (0, 1000)]:
        assert store.read_range("key", start, stop) == data[start:stop]
    assert store.read_range("key", 1000, 1001) == b""
    with pytest.raises(ObjectNotFound):
        store.read_range("other", 0, 1)


def test_a_stream_shows_the_object_as_it_was_opened(store: ObjectStore) -> None:
    data = patterned(3 * CHUNK_BYTES)
    store.put("key", data)
    chunks = store.stream("key")
    first = next(chunks)
    store.put("key", b"another object")
    assert first + b"".join(chunks) == data


def test_streams_of_one_object_do_not_disturb_each_other(store: ObjectStore) -> None:
    data = patterned(2 * CHUNK_BYTES)
    store.put("key", data)
    pairs = list(zip(store.stream("key"), store.stream("key"), strict=True))
    assert b"".join(one for one, _ in pairs) == b"".join(other for _, other in pairs) == data


@pytest.mark.parametrize("size", [1, CHUNK_BYTES, 5 << 20, 3 * (5 << 20) + 1])
def test_an_object_that_is_written_in_pieces_is_their_bytes(store: ObjectStore, size: int) -> None:
    data = patterned(size)
    store.put("whole", b"to be overwritten")
    with store.writer("whole", size) as writer:
        for start in range(0, size, 3 * CHUNK_BYTES // 2):
            writer.write(data[start : start + 3 * CHUNK_BYTES // 2])
        assert store.read("whole") == b"to be overwritten"
    assert store.read("whole") == data


def test_an_object_whose_block_raises_is_not_written(store: ObjectStore) -> None:
    store.put("kept", b"as it was")
    with pytest.raises(TypeError), store.writer("kept", 100) as writer:
        writer.write(None)  # type: ignore[arg-type]
    assert store.read("kept") == b"as it was"
    assert list(store.keys("")) == ["kept"]


def test_the_largest_object_has_no_more_parts_than_s3_takes(s3_environment: str) -> None:
    store = open_store("s3://contract-suite/parts")
    with store.writer("key", 10**12) as writer:
        assert isinstance(writer, Multipart)
        assert writer._part_bytes * 10_000 >= 10**12
        writer.write(b"x")
