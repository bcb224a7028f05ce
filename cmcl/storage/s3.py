"""`s3://` adapter through boto3: AWS S3 or any service with its API.

Credentials, region and endpoint come from boto3's own chain (AWS_ENDPOINT_URL, AWS_PROFILE, web
identity of a service account, ...): there is nothing to configure here.
"""

import base64
import logging
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import boto3
from boto3.exceptions import Boto3Error
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from cmcl.contract.errors import ObjectExists, ObjectNotFound, StorageUnavailable
from cmcl.storage.object_store import CHUNK_BYTES, PresignedPut, checked_key, checked_prefix

logger = logging.getLogger(__name__)

_CONFIG = Config(
    retries={"mode": "standard", "max_attempts": 5},
    connect_timeout=5,
    read_timeout=60,
    # Version 2, the default for links, does not sign length and digest.
    signature_version="s3v4",
)
# boto3's default session is not thread-safe; its clients are.
_MAKING_A_CLIENT = threading.Lock()
_NOT_FOUND = {"404", "NoSuchKey", "NotFound"}
_BEYOND_THE_END = {"416", "InvalidRange"}
_CONFLICT = {"409", "ConditionalRequestConflict"}
_TAKEN = {"412", "PreconditionFailed"} | _CONFLICT


class S3Store:
    """Objects are keys under `prefix` of a bucket."""

    def __init__(self, bucket: str, prefix: str = "", client: Any = None) -> None:
        self.bucket = bucket
        self.prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self.uri = f"s3://{bucket}/{self.prefix}".rstrip("/")
        self._client = client or _new_client()

    @property
    def endpoint_url(self) -> str:
        """The endpoint of boto3's configuration, for libraries that do not read it."""
        return str(self._client.meta.endpoint_url)

    @property
    def region(self) -> str:
        return str(self._client.meta.region_name)

    def read(self, key: str) -> bytes:
        with _translated(key):
            body: bytes = self._client.get_object(**self._at(key))["Body"].read()
            return body

    def stream(self, key: str) -> Iterator[bytes]:
        with _translated(key):
            return _chunks(self._client.get_object(**self._at(key))["Body"], key)

    def read_range(self, key: str, start: int, stop: int) -> bytes:
        with _translated(key):
            try:
                answer = self._client.get_object(**self._at(key), Range=f"bytes={start}-{stop - 1}")
            except ClientError as error:
                if _code_of(error) in _BEYOND_THE_END:
                    return b""
                raise
            body: bytes = answer["Body"].read()
            return body

    def download(self, key: str, path: Path) -> None:
        with _translated(key):
            self._client.download_file(self.bucket, self.prefix + checked_key(key), str(path))

    def size(self, key: str) -> int:
        with _translated(key):
            return int(self._client.head_object(**self._at(key))["ContentLength"])

    def put(self, key: str, data: bytes) -> None:
        with _translated(key):
            self._client.put_object(**self._at(key), Body=data)

    def create(self, key: str, data: bytes) -> None:
        with _translated(key):
            try:
                self._client.put_object(**self._at(key), Body=data, IfNoneMatch="*")
            except ClientError as error:
                if not (_was_unclear(error) and self._holds(key, data)):
                    raise

    def upload(self, path: Path, key: str) -> None:
        with _translated(key):
            self._client.upload_file(str(path), self.bucket, self.prefix + checked_key(key))

    def copy(self, source: str, target: str) -> None:
        with _translated(source):
            self._client.copy(self._at(source), self.bucket, self.prefix + checked_key(target))

    def compose(self, parts: Sequence[str], target: str) -> None:
        # S3 accepts no empty parts.
        sizes = {part: size for part in parts if (size := self.size(part))}
        if not sizes:
            self.put(target, b"")
            return
        with _translated(target), Multipart(self._client, self._at(target)) as upload:
            filled = [part for part in parts if part in sizes]
            if Multipart.can_copy([sizes[part] for part in filled]):
                for part in filled:
                    upload.copy(self._at(part))
            else:
                total = sum(sizes[part] for part in filled)
                upload.send((chunk for part in filled for chunk in self.stream(part)), total)

    def presign_put(self, key: str, sha256_hex: str, size: int, seconds: int) -> PresignedPut:
        digest = base64.b64encode(bytes.fromhex(sha256_hex)).decode()
        expires_at = datetime.now(UTC) + timedelta(seconds=seconds)
        with _translated(key):
            url = self._client.generate_presigned_url(
                "put_object",
                Params={**self._at(key), "ContentLength": size, "ChecksumSHA256": digest},
                ExpiresIn=seconds,
            )
        headers = {"content-length": str(size), "x-amz-checksum-sha256": digest}
        return PresignedPut("PUT", url, headers, expires_at)

    def keys(self, prefix: str) -> Iterator[str]:
        for page in self._pages(checked_prefix(prefix)):
            for entry in page.get("Contents", []):
                yield entry["Key"].removeprefix(self.prefix)

    def folders(self, prefix: str) -> list[str]:
        found = [
            entry["Prefix"].removeprefix(self.prefix + prefix).rstrip("/")
            for page in self._pages(checked_prefix(prefix), Delimiter="/")
            for entry in page.get("CommonPrefixes", [])
        ]
        return sorted(found)

    def delete(self, key: str) -> None:
        with _translated(key):
            self._client.delete_object(**self._at(key))

    def _holds(self, key: str, data: bytes) -> bool:
        """Whether the object has these bytes: then it was our own request that created it."""
        try:
            return self.size(key) == len(data) and self.read(key) == data
        except ObjectNotFound as error:
            raise StorageUnavailable(f"{key!r} is being written by another process") from error

    def _at(self, key: str) -> dict[str, str]:
        return {"Bucket": self.bucket, "Key": self.prefix + checked_key(key)}

    def _pages(self, prefix: str, **options: str) -> Iterator[dict[str, Any]]:
        paginator = self._client.get_paginator("list_objects_v2")
        with _translated(prefix):
            yield from paginator.paginate(
                Bucket=self.bucket, Prefix=self.prefix + prefix, **options
            )


