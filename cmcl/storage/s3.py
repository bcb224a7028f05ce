"""`s3://` adapter through boto3: AWS S3 or any service with its API.

Credentials, region and endpoint come from boto3's own chain (AWS_ENDPOINT_URL, AWS_PROFILE, web
identity of a service account, ...): there is nothing to configure here.
"""

import logging
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import boto3
from boto3.exceptions import Boto3Error
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from cmcl.contract.errors import ObjectExists, ObjectNotFound, StorageUnavailable
from cmcl.storage.object_store import CHUNK_BYTES, checked_key, checked_prefix

logger = logging.getLogger(__name__)

_CONFIG = Config(
    retries={"mode": "standard", "max_attempts": 5},
    connect_timeout=5,
    read_timeout=60,
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

    @contextmanager
    def writer(self, key: str, size: int) -> Iterator["Multipart"]:
        part_bytes = max(_SMALLEST_PART, -(-size // _MOST_PARTS))
        with _translated(key), Multipart(self._client, self._at(key), part_bytes) as upload:
            yield upload

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


# Limits of S3. The smallest size does not apply to the last part.
_SMALLEST_PART = 5 << 20
_MOST_PARTS = 10_000


class Multipart:
    """A multipart upload, as a context manager: leaving it completes the object, an error aborts it.

    The object is complete or absent. `target`: bucket and key. Raises boto3's errors.
    """

    def __init__(self, client: Any, target: dict[str, str], part_bytes: int) -> None:
        self._client = client
        self._target = target
        self._part_bytes = part_bytes
        self._waiting = bytearray()
        self._parts: list[dict[str, object]] = []
        self._upload: dict[str, str] = {}

    def __enter__(self) -> Self:
        answer = self._client.create_multipart_upload(**self._target)
        self._upload = {**self._target, "UploadId": answer["UploadId"]}
        return self

    def write(self, data: bytes) -> None:
        """Add bytes; a part is sent when it is full."""
        self._waiting += data
        if len(self._waiting) >= self._part_bytes:
            self._send()

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
            if self._waiting:
                self._send()
            self._client.complete_multipart_upload(
                **self._upload, MultipartUpload={"Parts": self._parts}
            )
        except BaseException:
            self._abort()
            raise

    def _send(self) -> None:
        number, data = len(self._parts) + 1, bytes(self._waiting)
        self._waiting.clear()
        answer = self._client.upload_part(**self._upload, PartNumber=number, Body=data)
        self._parts.append({"PartNumber": number, "ETag": answer["ETag"]})

    def _abort(self) -> None:
        try:
            self._client.abort_multipart_upload(**self._upload)
        except (BotoCoreError, Boto3Error, ClientError) as error:
            # The error that led here is raised. The parts stay invisible; a lifecycle rule of the bucket
            # (AbortIncompleteMultipartUpload) removes them.
            logger.warning("%s: its parts could not be removed: %s", self._upload["Key"], error)
