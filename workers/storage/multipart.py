"""An S3 object written in parts: complete once it is closed, and absent whatever happened before."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, Self

from boto3.exceptions import Boto3Error
from botocore.exceptions import BotoCoreError, ClientError

logger = logging.getLogger(__name__)

# What S3 permits: every part but the last has at least the first, none more than the second.
SMALLEST_PART = 5 << 20
LARGEST_PART = 5 << 30
MOST_PARTS = 10_000


class Multipart:
    """Opened with `with`: leaving it completes the object, an error takes everything back.

    `target`: bucket and key. Raises what boto3 raises.
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
        """Whether objects of these sizes, in bytes, can be parts as they are."""
        return (
            len(sizes) <= MOST_PARTS
            and all(size >= SMALLEST_PART for size in sizes[:-1])
            and all(size <= LARGEST_PART for size in sizes)
        )

    def copy(self, source: dict[str, str]) -> None:
        """A whole object as the next part, without its bytes coming here."""
        number = len(self._parts) + 1
        answer = self._client.upload_part_copy(**self._upload, PartNumber=number, CopySource=source)
        self._parts.append({"PartNumber": number, "ETag": answer["CopyPartResult"]["ETag"]})

    def send(self, chunks: Iterable[bytes], total: int) -> None:
        """`total` bytes from here, in as many parts as they need."""
        for data in _joined(chunks, max(2 * SMALLEST_PART, -(-total // MOST_PARTS))):
            number = len(self._parts) + 1
            answer = self._client.upload_part(**self._upload, PartNumber=number, Body=data)
            self._parts.append({"PartNumber": number, "ETag": answer["ETag"]})

    def _abort(self) -> None:
        try:
            self._client.abort_multipart_upload(**self._upload)
        except (BotoCoreError, Boto3Error, ClientError) as error:
            # What went wrong before matters more. The parts stay invisible; a lifecycle rule of the
            # bucket (AbortIncompleteMultipartUpload) removes them.
            logger.warning("%s: its parts could not be removed: %s", self._upload["Key"], error)


def _joined(chunks: Iterable[bytes], size: int) -> Iterator[bytes]:
    """The same bytes in pieces of at least `size`, the last of what is left."""
    piece = bytearray()
    for chunk in chunks:
        piece += chunk
        if len(piece) >= size:
            yield bytes(piece)
            piece.clear()
    if piece:
        yield bytes(piece)
