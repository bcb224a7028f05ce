"""`python -m workers.train.rerun`: train a model's datasets again with another method, without Ray.

For comparisons: it reads a model's lineage from the store, trains the same chain of datasets with one
rank in this process, and writes the versions to another store. The training shards must still exist.
The result does not depend on the number of ranks (tests/ranks).
"""

import argparse
from collections.abc import Iterator

import torch

from cmcl.contract.dataset import DatasetManifest
from cmcl.contract.job import JobSpec
from cmcl.contract.model import ModelSpec
from cmcl.contract.version import VersionManifest
from workers.storage import layout
from workers.storage.object_store import ObjectStore
from workers.storage.uris import open_store
from workers.storage.versions import publish_files, read_candidate, read_version
from workers.train.job import train_dataset


def rerun(
    source: ObjectStore, model: str, version: int, method: str, target: ObjectStore
) -> Iterator[VersionManifest]:
    """Train the datasets of `model@version` again; yields the manifest of each new version."""
    lineage = read_version(source, model, version)
    spec = ModelSpec.model_validate({**lineage.spec.model_dump(), "method": method})
    for number, learned in enumerate(lineage.learned, start=1):
        manifest = source.read(layout.dataset_manifest(learned.dataset))
        target.put(layout.dataset_manifest(learned.dataset), manifest)
        job = JobSpec(
            job=f"rerun-{number}",
            attempt=1,
            model=model,
            version=number,
            parent=number - 1 or None,
            spec=spec,
            dataset=DatasetManifest.model_validate_json(manifest),
        )
        yield _train(target, job)


def _train(store: ObjectStore, job: JobSpec) -> VersionManifest:
    store.put(layout.run_spec(job.job, job.attempt), job.model_dump_json().encode())
    train_dataset(store.uri, job.job, job.attempt, torch.device("cpu"))
    candidate = read_candidate(store, job.job, job.attempt)
    publish_files(store, candidate)
    return candidate


def main() -> None:
    """Print one manifest per line."""
    parser = argparse.ArgumentParser(prog="python -m workers.train.rerun", description=__doc__)
    parser.add_argument("--store", required=True, help="where the model is")
    parser.add_argument("--model", required=True)
    parser.add_argument("--version", type=int, required=True, help="last version of the chain")
    parser.add_argument("--method", required=True)
    parser.add_argument("--into", required=True, help="URI of an empty store for the new chain")
    options = parser.parse_args()
    source, target = open_store(options.store), open_store(options.into)
    for manifest in rerun(source, options.model, options.version, options.method, target):
        print(manifest.model_dump_json(), flush=True)


if __name__ == "__main__":
    main()
