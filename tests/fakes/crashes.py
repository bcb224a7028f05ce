"""A process that can crash, or get an error, at each call to the outside world.

A fault injector decides the outcome of a call: `FaultAtMoment` counts calls and fails one; the fault tests
have another one, which runs two processes alternately.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from sqlalchemy import Connection

from cmcl.contract.errors import StorageUnavailable
from cmcl.storage.object_store import ObjectStore, Writer
from service.core.errors import DatabaseUnavailable
from service.database.engine import Database
from service.launchers.port import (
    ClusterResources,
    Launcher,
    LauncherUnavailable,
    LaunchStatus,
    Submission,
)

T = TypeVar("T")


class Crash(BaseException):
    """Not an Exception: nothing in the control plane may catch it and continue."""


@dataclass(frozen=True)
class Contact:
    """One call. `error`: raised if the other side does not respond."""

    port: str
    method: str
    about: str
    error: type[Exception]
    has_effect: bool = True


class FaultInjector(Protocol):
    """Each may raise Death, or the contact's error."""

    def before(self, contact: Contact) -> None:
        """Called before the call."""
        ...

    def inside(self, contact: Contact) -> None:
        """Called inside a transaction: all statements were executed, nothing is committed."""
        ...

    def after(self, contact: Contact) -> None:
        """Called after the call, before its result is returned."""
        ...


def around(fate: FaultInjector, contact: Contact, work: Callable[[], T]) -> T:
    """Make a call that may fail before it, or after it without a reply."""
    fate.before(contact)
    answer = work()
    fate.after(contact)
    return answer


class FaultAtMoment:
    """Counts the moments around calls that have an effect, and fails at one of them.

    With `deadly` the process dies there; without, it gets an error as of a call without a reply, wrong
    where the effect took place: a lost reply.
    """

    def __init__(self, strikes_at: int | None = None, *, deadly: bool = True) -> None:
        self.moments = 0
        self.struck: str | None = None
        self._strikes_at = strikes_at
        self._deadly = deadly

    def begin_round(self) -> None:
        """Called before each round of the process, by tests that have rounds."""

    def before(self, contact: Contact) -> None:
        """See FaultInjector."""
        self._moment("before", contact)

    def inside(self, contact: Contact) -> None:
        """See FaultInjector."""
        self._moment("inside", contact)

    def after(self, contact: Contact) -> None:
        """See FaultInjector."""
        self._moment("after", contact)

    def _moment(self, when: str, contact: Contact) -> None:
        if not contact.has_effect:
            return
        self.moments += 1
        if self.moments != self._strikes_at:
            return
        self.struck = f"{when} {contact.port}.{contact.method}"
        words = f"{self.struck} {contact.about}, moment {self.moments} (on purpose)"
        raise (Crash if self._deadly else contact.error)(words)


class CrashingDatabase(Database):
    """A database that fails before a transaction, before its commit, or after it."""

    def __init__(self, database: Database, fate: FaultInjector) -> None:
        super().__init__(database.engine, database.writer_lock)
        self._fate = fate

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """See Database."""
        contact = Contact("database", "write", "", DatabaseUnavailable)
        self._fate.before(contact)
        with super().write() as connection:
            yield connection
            self._fate.inside(contact)
        self._fate.after(contact)

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """See Database."""
        self._fate.before(Contact("database", "read", "", DatabaseUnavailable, has_effect=False))
        with super().read() as connection:
            yield connection


class CrashingLauncher:
    """A launcher whose caller may die; the launcher itself continues."""

    def __init__(self, launcher: Launcher, fate: FaultInjector) -> None:
        self._launcher = launcher
        self._fate = fate

    def submit(self, submission: Submission) -> None:
        """See the port."""
        self._around("submit", submission.id, lambda: self._launcher.submit(submission))

    def statuses(self, submission_ids: Iterable[str]) -> dict[str, LaunchStatus]:
        """See the port."""
        wanted = list(submission_ids)
        about = ", ".join(wanted)
        return self._around("statuses", about, lambda: self._launcher.statuses(wanted))

    def stop(self, submission_id: str) -> None:
        """See the port."""
        self._around("stop", submission_id, lambda: self._launcher.stop(submission_id))

    def log(self, submission_id: str) -> str:
        """See the port."""
        return self._around("log", submission_id, lambda: self._launcher.log(submission_id))

    def resources(self) -> ClusterResources | None:
        """See the port."""
        self._fate.before(
            Contact("launcher", "resources", "", LauncherUnavailable, has_effect=False)
        )
        return self._launcher.resources()

    def forget(self, submission_id: str) -> None:
        """See the port."""
        self._around("forget", submission_id, lambda: self._launcher.forget(submission_id))

    def _around(self, method: str, submission_id: str, work: Callable[[], T]) -> T:
        contact = Contact("launcher", method, submission_id, LauncherUnavailable)
        return around(self._fate, contact, work)


class CrashingStore:
    """A store whose caller may die; written objects stay."""

    def __init__(self, store: ObjectStore, fate: FaultInjector) -> None:
        self.uri = store.uri
        self._store = store
        self._fate = fate

    def read(self, key: str) -> bytes:
        self._look("read", key)
        return self._store.read(key)

    def stream(self, key: str) -> Iterator[bytes]:
        self._look("stream", key)
        return self._store.stream(key)

    def read_range(self, key: str, start: int, stop: int) -> bytes:
        self._look("read_range", key)
        return self._store.read_range(key, start, stop)

    def download(self, key: str, path: Path) -> None:
        self._look("download", key)
        self._store.download(key, path)

    def size(self, key: str) -> int:
        self._look("size", key)
        return self._store.size(key)

    def put(self, key: str, data: bytes) -> None:
        self._around("put", key, lambda: self._store.put(key, data))

    def create(self, key: str, data: bytes) -> None:
        self._around("create", key, lambda: self._store.create(key, data))

    def upload(self, path: Path, key: str) -> None:
        self._around("upload", key, lambda: self._store.upload(path, key))

    @contextmanager
    def writer(self, key: str, size: int) -> Iterator[Writer]:
        with ExitStack() as stack:
            yield stack.enter_context(self._store.writer(key, size))
            self._around("writer", key, stack.pop_all().close)

    def keys(self, prefix: str) -> Iterator[str]:
        self._look("keys", prefix)
        return self._store.keys(prefix)

    def folders(self, prefix: str) -> list[str]:
        self._look("folders", prefix)
        return self._store.folders(prefix)

    def delete(self, key: str) -> None:
        self._around("delete", key, lambda: self._store.delete(key))

    def _look(self, method: str, key: str) -> None:
        contact = Contact("store", method, key, StorageUnavailable, has_effect=False)
        self._fate.before(contact)

    def _around(self, method: str, key: str, work: Callable[[], None]) -> None:
        around(self._fate, Contact("store", method, key, StorageUnavailable), work)
