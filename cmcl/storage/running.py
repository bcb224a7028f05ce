"""What running attempts show: keys of one folder, so that one listing has all of them.

    running/<attempt>_<sequence>_<figures of the progress>      the newest progress; its bytes are all of it
            <attempt>_ended                                     a candidate, a result or a failure has been written

<attempt> is its submission id. A listing of S3 has a thousand keys, for the price of one read. The figures are in the
name, so the control plane reads an object only where a note says why an attempt has not started. A writer puts the new
name, then deletes the earlier one; the highest sequence counts. Names are hints: what has been written under
`runs/<job>/a<attempt>/` counts.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import get_args

from cmcl.contract.errors import InvalidVersion
from cmcl.contract.job import Phase, Progress, submission_id
from cmcl.storage import layout
from cmcl.storage.documents import read_document, write_document
from cmcl.storage.object_store import ObjectStore

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_NO_NUMBERS = ("", "nan", "inf", "-inf")
# In the order of a name, after sequence, phase, time, and digest of the note.
_COUNTS = ("updates_done", "updates_total", "rows_done", "rows_total", "ranks", "resumed_at")
_FIGURES = (*("loss", "rows_per_second", "gradient_norm", "removed_share", "drift", "eta_seconds"),)
# After the figures: the milliseconds of these phases, as far as one was entered.
_TIMED = tuple(phase for phase in get_args(Phase) if phase not in ("waiting", "done"))
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True)
class Shown:
    """What the names of one attempt show. `name` is that of the newest progress, empty before the first."""

    name: str = ""
    has_ended: bool = False

    @property
    def note_digest(self) -> str:
        """Digest of the note, which is in the object; empty without one."""
        return self.name.split("_")[3] if self.name else ""

    def progress(self) -> Progress | None:
        """The progress without its note; None if there is none that can be read."""
        try:
            return decode_progress(self.name) if self.name else None
        except ValueError:
            # Progress is informational, and may have been written by another release.
            return None


def read_running(store: ObjectStore) -> dict[str, Shown]:
    """What all attempts show, by submission id. One listing."""
    found: dict[str, Shown] = {}
    for key in store.keys(layout.running()):
        attempt, _, name = key.removeprefix(layout.running()).partition("_")
        before = found.get(attempt, Shown())
        if name == layout.ENDED:
            found[attempt] = Shown(before.name, has_ended=True)
        else:
            # In lexical order: the highest sequence comes last.
            found[attempt] = Shown(name, before.has_ended)
    return found


def read_progress(store: ObjectStore, attempt: str, shown: Shown) -> Progress | None:
    """All of a progress, with its note; None if it cannot be read. Raises ObjectNotFound if it was replaced."""
    try:
        return read_document(store, layout.running_file(attempt, shown.name), Progress)
    except InvalidVersion:
        return None


def mark_ended(store: ObjectStore, job: str, attempt: int) -> None:
    """Show that a candidate, a result or a failure has been written. Call it afterwards."""
    store.put(layout.running_file(submission_id(job, attempt), layout.ENDED), b"")


def forget_running(store: ObjectStore, attempt: str) -> None:
    """Remove what an attempt shows."""
    for key in list(store.keys(layout.running_file(attempt, ""))):
        store.delete(key)


class ProgressWriter:
    """Writes the progress of one attempt. For one thread."""

    def __init__(self, store: ObjectStore, job: str, attempt: int) -> None:
        self._store = store
        self._attempt = submission_id(job, attempt)
        self._sequence = 0
        # Names of earlier progress; None before they were listed: another process may have written some.
        self._earlier: list[str] | None = None

    def write(self, progress: Progress) -> None:
        """Show this progress in place of the earlier one. Raises StorageUnavailable."""
        if self._earlier is None:
            self._earlier = self._listed()
            self._sequence = max((int(name.split("_")[0]) for name in self._earlier), default=0)
        self._sequence += 1
        name = encode_progress(self._sequence, progress)
        key = layout.running_file(self._attempt, name)
        write_document(self._store, key, progress)
        earlier, self._earlier = self._earlier, [*self._earlier, name]
        for each in earlier:
            self._store.delete(layout.running_file(self._attempt, each))
            self._earlier.remove(each)

    def _listed(self) -> list[str]:
        prefix = layout.running_file(self._attempt, "")
        names = (key.removeprefix(prefix) for key in self._store.keys(prefix))
        return [name for name in names if name != layout.ENDED]


def encode_progress(sequence: int, progress: Progress) -> str:
    """The name of a progress: at most 230 characters, of which none needs to be escaped in a URL.

    Whole numbers have base 36, so that it fits a file name.
    """
    note = "" if progress.note is None else hashlib.sha256(progress.note.encode()).hexdigest()[:8]
    figures = [
        *(_base_36(getattr(progress, name)) for name in _COUNTS),
        *(_rounded(getattr(progress, name)) for name in _FIGURES),
    ]
    at = _base_36((progress.at - _EPOCH) // _MICROSECOND)
    seconds = _encode_seconds(progress.seconds)
    return "_".join([f"{sequence:08d}", progress.phase, at, note, *figures, seconds])


def decode_progress(name: str) -> Progress:
    """The progress of a name, without its note. Raises ValueError."""
    _, phase, at, _, *figures, seconds = name.split("_")
    counts, rates = figures[: len(_COUNTS)], figures[len(_COUNTS) :]
    values: dict[str, object] = {
        field: int(text, 36) for field, text in zip(_COUNTS, counts, strict=True) if text
    }
    values |= {
        field: text for field, text in zip(_FIGURES, rates, strict=True) if text not in _NO_NUMBERS
    }
    return Progress.model_validate(
        {
            "phase": phase,
            "at": _EPOCH + int(at, 36) * _MICROSECOND,
            "seconds": _decode_seconds(seconds),
            **values,
        }
    )


def _encode_seconds(seconds: Mapping[Phase, float]) -> str:
    """Milliseconds of each phase up to the last one that was entered, empty for those between that were not."""
    entered = [
        _base_36(round(1000 * seconds[phase])) if phase in seconds else "" for phase in _TIMED
    ]
    return ".".join(entered).rstrip(".")


def _decode_seconds(text: str) -> dict[str, float]:
    return {
        phase: int(part, 36) / 1000
        for phase, part in zip(_TIMED, text.split("."), strict=False)
        if part
    }


def _rounded(value: float | None) -> str:
    """A number of seven digits without the sign of an exponent, which URLs escape; empty without one."""
    return "" if value is None else format(value, ".7g").replace("+", "")


def _base_36(value: int | None) -> str:
    """Digits of a whole number that is not negative; empty without one."""
    if value is None:
        return ""
    assert value >= 0, "it has no last digit"
    digits = ""
    while True:
        value, digit = divmod(value, 36)
        digits = _DIGITS[digit] + digits
        if not value:
            return digits
