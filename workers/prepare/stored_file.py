"""Files of users in object storage, read by ranges: files of a dataset, and files that its rows name."""

import hashlib
import io
from collections.abc import Mapping
from functools import cache, partial
from urllib.parse import quote

from cmcl.contract.dataset import ShardRef
from cmcl.contract.errors import InvalidDataset, InvalidUri, ObjectNotFound
from cmcl.storage.object_store import ObjectStore, retry_unavailable
from cmcl.storage.uris import locate, locate_allowed, open_store
from workers.files.scratch import pieces

_BUFFER_BYTES = 1 << 20
# Others have "//" behind their colon.
_SCHEMES = ("file:", "s3:", "data:", "upload:")


class Locator:
    """Finds objects by address. Thread-safe; each store is opened once.

    `allowed`: permitted prefixes of addresses. `locations`: addresses of uploads in our own store.
    """

    def __init__(self, allowed: tuple[str, ...], locations: Mapping[str, str]) -> None:
        self._allowed, self._locations = allowed, locations
        self._opened = cache(open_store)

    def locate(self, uri: str) -> tuple[ObjectStore, str]:
        """Return the store and key of an address. Raises InvalidUri if it is not permitted."""
        location = self._locations.get(uri)
        if location is not None:
            return locate(location)
        return locate_allowed(uri, self._allowed, self._opened)

    def beside(self, file: str, name: str) -> str:
        """Return the address of a file that a row of `file` names: relative to `file`, or absolute.

        Raises InvalidUri for an absolute path, a name with `..`, and a name relative to an upload. `locate` checks
        other addresses.
        """
        if name in self._locations or "://" in name or name.startswith(_SCHEMES):
            return name
        if name.startswith("/"):
            raise InvalidUri(
                f"{name!r} is an absolute path: write file:///path, or a relative name"
            )
        if file in self._locations:
            raise InvalidUri(
                f"{name!r} is relative to an upload, which has no folder: write its address"
            )
        parts = [part for part in name.split("/") if part != "."]
        if ".." in parts:
            raise InvalidUri(f"{name!r} has '..': name files below the folder of the manifest")
        folder = file.rpartition("/")[0]
        plain = "/".join(parts)
        return f"{folder}/{quote(plain) if file.startswith('file:') else plain}"


class StoredFile:
    """A file of a dataset. Failed requests are retried.

    Its size is read once, and bytes that are added later are ignored. Raises InvalidDataset if the file does not
    exist or becomes shorter; InvalidUri; StorageUnavailable.
    """

    def __init__(self, ref: ShardRef, locator: Locator) -> None:
        self.ref, self.uri = ref, ref.uri
        self._store, self._key = locator.locate(ref.uri)
        try:
            self.size = retry_unavailable(partial(self._store.size, self._key))
        except ObjectNotFound as error:
            raise self.wrong("there is no such object") from error
        if not self.size:
            raise self.wrong("it is empty")

    def wrong(self, what: str) -> InvalidDataset:
        """Return an InvalidDataset error that names this file."""
        return InvalidDataset(f"{self.uri}: {what}")

    def changed(self) -> InvalidDataset:
        """Return the error of a file that has changed since it was planned."""
        return self.wrong("it changed while it was read; send the dataset again")

    def read_range(self, start: int, stop: int) -> bytes:
        """Return the bytes from `start` to `stop` or the end of the file."""
        stop = min(stop, self.size)
        if stop <= start:
            return b""
        try:
            data = retry_unavailable(partial(self._store.read_range, self._key, start, stop))
        except ObjectNotFound as error:
            raise self.changed() from error
        if len(data) != stop - start:
            raise self.changed()
        return data

    def check_digest(self) -> None:
        """Check the digest that the user gave, if any; reads all bytes. Raises InvalidDataset."""
        if self.ref.sha256 is None:
            return
        digest, left = hashlib.sha256(), self.size
        try:
            for piece in pieces(self._store, self._key, self.size):
                left -= len(piece)
                digest.update(piece)
        except ObjectNotFound as error:
            raise self.changed() from error
        if left:
            raise self.changed()
        self.compare_digest(digest.hexdigest())

    def compare_digest(self, found: str) -> None:
        """Raises InvalidDataset if the user gave another digest."""
        if self.ref.sha256 not in (None, found):
            raise self.wrong(f"its SHA-256 is {found}, expected {self.ref.sha256}")

    def opened(self) -> "OpenedFile":
        """Return a file object for reading by position."""
        return OpenedFile(self)

    def buffered(self, size: int = _BUFFER_BYTES) -> io.BufferedReader:
        """Return a buffered file object for small reads."""
        return io.BufferedReader(self.opened(), size)


class OpenedFile(io.RawIOBase):
    """A file that is read by position. Bytes that are read from first to last are digested on the way."""

    def __init__(self, file: StoredFile) -> None:
        super().__init__()
        self._file, self._place = file, 0
        self._digest, self._digested = hashlib.sha256(), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._file.size}[whence]
        self._place = max(0, origin + offset)
        return self._place

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer).cast("B")  # type: ignore[arg-type]
        data = self._file.read_range(self._place, self._place + len(view))
        view[: len(data)] = data
        if self._place == self._digested and self._file.ref.sha256 is not None:
            self._digest.update(data)
            self._digested += len(data)
        self._place += len(data)
        return len(data)

    def check_digest(self) -> None:
        """Check the digest that the user gave, if any. Call it when all bytes were read in order.

        Raises InvalidDataset.
        """
        if self._file.ref.sha256 is not None:
            self._file.compare_digest(self._digest.hexdigest())
