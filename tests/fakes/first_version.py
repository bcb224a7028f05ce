"""A first version that later attempts start from. `preserve` solves the first dataset of two modalities, and trains later ones."""

import torch

from cmcl.contract.dataset import DatasetManifest
from cmcl.contract.job import JobSpec
from cmcl.contract.model import ModelSpec
from cmcl.storage import layout
from cmcl.storage.object_store import ObjectStore
from cmcl.storage.versions import publish_manifest, read_candidate
from workers.train.job import train_dataset


def publish_first(store: ObjectStore, spec: ModelSpec, dataset: DatasetManifest) -> None:
    """Learn a dataset in this process, as version 1 of its model."""
    job = JobSpec(
        job=f"{dataset.model}-first",
        attempt=1,
        model=dataset.model,
        version=1,
        parent=None,
        spec=spec,
        dataset=dataset,
    )
    store.put(layout.dataset_manifest(dataset.dataset), dataset.model_dump_json().encode())
    store.put(layout.run_spec(job.job, 1), job.model_dump_json().encode())
    train_dataset(store.uri, job.job, 1, torch.device("cpu"))
    publish_manifest(store, read_candidate(store, job.job, 1))
