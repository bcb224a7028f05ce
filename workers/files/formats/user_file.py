"""A user's file that is being read, and the errors that any format can have."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cmcl.contract.errors import InvalidDataset, StorageUnavailable

# A file that expands beyond both of these is a decompression bomb: encoders' outputs hardly compress,
# and one picture with a few captions gives a factor of a few.
LARGEST_EXPANSION = 64
HARMLESS_BYTES = 1 << 30
# Errors of the machine, not of the file.
_MACHINE_ERRORS = {
    errno.EACCES,
    errno.EDQUOT,
    errno.EIO,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOENT,
    errno.ENOMEM,
    errno.ENOSPC,
    errno.EPERM,
    errno.EROFS,
    errno.ESTALE,
}


@dataclass(frozen=True)
class Side:
    """One side of a pair: its column, its modality, and the width that the model declares."""

    column: str
    modality: str
    width: int


@dataclass(frozen=True)
class UserFile:
    """A local copy of a user's file.

    `uri`: as the user named it. `sha256`: of the file. `sides`: of feature_a, then of feature_b.
    `left_out`: reasons by row, to which readers add; None: a row that cannot be converted is an error.
    """

    path: Path
    uri: str
    sha256: str
    sides: tuple[Side, Side]
    left_out: dict[int, str] | None = None

    def wrong(self, what: str) -> InvalidDataset:
        """An InvalidDataset error that names this file."""
        return InvalidDataset(f"{self.uri}: {what}")

    def leave_out(self, row: int, reason: str) -> None:
        """Note that a row cannot be converted. Raises InvalidDataset unless rows may be left out."""
        if self.left_out is None:
            raise self.wrong(reason)
        self.left_out.setdefault(row, reason)

    def check_width(self, side: Side, width: int, name: str) -> None:
        """Raises InvalidDataset if the model declares another width for that side."""
        if width != side.width:
            raise self.wrong(
                f"{name} has width {width}, the model declares {side.width} for {side.modality}"
            )


def check_expansion(unfolded: int, path: Path, uri: str) -> None:
    """Raises InvalidDataset if the declared size of a file is implausible for its packed size."""
    packed = path.stat().st_size
    if unfolded > max(LARGEST_EXPANSION * packed, HARMLESS_BYTES):
        raise InvalidDataset(
            f"{uri}: its {packed} bytes claim to unfold to {unfolded}; "
            f"more than {LARGEST_EXPANSION} times its size is not read"
        )


@contextmanager
def reading(uri: str, kind: str, *errors: type[Exception]) -> Iterator[None]:
    """Turn a library's errors about contents into InvalidDataset, and disk errors into
    StorageUnavailable."""
    expected: tuple[type[Exception], ...] = (OSError, *errors)
    try:
        yield
    except expected as error:
        # Libraries raise OSError for damaged contents too: without a number, or with EINVAL for an
        # offset before the start of the file.
        if isinstance(error, OSError) and error.errno in _MACHINE_ERRORS:
            raise StorageUnavailable(f"{uri}: its local copy: {error.strerror}") from error
        raise InvalidDataset(f"{uri}: it cannot be read as {kind}: {error}") from error
