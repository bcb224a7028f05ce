"""Decode files of requests in a bounded child process, whose crash does not affect the encoder.

A process of an encoder has one child for all its callers: code that took the child over could read files of
other callers until the child is replaced. The child reads no store and has no credentials in its environment.
"""

from collections.abc import Callable, Iterable
from typing import Any, Generic

import numpy as np

from cmcl.contract.encoder import EncoderSpec
from cmcl.contract.modality import Frozen
from workers.encoders.decoding import decode_item, decode_parts, thumbnail
from workers.encoders.media import packed, unpacked
from workers.encoders.parts import Part
from workers.encoders.port import FrozenEncoder, ItemT
from workers.sandbox.child import Child, ChildCrashed, ChildLimits, share_of_memory
from workers.sandbox.child_process import Frame, FrameWriter
from workers.serve.encoders.port import MOST_THUMBNAIL_BYTES, Raw, Wanted

_ITEM = "item"
# Libraries leak a little, so a child is replaced after this many files. The next one is started earlier.
_MOST_ITEMS = 2000
_START_AHEAD = 50
# Prefixes of variables with credentials of object stores.
_CREDENTIALS = ("AWS_", "AZURE_", "GOOGLE_")
# Share of `answer_seconds` for decoding, so that a client gets the reason instead of a timeout.
_SHARE_OF_TIME = 0.8


class DecodeFile(Frozen):
    """Request to decode the file `item` in the folder of the child, for the encoder of this declaration.

    `wanted`: each window that covers it separately, and thumbnails.
    """

    spec: EncoderSpec
    wanted: Wanted = Wanted(parts=False, thumbnails=False)


def decode_file(request: DecodeFile, output: FrameWriter) -> None:
    """Send the decoded file or its parts, or `{"reason"}` with a sentence for the user. Runs in the child."""
    file = (output.folder / _ITEM).read_bytes()
    try:
        parts: Iterable[Part[Any]] = [Part(decode_item(request.spec, file))]
        if request.wanted.parts:
            parts = decode_parts(request.spec, file)
        for part in parts:
            header, body = packed(part.of)
            small = thumbnail(part.of) if request.wanted.thumbnails else b""
            output.send(header | {"start": part.start, "end": part.end}, [*body, small])
    except ValueError as error:
        output.send({"reason": str(error)[:1000]})


Decoder = Callable[[DecodeFile, FrameWriter], None]


class FileReader(Generic[ItemT]):
    """Reads items of one encoder for a pass. Used from one thread at a time."""

    def __init__(self, encoder: FrozenEncoder[ItemT], decoder: Decoder = decode_file) -> None:
        """`decoder`: a top-level function that the child runs."""
        self._encoder = encoder
        self._decoder = decoder
        self._request = DecodeFile(spec=encoder.spec)
        self._seconds = _SHARE_OF_TIME * encoder.spec.answer_seconds
        self._child = self._start()
        self._next: Child | None = None

    def __call__(self, raw: Raw) -> ItemT:
        """Read one item. Raises ValueError with a sentence for the user; StorageUnavailable where no process starts."""
        if not isinstance(raw, bytes):
            return self._encoder.read(raw)
        (part,) = self._read(raw, self._request)
        return part.of

    def parts(self, file: bytes, wanted: Wanted) -> list[Part[ItemT]]:
        """Read a file, or the windows that cover it. Raises as reading an item does."""
        return self._read(file, self._request.model_copy(update={"wanted": wanted}))

    def _read(self, file: bytes, request: DecodeFile) -> list[Part[ItemT]]:
        child = self._fresh()
        (child.scratch.path / _ITEM).write_bytes(file)
        parts: list[Part[ItemT]] = []
        problem: ValueError | None = None
        try:
            for frame in child.run(self._decoder, request, self._seconds):
                # All frames are read, or the child would be ended.
                if problem is None:
                    try:
                        # Loaded one by one: only what a pass needs is kept of a long recording.
                        parts.append(self._part(frame))
                    except ValueError as error:
                        problem = error
        except ChildCrashed as error:
            child.start()  # Started now, so that the next item does not wait for it.
            raise ValueError(f"the decoder {error.reason}") from error
        if problem is not None:
            raise problem
        return parts

    def _part(self, frame: Frame) -> Part[ItemT]:
        if (reason := frame.header.get("reason")) is not None:
            raise ValueError(str(reason))
        try:
            size = frame.header["bytes"]
            decoded = unpacked(frame.header, memoryview(frame.body)[:size])
            small = bytes(frame.body[size:])
        except (LookupError, TypeError) as error:
            raise ValueError("the decoder sent no item") from error
        if isinstance(decoded, np.ndarray):
            raise ValueError("the decoder sent no item")  # noqa: TRY004 - an error of the child
        start, end = frame.header.get("start"), frame.header.get("end")
        if len(small) > MOST_THUMBNAIL_BYTES:
            raise ValueError("the decoder sent a thumbnail that is too large")
        return Part(self._encoder.load(decoded), start, end, small)

    def close(self) -> None:
        for child in (self._child, self._next):
            if child is not None:
                child.close()

    def _fresh(self) -> Child:
        """Return the child, which is replaced after some number of files."""
        if self._child.tasks == _MOST_ITEMS - _START_AHEAD:
            self._next = self._start()
        if self._next is not None and self._child.tasks >= _MOST_ITEMS:
            self._child.close()
            self._child, self._next = self._next, None
        return self._child

    def _start(self) -> Child:
        limits = ChildLimits(share_of_memory(), self._seconds, hidden=_CREDENTIALS)
        return Child(limits, preload=(self._decoder.__module__,))
