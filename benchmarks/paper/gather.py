"""Features of all sources for one encoder: encoded here, or imported from the authors' caches; kept on disk."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from benchmarks.command_line import log_progress
from benchmarks.paper.families import ChosenEncoder
from benchmarks.paper.features import write_features
from benchmarks.paper.prepare import Workplace, encode_source
from benchmarks.paper.sources import SOURCES
from benchmarks.paper.sources.source import SPLITS, InvalidSource, Rows
from cmcl.contract.encoder import EncoderSpec

FeatureFile = tuple[str, str, str]
"""Source, path, and SHA-256 of a file of features."""


def read_sources(root: Path, names: Sequence[str], *, partial: bool) -> dict[str, Rows]:
    """Return the rows of all sources. Raises InvalidSource with every problem of every source."""
    found, problems = {}, []
    for name in names:
        try:
            found[name] = SOURCES[name].rows(root, partial=partial)
        except InvalidSource as error:
            problems.append(str(error))
    if problems:
        raise InvalidSource("\n".join(problems))
    return found


def gather(
    chosen: ChosenEncoder,
    specs: Mapping[str, EncoderSpec],
    root: Path,
    rows: Mapping[str, Rows],
    work: Workplace,
) -> list[FeatureFile]:
    """Encode what is not encoded yet. Raises InvalidSource."""
    paths = {
        name: work.folder / "features" / chosen.name / f"{name}-{_digest(of_source, specs)}.npz"
        for name, of_source in rows.items()
    }
    missing = {name: rows[name] for name, path in paths.items() if not path.is_file()}
    if missing:
        _encode(chosen, specs, root, missing, paths, work)
    return [described(name, path) for name, path in paths.items()]


def described(name: str, path: Path) -> FeatureFile:
    """A file of features with its digest."""
    with path.open("rb") as file:
        return name, str(path.resolve()), hashlib.file_digest(file, "sha256").hexdigest()


def _encode(
    chosen: ChosenEncoder,
    specs: Mapping[str, EncoderSpec],
    root: Path,
    missing: Mapping[str, Rows],
    paths: Mapping[str, Path],
    work: Workplace,
) -> None:
    with bar() as progress:
        for name, rows in missing.items():
            source = SOURCES[name]
            total = len(source.pairs) * sum(len(rows[split]) for split in SPLITS)
            task = progress.add_task(f"{chosen.name}: {name}", total=total)
            encoding = encode_source(
                source,
                rows,
                specs,
                root,
                work,
                lambda done, task=task: progress.advance(task, done),  # type: ignore[misc]
            )
            write_features(paths[name], encoding.features)
            if encoding.rejected:
                log_progress(f"{name}: {encoding.rejected} rows could not be used and are left out")


def bar() -> Progress:
    """A progress bar on stderr; none where that is no terminal."""
    console = Console(stderr=True)
    return Progress(console=console, disable=not console.is_terminal)


def _digest(rows: Rows, specs: Mapping[str, EncoderSpec]) -> str:
    """Digest over rows, their files (size and time of change), and the declarations of the encoders."""
    used = {modality for split in SPLITS for row in rows[split] for modality in row.items}
    described = [
        [
            [row.id, row.label, {name: _described(item) for name, item in row.items.items()}]
            for row in rows[split]
        ]
        for split in SPLITS
    ]
    declared = {name: specs[name].model_dump(mode="json") for name in sorted(used)}
    text = json.dumps([described, declared])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _described(item: str | Path) -> object:
    if isinstance(item, str):
        return item
    status = item.stat()
    return [str(item), status.st_size, status.st_mtime_ns]
