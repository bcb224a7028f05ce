"""TensorBoard: a folder of event files for each model, a step for each version.

TensorBoard shows no SVG, so the pictures are not there; the lineage is a text.
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

from cmcl.mirror.loop import MirrorError, Published, Target, optional_module

# Written after all other values of a version.
_LAST = "version"
_HEADER = struct.Struct("<QI")
_CHECKSUM_BYTES = 4


class TensorboardTarget(Target):
    """A log folder, with a folder for each model in it."""

    def __init__(self, folder: Path) -> None:
        self._tensorboard = optional_module("tensorboardX", "tensorboardX")
        self._events = optional_module("tensorboardX.proto.event_pb2", "tensorboardX")
        self._folder = folder
        self._writers: dict[str, Any] = {}

    def last_version(self, model: str) -> int | None:
        steps = [
            event.step
            for path in sorted((self._folder / model).glob("events.out.tfevents.*"))
            for event in self._read(path)
            if any(value.tag == _LAST for value in event.summary.value)
        ]
        return max(steps, default=0)

    def write_version(self, published: Published) -> None:
        model, version = published.model.name, published.version
        at = version.created_at.timestamp()
        try:
            if model not in self._writers:
                self._writers[model] = self._tensorboard.SummaryWriter(
                    str(self._folder / model),
                    # Two files of the same second would have the same name.
                    filename_suffix=f".{uuid4().hex}",
                )
            writer = self._writers[model]
            for name, value in published.metrics().items():
                writer.add_scalar(name, value, version.version, at)
            writer.add_text("lineage", _lineage(published), version.version, at)
            writer.add_scalar(_LAST, version.version, version.version, at)
            writer.flush()
        except OSError as error:
            raise MirrorError(f"cannot write to {self._folder}: {error}") from error

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()

    def _read(self, path: Path) -> Iterator[Any]:
        """Events of a file. A record that was cut off by a crash ends it."""
        data = path.read_bytes()
        start = 0
        while start + _HEADER.size <= len(data):
            length, _ = _HEADER.unpack_from(data, start)
            begin = start + _HEADER.size
            start = begin + length + _CHECKSUM_BYTES
            if start > len(data):
                return
            event = self._events.Event()
            event.ParseFromString(data[begin : begin + length])
            yield event


def _lineage(published: Published) -> str:
    rows = [
        f"| {line.version} | {line.name} | {line.pair} | {line.rows} | {line.dataset} |"
        for line in published.version.lineage
    ]
    return "\n".join(["| version | dataset | pair | rows | id |", "|---|---|---|---|---|", *rows])
