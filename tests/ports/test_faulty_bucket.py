"""A bucket that is slow, rejects, truncates or sends wrong bytes: every fault is detected and named."""

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import boto3
import pytest
from blake3 import blake3
from botocore.config import Config

from cmcl.contract.dataset import Shard, ShardRef
from cmcl.contract.errors import DigestMismatch, InvalidDataset, ObjectExists, StorageUnavailable
from cmcl.storage.object_store import CHUNK_BYTES
from cmcl.storage.s3 import S3Store
from cmcl.storage.versions import entry_for, read_blob, write_blob
from tests.fakes.faulty_bucket import (
    Fault,
    FaultyBucket,
    half_a_body,
    lost_answer,
    no_answer,
    other_bytes,
    slow_down,
)
from tests.fakes.feature_shards import fetch
from workers.files.shards import PIECE_BYTES, Scratch, open_verified

LARGE = bytes(range(256)) * 12_000


@pytest.fixture
def bucket(s3_environment: str) -> Iterator[FaultyBucket]:
    with FaultyBucket(s3_environment).running() as bucket:
        yield bucket


@pytest.fixture
def store(bucket: FaultyBucket, tmp_path: Path) -> S3Store:
    return opened(bucket, tmp_path.name, attempts=2)


@pytest.fixture
def short_timeout(bucket: FaultyBucket, tmp_path: Path) -> S3Store:
    """A store with a single attempt, as after the last of many."""
    return opened(bucket, tmp_path.name, attempts=1, read_timeout=0.3)


def opened(bucket: FaultyBucket, prefix: str, attempts: int, read_timeout: float = 20) -> S3Store:
    """`read_timeout`: seconds to wait for a response; short only where none will come."""
    config = Config(
        retries={"mode": "standard", "total_max_attempts": attempts},
        connect_timeout=20,
        read_timeout=read_timeout,
    )
    client = boto3.client("s3", endpoint_url=bucket.url, config=config)
    return S3Store("contract-suite", prefix, client)


def test_a_create_whose_response_was_lost_succeeds(bucket: FaultyBucket, store: S3Store) -> None:
    bucket.order("PUT", lost_answer)
    store.create("head", b"ours")
    assert sum(request.startswith("PUT") for request in bucket.requests) == 2
    assert store.read("head") == b"ours"


def test_a_create_that_was_resent_may_still_have_lost(bucket: FaultyBucket, store: S3Store) -> None:
    store.put("head", b"theirs")
    bucket.order("PUT", slow_down)
    with pytest.raises(ObjectExists, match="head"):
        store.create("head", b"ours")
    assert store.read("head") == b"theirs"


def test_the_same_bytes_from_another_writer_are_accepted(store: S3Store) -> None:
    store.create("head", b"equal")
    with pytest.raises(ObjectExists):
        store.create("head", b"equal")


@pytest.mark.parametrize("fault", [slow_down, lost_answer])
def test_one_fault_is_waited_out(bucket: FaultyBucket, store: S3Store, fault: Fault) -> None:
    store.put("key", b"x")
    bucket.order("GET", fault)
    assert store.read("key") == b"x"


def test_a_silent_connection_times_out(
    bucket: FaultyBucket, store: S3Store, tmp_path: Path
) -> None:
    store.put("key", b"x")
    bucket.order("GET", no_answer)
    assert opened(bucket, tmp_path.name, attempts=5, read_timeout=1).read("key") == b"x"


@pytest.mark.parametrize("fault", [slow_down, lost_answer, no_answer])
@pytest.mark.parametrize("use", ["read", "stream", "put", "create"])
def test_a_fault_that_stays_is_an_outage(
    bucket: FaultyBucket, short_timeout: S3Store, use: str, fault: Fault
) -> None:
    calls: dict[str, Callable[[], object]] = {
        "read": lambda: short_timeout.read("key"),
        "stream": lambda: b"".join(short_timeout.stream("key")),
        "put": lambda: short_timeout.put("key", b""),
        "create": lambda: short_timeout.create("key", b""),
    }
    bucket.order("GET", fault)
    bucket.order("PUT", fault)
    with pytest.raises(StorageUnavailable) as caught:
        calls[use]()
    assert caught.value.retry_can_help