def _new_client() -> Any:
    with _MAKING_A_CLIENT:
        return boto3.client("s3", config=_CONFIG)


def _code_of(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _was_unclear(error: ClientError) -> bool:
    """Whether our own request may have created the key: it was retried, or several were concurrent."""
    answer = error.response
    resent = answer.get("ResponseMetadata", {}).get("RetryAttempts", 0) > 0
    code = _code_of(error)
    return code in _CONFLICT or (resent and code in _TAKEN)


def _chunks(body: Any, key: str) -> Iterator[bytes]:
    """Yield the chunks of a body, then release the connection."""
    with _translated(key), closing(body):
        yield from body.iter_chunks(CHUNK_BYTES)


@contextmanager
def _translated(key: str) -> Iterator[None]:
    """Translate boto3's errors to storage errors."""
    try:
        yield
    except ClientError as error:
        code = _code_of(error)
        if code in _NOT_FOUND:
            raise ObjectNotFound(f"there is no object {key!r}") from error
        if code in _TAKEN:
            raise ObjectExists(f"{key!r} exists already") from error
        raise StorageUnavailable(f"{key!r}: {error}") from error
    # OSError: the local file of a download or upload, for instance on a full disk.
    except (BotoCoreError, Boto3Error, OSError) as error:
        raise StorageUnavailable(f"{key!r}: {error}") from error


# Limits of S3, in bytes. The smallest size does not apply to the last part.
SMALLEST_PART = 5 << 20
LARGEST_PART = 5 << 30
MOST_PARTS = 10_000


class Multipart:
    """A multipart upload, as a context manager: leaving it completes the object, an error aborts it.

    The object is complete or absent. `target`: bucket and key. Raises boto3's errors.
    """

    def __init__(self, client: Any, target: dict[str, str]) -> None:
        self._client = client
        self._target = target
        self._parts: list[dict[str, object]] = []
        self._upload: dict[str, str] = {}

    def __enter__(self) -> Self:
        answer = self._client.create_multipart_upload(**self._target)
        self._upload = {**self._target, "UploadId": answer["UploadId"]}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            self._abort()
            return
        try:
            self._client.complete_multipart_upload(
                **self._upload, MultipartUpload={"Parts": self._parts}
            )
        except BaseException:
            self._abort()
            raise

    @staticmethod
    def can_copy(sizes: Sequence[int]) -> bool:
        """Whether objects of these sizes, in bytes, are valid parts."""
        return (
            len(sizes) <= MOST_PARTS
            and all(size >= SMALLEST_PART for size in sizes[:-1])
            and all(size <= LARGEST_PART for size in sizes)
        )

    def copy(self, source: dict[str, str]) -> None:
        """Add a whole object as the next part, copied within the store."""
        number = len(self._parts) + 1
        answer = self._client.upload_part_copy(**self._upload, PartNumber=number, CopySource=source)
        self._parts.append({"PartNumber": number, "ETag": answer["CopyPartResult"]["ETag"]})

    def send(self, chunks: Iterable[bytes], total: int) -> None:
        """Upload `total` bytes in as many parts as needed."""
        for data in _joined(chunks, max(2 * SMALLEST_PART, -(-total // MOST_PARTS))):
            number = len(self._parts) + 1
            answer = self._client.upload_part(**self._upload, PartNumber=number, Body=data)
            self._parts.append({"PartNumber": number, "ETag": answer["ETag"]})

    def _abort(self) -> None:
        try:
            self._client.abort_multipart_upload(**self._upload)
        except (BotoCoreError, Boto3Error, ClientError) as error:
            # The error that led here is raised. The parts stay invisible; a lifecycle rule of the bucket
            # (AbortIncompleteMultipartUpload) removes them.
            logger.warning("%s: its parts could not be removed: %s", self._upload["Key"], error)


def _joined(chunks: Iterable[bytes], size: int) -> Iterator[bytes]:
    """The same bytes in pieces of at least `size`; the last piece may be smaller."""
    piece = bytearray()
    for chunk in chunks:
        piece += chunk
        if len(piece) >= size:
            yield bytes(piece)
            piece.clear()
    if piece:
        yield bytes(piece)
