"""`python -m workers.merge_exports OURS THEIRS OUT`: merge two exports that have moments, without a control plane.

For sites that share neither a bucket nor rows.

Both versions are put into a temporary store, and the job of kind merge runs there as it does at one site
(workers/train/solve_again.py). The result is an export with moments again, so that a third site can be merged.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from pydantic import ValidationError

from cmcl.contract.errors import CannotCombine, WorkerError
from cmcl.contract.job import JobSpec, VersionRef
from cmcl.contract.version import VersionManifest
from cmcl.storage import layout
from cmcl.storage.documents import write_document
from cmcl.storage.local import LocalStore
from cmcl.storage.versions import entry_for, publish_manifest, read_candidate, write_blob
from workers.model.artifact import (
    check_selftest,
    load_centred_moments,
    load_heads,
    load_selftest,
    save_memory,
)
from workers.model.memory import Memory, in_order
from workers.serve.export.formats import (
    HEADS_FILE,
    MOMENTS_FOLDER,
    evaluation_matrix,
    export_files,
    moments_files,
    write_files,
)
from workers.train.job import train_dataset
from workers.train.versions import heads_files, memory_files, read_heads

_JOB = "merge"


@dataclass(frozen=True)
class MergedExports:
    """The version that was written. `drift`: by dataset, of its scores against the export that it comes from."""

    model: str
    version: int
    folder: str
    drift: Mapping[str, float]


def merge_exports(ours: Path, theirs: Path, output: Path) -> MergedExports:
    """Write the version that has learned the datasets of both exports to a new folder. Scores follow `ours`.

    Raises CannotCombine, InvalidVersion, OSError.
    """
    if output.exists():
        raise CannotCombine(f"{output} exists already; name a new folder")
    first, second = _read_manifest(ours), _read_manifest(theirs)
    _check_specifications(first, second)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".merge-") as folder:
        store = LocalStore(Path(folder, "store"))
        store.root.mkdir()
        parent = _put_version(store, ours, first, first.model)
        name = second.model if second.model != first.model else f"{second.model[:40]}-other"
        other = _put_version(store, theirs, second, name)
        merged = _merged(store, parent, other)
        whole = Path(folder, "export")
        files = export_files(
            merged,
            evaluation_matrix(store, merged),
            read_heads(store, merged),
            "safetensors",
            moments_files(store, merged),
        )
        with torch.inference_mode():
            write_files(files, whole)
        whole.replace(output)
    names = {line.dataset: f"{line.name} ({line.dataset})" for line in merged.learned}
    drift = {names[dataset]: each.since_learned for dataset, each in merged.report.drift.items()}
    return MergedExports(merged.model, merged.version, str(output), drift)


def _merged(store: LocalStore, parent: VersionManifest, other: VersionManifest) -> VersionManifest:
    modalities = {**other.spec.modalities, **parent.spec.modalities}
    job = JobSpec(
        job=_JOB,
        kind="merge",
        attempt=1,
        model=parent.model,
        version=parent.version + 1,
        parent=parent.version,
        spec=parent.spec.model_copy(update={"modalities": modalities}),
        merges=VersionRef(model=other.model, version=other.version),
        measures_all=True,
    )
    write_document(store, layout.run_spec(job.job, job.attempt), job)
    train_dataset(store.uri, job.job, job.attempt, torch.device("cpu"))
    candidate = read_candidate(store, job.job, job.attempt)
    publish_manifest(store, candidate)
    return candidate


# --- Read an export -----------------------------------------------------------------------------


def _read_manifest(export: Path) -> VersionManifest:
    """Read the manifest of an export. Raises CannotCombine if the folder cannot be merged."""
    try:
        manifest = VersionManifest.model_validate_json((export / layout.MANIFEST).read_bytes())
    except (OSError, ValidationError) as error:
        raise CannotCombine(f"{export} is no export of a version: {error}") from error
    if not (export / HEADS_FILE).is_file() or not (export / MOMENTS_FOLDER).is_dir():
        raise CannotCombine(
            f"{export} has no {HEADS_FILE} or no folder {MOMENTS_FOLDER}: export the version with --format safetensors "
            "--with-moments"
        )
    return manifest


def _check_specifications(first: VersionManifest, second: VersionManifest) -> None:
    """Check that both specifications agree. Raises CannotCombine, with the first field that differs."""
    ours, theirs = (
        each.spec.model_dump(mode="json", exclude={"modalities"}) for each in (first, second)
    )
    for field, value in ours.items():
        if value != theirs[field]:
            raise CannotCombine(
                f"the specifications differ in {field}: {value!r} and {theirs[field]!r}; it must be equal"
            )
    for name in sorted(first.spec.modalities.keys() & second.spec.modalities.keys()):
        one, other = first.spec.modalities[name], second.spec.modalities[name]
        if one.width != other.width:
            raise CannotCombine(
                f"the modality {name!r} has the widths {one.width} and {other.width}; they must be equal"
            )


def _put_version(
    store: LocalStore, export: Path, manifest: VersionManifest, model: str
) -> VersionManifest:
    """Store an export as the version of that model. Raises InvalidVersion, CannotCombine, OSError."""
    memory = Memory()
    for line in manifest.learned:
        data = (export / MOMENTS_FOLDER / f"{line.dataset}.safetensors").read_bytes()
        if entry_for(data) != line.moments:
            raise CannotCombine(
                f"{export}: the moments of dataset {line.name!r} are not those of the manifest (SHA-256)"
            )
        write_blob(store, data)
        sums = in_order(line.pair, load_centred_moments(data))
        memory = memory.with_sums(line.pair, sums, line.ridges, line.significant_directions)
    heads = load_heads([(export / HEADS_FILE).read_bytes()], manifest.spec)
    selftest = (export / layout.SELFTEST).read_bytes()
    # Raises InvalidVersion if the heads do not compute what the export promises.
    for modality, (features_BF, promised_BE) in load_selftest(
        selftest, manifest.spec.widths
    ).items():
        check_selftest(modality, heads.embed(modality, features_BF), promised_BE)
    files = {
        **heads_files(heads),
        layout.SELFTEST: selftest,
        **memory_files(save_memory(memory)),
    }
    # Heads of the versions before it are not exported, so drift is measured from this one.
    learned = tuple(
        line.model_copy(update={"reference": manifest.version}) for line in manifest.learned
    )
    stored = manifest.model_copy(
        update={
            "model": model,
            "files": {name: write_blob(store, data) for name, data in files.items()},
            "copied_from": None,
            "learned": learned,
        }
    )
    publish_manifest(store, stored)
    return stored


def main(arguments: Sequence[str] | None = None) -> int:
    """Merge two folders and print the result as one JSON document. Status 2: they cannot be merged."""
    parser = argparse.ArgumentParser(
        prog="python -m workers.merge_exports", description=merge_exports.__doc__
    )
    parser.add_argument("ours", type=Path, help="folder of an export; the scores follow its heads")
    parser.add_argument("theirs", type=Path, help="folder of the other one")
    parser.add_argument("out", type=Path, help="new folder to write")
    options = parser.parse_args(arguments)
    try:
        merged = merge_exports(options.ours, options.theirs, options.out)
    except (WorkerError, OSError) as error:
        print(f"workers.merge_exports: {error}", file=sys.stderr)
        return 2
    print(json.dumps(asdict(merged)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