def test_a_body_that_breaks_off_is_an_outage(bucket: FaultyBucket, store: S3Store) -> None:
    store.put("key", LARGE)
    for read in (lambda: store.read("key"), lambda: b"".join(store.stream("key"))):
        bucket.order("GET", half_a_body)
        with pytest.raises(StorageUnavailable, match="key"):
            read()


def test_what_came_before_a_break_is_right(bucket: FaultyBucket, store: S3Store) -> None:
    store.put("key", LARGE)
    found = b"".join(kept_until_the_break(bucket, store))
    assert len(found) >= CHUNK_BYTES
    assert LARGE.startswith(found)


def kept_until_the_break(bucket: FaultyBucket, store: S3Store) -> Iterator[bytes]:
    """The chunks received of a body that is cut in half."""
    bucket.order("GET", half_a_body)
    with contextlib.suppress(StorageUnavailable):
        yield from store.stream("key")


def test_other_bytes_than_promised_are_never_a_shard(
    bucket: FaultyBucket, store: S3Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", bucket.url)
    store.put("shard", LARGE)
    ref = ShardRef(uri=f"{store.uri}/shard", sha256=entry_for(LARGE).sha256)
    bucket.order("GET", other_bytes)
    with pytest.raises(InvalidDataset, match=f"expected {entry_for(LARGE).sha256}"):
        fetch(ref, tmp_path / "shard")


def test_a_verified_read_detects_wrong_bytes_from_the_bucket(
    bucket: FaultyBucket, store: S3Store
) -> None:
    entry = write_blob(store, LARGE)
    bucket.order("GET", other_bytes)
    with pytest.raises(DigestMismatch, match="not what its manifest promised"):
        read_blob(store, entry)


def test_a_write_in_pieces_that_failed_leaves_nothing(bucket: FaultyBucket, store: S3Store) -> None:
    bucket.order("PUT", slow_down, slow_down)
    with pytest.raises(StorageUnavailable), store.writer("whole", len(LARGE)) as writer:
        writer.write(LARGE)
    assert list(store.keys("whole")) == []
    client = boto3.client("s3", endpoint_url=bucket.server)
    assert "Uploads" not in client.list_multipart_uploads(Bucket="contract-suite")


def test_a_write_in_pieces_whose_block_raises_leaves_no_parts(
    bucket: FaultyBucket, store: S3Store
) -> None:
    with pytest.raises(TypeError), store.writer("whole", 10) as writer:
        writer.write(None)  # type: ignore[arg-type]
    client = boto3.client("s3", endpoint_url=bucket.server)
    assert "Uploads" not in client.list_multipart_uploads(Bucket="contract-suite")


def test_a_write_in_pieces_is_complete_or_absent(bucket: FaultyBucket, store: S3Store) -> None:
    bucket.order("POST", slow_down, slow_down)
    with pytest.raises(StorageUnavailable), store.writer("whole", 1) as writer:
        writer.write(b"x")
    with store.writer("whole", 1) as writer:
        writer.write(b"x")
    assert store.read("whole") == b"x"


def stored_shard(store: S3Store, data: bytes) -> Shard:
    store.put("shard", data)
    digests = {"sha256": hashlib.sha256(data).hexdigest(), "blake3": blake3(data).hexdigest()}
    return Shard(uri=f"{store.uri}/shard", bytes=len(data), rows=1, **digests)


def test_only_the_truncated_piece_of_a_shard_is_read_again(
    bucket: FaultyBucket, store: S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = bytes(range(256)) * (PIECE_BYTES // 256 + 1)
    shard = stored_shard(store, data)
    monkeypatch.setenv("AWS_ENDPOINT_URL", bucket.url)
    bucket.order("GET", half_a_body)
    with open_verified(shard, Scratch()).reading() as source:
        assert source.read() == data
    assert sum(request.startswith("GET") for request in bucket.requests) == 3


def test_a_shard_of_other_bytes_is_refused(
    bucket: FaultyBucket, store: S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = stored_shard(store, b"abcdef")
    monkeypatch.setenv("AWS_ENDPOINT_URL", bucket.url)
    bucket.order("GET", other_bytes)
    with pytest.raises(InvalidDataset, match="its BLAKE3 is"):
        open_verified(shard, Scratch())
    with pytest.raises(InvalidDataset, match="it has 6 bytes, expected 7"):
        open_verified(shard.model_copy(update={"bytes": 7}), Scratch())
    store.delete("shard")
    with pytest.raises(InvalidDataset, match="there is no such object"):
        open_verified(shard, Scratch())
