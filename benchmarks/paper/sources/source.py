"""A source as its recipe describes it, and the checks that all recipes share."""

import csv
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from cmcl.contract.modality import ModalityPair

Split = Literal["train", "test"]
SPLITS: tuple[Split, ...] = ("train", "test")
# Missing files that a message names; it counts the rest.
_NAMED = 10


class InvalidSource(ValueError):
    """The files of a source cannot be used. The message has one line for each problem."""


@dataclass(frozen=True)
class Row:
    """One sample: its item of each modality, a text or a file. `label`: its class, also its text for Acc."""

    id: str
    items: Mapping[str, str | Path]
    label: str | None = None


@dataclass
class Problems:
    """Problems of a source, collected so that one message has all of them."""

    source: str
    found: list[str] = field(default_factory=list)

    def add(self, problem: str) -> None:
        """Add one sentence."""
        self.found.append(problem)

    def missing(self, files: Sequence[Path], what: str, of: int) -> None:
        """Add missing files, naming the first of them."""
        if not files:
            return
        more = f", and {len(files) - _NAMED} more" if len(files) > _NAMED else ""
        named = ", ".join(map(str, files[:_NAMED]))
        self.add(
            f"{len(files)} of {of} {what} are missing: {named}{more}; download the rest of them"
        )

    def raise_any(self) -> None:
        """Raise InvalidSource if there is any problem."""
        if self.found:
            raise InvalidSource("\n".join(f"{self.source}: {each}" for each in self.found))


Rows = Mapping[Split, list[Row]]


@dataclass(frozen=True)
class Source:
    """A recipe.

    `folder`: of the source below the root. `url`, `licence`: shown to the user; nothing is downloaded.
    `pairs`: pairs that are encoded; together they have each modality once, but for texts. `sizes`: least and
    most of the release that the paper used: "train" and "test" rows, "all" rows, "classes". `read`: rows of
    both splits, from the folder; it adds problems.
    """

    name: str
    title: str
    folder: str
    url: str
    licence: str
    pairs: tuple[ModalityPair, ...]
    sizes: Mapping[str, tuple[int, int]]
    read: Callable[[Path, Problems], Rows]

    @property
    def modalities(self) -> tuple[str, ...]:
        """All modalities, each once."""
        return tuple(dict.fromkeys(name for pair in self.pairs for name in pair.modalities))

    def rows(self, root: Path, *, partial: bool) -> Rows:
        """Return the rows of both splits, sorted by id; all files exist. `partial`: fewer rows than released are allowed.

        Raises InvalidSource with every problem.
        """
        problems, folder = Problems(self.name), root / self.folder
        require_folder(folder, problems, f"{self.title}, from {self.url}")
        problems.raise_any()
        found = self.read(folder, problems)
        problems.raise_any()
        self._check(found, problems, partial=partial)
        problems.raise_any()
        return {split: sorted(found[split], key=lambda row: row.id) for split in SPLITS}

    def _check(self, found: Rows, problems: Problems, *, partial: bool) -> None:
        for split in SPLITS:
            items = (item for row in found[split] for item in row.items.values())
            files = [item for item in items if isinstance(item, Path)]
            absent = [file for file in files if not file.is_file()]
            problems.missing(absent, f"files of the {split} rows", len(files))
            if not found[split]:
                problems.add(f"no {split} rows, at least 1 is needed")
        for what, (least, most) in self.sizes.items():
            count = _count(found, what)
            if count > most:
                problems.add(
                    f"{count} {_NOUNS[what]}, expected {most}: this is another release than the paper's "
                    f"({self.url})"
                )
            elif count < least and not partial:
                problems.add(
                    f"{count} {_NOUNS[what]}, expected {most}: download the rest, or use --partial to run on "
                    "what is there (the table is then not comparable)"
                )


_NOUNS = {"train": "train rows", "test": "test rows", "all": "rows", "classes": "classes"}


def _count(found: Rows, what: str) -> int:
    if what in SPLITS:
        return len(found["train" if what == "train" else "test"])
    rows = [row for split in SPLITS for row in found[split]]
    return len(rows) if what == "all" else len({row.label for row in rows})


def require_folder(folder: Path, problems: Problems, what: str) -> bool:
    """Whether a folder is there. If not, add a problem that names a folder that may have been renamed."""
    if folder.is_dir():
        return True
    parent = folder.parent
    while not parent.is_dir() and parent != parent.parent:
        parent = parent.parent
    others = sorted(path.name for path in parent.iterdir() if path.is_dir())[:_NAMED]
    beside = f"; {parent} has {', '.join(others)}: was it renamed?" if others else ""
    problems.add(f"the folder {folder} is missing ({what}){beside}")
    return False


def require_file(path: Path, problems: Problems, what: str) -> bool:
    """Whether a file is there. If not, add a problem."""
    if path.is_file():
        return True
    problems.add(f"the file {path} is missing ({what})")
    return False


def files_in(folder: Path, suffixes: Iterable[str]) -> list[Path]:
    """Files of a folder with one of these suffixes, sorted by name."""
    endings = tuple(suffixes)
    return sorted(path for path in folder.iterdir() if path.name.lower().endswith(endings))


def csv_rows(
    path: Path, columns: Sequence[str], problems: Problems, release: str
) -> Iterator[dict[str, str]]:
    """Rows of a CSV file by column. Adds a problem if a column is missing."""
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        absent = [name for name in columns if name not in (reader.fieldnames or ())]
        if absent:
            problems.add(
                f"{path}: column {absent[0]!r} is missing, found {reader.fieldnames}: expected {release}"
            )
            return
        yield from reader
