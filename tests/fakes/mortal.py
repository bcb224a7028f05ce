"""A process that dies at its k-th contact with the outside world, before or after it took effect."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from sqlalchemy import Connection

from service.database.engine import Database
from service.launchers.port import Launcher, LaunchStatus
from workers.storage.port import ObjectStore, PresignedPut

T = TypeVar("T")


class Death(BaseException):
    """Not an Exception: nothing in the control plane may catch it and go on."""


class Lifeline:
    """Counts the moments at which the process could have died, and ends it at one of them."""

    def __init__(self, dies_at: int | None = None) -> None:
        self.moments = 0
        self._dies_at = dies_at

    def moment(self) -> None:
        """Die here, if it is time."""
        self.moments += 1
        if self.moments == self._dies_at:
            raise Death(f"at moment {self.moments} (on purpose)")

    def around(self, work: Callable[[], T]) -> T:
        """A call that may be the last: not done, or done and never heard of."""
        self.moment()
        answer = work()
        self.moment()
        return answer


class MortalDatabase(Database):
    """Dies before a transaction, before its commit, or after it."""

    def __init__(self, database: Database, lifeline: Lifeline) -> None:
        super().__init__(database.engine)
        self._lifeline = lifeline

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """See Database."""
        self._lifeline.moment()
        with super().write() as connection:
            yield connection
            self._lifeline.moment()
        self._lifeline.moment()


class MortalLauncher:
    """A launcher that is called by a dying process; it lives on itself."""

    def __init__(self, launcher: Launcher, lifeline: Lifeline) -> None:
        self._launcher = launcher
        self._lifeline = lifeline

    def submit(self, submission_id: str, command: Sequence[str]) -> None:
        """See the port."""
        self._lifeline.around(lambda: self._launcher.submit(submission_id, command))

    def status(self, submission_id: str) -> LaunchStatus:
        """See the port."""
        return self._lifeline.around(lambda: self._launcher.status(submission_id))

    def stop(self, submission_id: str) -> None:
        """See the port."""
        self._lifeline.around(lambda: self._launcher.stop(submission_id))


class MortalStore:
    """A store that is called by a dying process; what was written stays."""

    def __init__(self, store: ObjectStore, lifeline: Lifeline) -> None:
        self.uri = store.uri
        self._store = store
        self._lifeline = lifeline

    def read(self, key: str) -> bytes:
        return self._store.read(key)

    def stream(self, key: str) -> Iterator[bytes]:
        return self._store.stream(key)

    def download(self, key: str, path: Path) -> None:
        self._store.download(key, path)

    def size(self, key: str) -> int:
        return self._store.size(key)

    def put(self, key: str, data: bytes) -> None:
        self._lifeline.around(lambda: self._store.put(key, data))

    def create(self, key: str, data: bytes) -> None:
        self._lifeline.around(lambda: self._store.create(key, data))

    def upload(self, path: Path, key: str) -> None:
        self._lifeline.around(lambda: self._store.upload(path, key))

    def copy(self, source: str, target: str) -> None:
        self._lifeline.around(lambda: self._store.copy(source, target))

    def compose(self, parts: Sequence[str], target: str) -> None:
        self._lifeline.around(lambda: self._store.compose(parts, target))

    def presign_put(
        self, key: str, sha256_hex: str, size: int, seconds: int
    ) -> PresignedPut | None:
        return self._store.presign_put(key, sha256_hex, size, seconds)

    def keys(self, prefix: str) -> Iterator[str]:
        return self._store.keys(prefix)

    def folders(self, prefix: str) -> list[str]:
        return self._store.folders(prefix)

    def delete(self, key: str) -> None:
        self._lifeline.around(lambda: self._store.delete(key))
