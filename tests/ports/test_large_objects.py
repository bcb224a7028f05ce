"""Objects of any size: streamed, composed and sent by link, alike in every store."""

import base64
import hashlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from cmcl.contract.errors import ObjectNotFound
from cmcl.storage.object_store import CHUNK_BYTES, ObjectStore, PresignedPut
from cmcl.storage.s3 import SMALLEST_PART, Multipart

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


@pytest.mark.parametrize(
    "sizes",
    [
        [],
        [0],
        [7],
        [0, 7, 0],
        [3, CHUNK_BYTES, 2 * CHUNK_BYTES + 1],
        [SMALLEST_PART, SMALLEST_PART + 1, 3],
        [SMALLEST_PART, 3, SMALLEST_PART, 2 * SMALLEST_PART],
    ],
    ids=str,
)
def test_a_composition_is_its_parts_in_their_order(store: ObjectStore, sizes: list[int]) -> None:
    expected = b""
    for number, size in enumerate(sizes):
        data = bytes([65 + number]) * size
        store.put(f"parts/{number}", data)
        expected += data
    store.put("whole", b"to be overwritten")
    store.compose([f"parts/{number}" for number in range(len(sizes))], "whole")
    assert store.read("whole") == expected
    assert list(store.keys("parts/")) == [f"parts/{number}" for number in range(len(sizes))]


def test_a_part_may_come_twice_and_be_the_target(store: ObjectStore) -> None:
    store.put("a", b"ab")
    store.compose(["a", "a"], "a")
    assert store.read("a") == b"abab"


def test_only_parts_that_s3_takes_are_copied_there() -> None:
    assert Multipart.can_copy([SMALLEST_PART, SMALLEST_PART, 1])
    assert not Multipart.can_copy([SMALLEST_PART, 1, SMALLEST_PART])
    assert not Multipart.can_copy([SMALLEST_PART] * 10_001)
    assert not Multipart.can_copy([6 << 30])


def test_a_folder_gives_no_links(open_root: Callable[[str], ObjectStore]) -> None:
    store = open_root("store")
    link = store.presign_put("key", "0" * 64, 7, 60)
    assert (link is None) == store.uri.startswith("file:")


def presigned(tmp_path: Path, data: bytes) -> tuple[ObjectStore, PresignedPut]:
    from cmcl.storage.uris import open_store

    store = open_store(f"s3://contract-suite/{tmp_path.name}")
    link = store.presign_put("a/kä y", hashlib.sha256(data).hexdigest(), len(data), 60)
    assert link is not None
    return store, link


def test_a_link_is_all_that_an_upload_needs(s3_environment: str, tmp_path: Path) -> None:
    store, link = presigned(tmp_path, b"by link")
    answer = httpx.request(link.method, link.url, headers=dict(link.headers), content=b"by link")
    assert answer.status_code == 200
    assert store.read("a/kä y") == b"by link"
    assert timedelta(0) < link.expires_at - datetime.now(UTC) <= timedelta(seconds=60)


def test_length_and_digest_of_a_link_are_signed(s3_environment: str, tmp_path: Path) -> None:
    _, link = presigned(tmp_path, b"by link")
    digest = base64.b64encode(hashlib.sha256(b"by link").digest()).decode()
    assert link.headers == {"content-length": "7", "x-amz-checksum-sha256": digest}
    query = httpx.URL(link.url).params
    assert query["X-Amz-SignedHeaders"] == "content-length;host;x-amz-checksum-sha256"
    assert query["X-Amz-Expires"] == "60"
