"""THE MAIN PATH: how one dataset becomes a candidate version. Read it top to bottom.

Every rank runs `train_dataset`; what they must agree on goes through `distributed`, and the leading
rank alone writes. With one process and no process group it is the same code.
"""

import hashlib
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version as installed_version

import torch

from workers.contract.errors import (
    InvalidDataset,
    ObjectExists,
    ObjectNotFound,
    TrainingDiverged,
)
from workers.contract.job import JobSpec
from workers.contract.version import LearnedDataset, Protection, VersionManifest, VersionReport
from workers.methods.port import UpdateSpace
from workers.methods.registry import method_for
from workers.model.artifact import save_heads, save_memory, save_moments, save_selftest
from workers.nullspace.moments import PairMoments, pair_moments
from workers.storage import layout
from workers.storage.port import ObjectStore
from workers.storage.uris import open_store
from workers.storage.versions import entry_for, read_candidate, write_candidate
from workers.train.data import TrainingRows, training_rows
from workers.train.distributed import World, broadcast, share_of, sum_moments, world
from workers.train.lineage import Parent, certify, evaluate, read_parent
from workers.train.loop import PairTask, Trained, train_pair
from workers.train.report import Reporter, leave_failure


def train_dataset(store_uri: str, job: str, attempt: int, device: torch.device) -> None:
    """Make the candidate of one attempt; one that is already complete is left as it is.

    Raises WorkerError, and leaves failure.json where another attempt would fail alike.
    """
    store = open_store(store_uri)
    spec = JobSpec.model_validate_json(store.read(layout.run_spec(job, attempt)))
    if _is_complete(store, spec):
        return
    try:
        _train(store, spec, world(), device)
    except (InvalidDataset, TrainingDiverged) as error:
        leave_failure(store, spec, error)
        raise


def _train(store: ObjectStore, spec: JobSpec, here: World, device: torch.device) -> None:
    reporter = Reporter(store, spec, here)

    reporter.enter("reading")
    parent = read_parent(store, spec)
    rows = training_rows(spec.dataset)

    reporter.enter("moments")
    moments = sum_moments(_local_moments(rows, here), here)
    spaces = method_for(spec.spec).update_spaces(parent.heads, parent.memory, spec.dataset.pair)
    _agree(spaces, here)

    reporter.enter("training")
    task = PairTask(parent.heads, spec.dataset.pair, spaces, spec.spec.training, _seed(spec))
    trained = train_pair(task, rows, here, device, reporter.update_done)
    _check_finite(trained, spec)
    if not here.leads:
        return

    reporter.enter("certifying")
    drift = certify(store, spec, parent, trained.heads)
    evaluation = evaluate(store, spec, parent, trained.heads)

    reporter.enter("writing")
    report = VersionReport(
        final_loss=trained.final_loss,
        updates=trained.updates,
        ranks=here.size,
        seconds=reporter.seconds,
        protection={modality: _protection(spec, space) for modality, space in spaces.items()},
        drift=drift,
        evaluation=evaluation,
    )
    _write(store, spec, parent, trained, moments, report)
    reporter.enter("done")


def _is_complete(store: ObjectStore, spec: JobSpec) -> bool:
    """A rank group that Ray restarted may find that its forerunner had finished."""
    try:
        read_candidate(store, spec.job, spec.attempt)
    except ObjectNotFound:
        return False
    return True


def _check_finite(trained: Trained, spec: JobSpec) -> None:
    """Raises TrainingDiverged: heads that are not finite must not become a version."""
    heads = (trained.heads.weights[modality] for modality in spec.dataset.pair.modalities)
    if math.isfinite(trained.final_loss) and all(bool(head.isfinite().all()) for head in heads):
        return
    training = spec.spec.training
    raise TrainingDiverged(
        f"the training diverged: the loss is {trained.final_loss} after {trained.updates} updates; "
        f"try a smaller training.learning_rate (now {training.learning_rate:g}) or a larger "
        f"training.temperature (now {training.temperature:g})"
    )


def _local_moments(rows: TrainingRows, here: World) -> PairMoments:
    own = share_of(len(rows), here)
    return pair_moments(rows.first_NI[own], rows.second_NJ[own])


def _agree(spaces: Mapping[str, UpdateSpace], here: World) -> None:
    """All ranks train in the leading rank's coordinates: two CPUs may round an eigenvector apart."""
    for space in spaces.values():
        broadcast([space.outputs.vectors_II, space.inputs.vectors_II, space.free_EI], here)


def _seed(spec: JobSpec) -> int:
    """The order of rows: another one for each version, the same for each attempt."""
    digest = hashlib.blake2b(f"{spec.spec.seed}/{spec.version}".encode(), digest_size=7)
    return int.from_bytes(digest.digest(), "big")


def _protection(spec: JobSpec, space: UpdateSpace) -> Protection:
    kept_energy = spec.spec.protection.kept_energy
    return Protection(
        input_rank=space.inputs.rank_at(kept_energy),
        input_width=space.inputs.width,
        output_rank=space.outputs.rank_at(kept_energy),
        output_width=space.outputs.width,
        blocked_share=1 - float(space.free_EI.double().mean()),
    )


def _write(
    store: ObjectStore,
    spec: JobSpec,
    parent: Parent,
    trained: Trained,
    moments: PairMoments,
    report: VersionReport,
) -> None:
    moments_file = save_moments(moments)
    files = {
        layout.HEADS: save_heads(trained.heads),
        layout.MEMORY: save_memory(parent.memory.with_dataset(spec.dataset.pair, moments)),
        layout.SELFTEST: save_selftest(trained.heads, spec.spec),
    }
    learned = LearnedDataset(
        dataset=spec.dataset.dataset,
        name=spec.dataset.name,
        pair=spec.dataset.pair,
        rows=moments.count,
        version=spec.version,
        moments=entry_for(moments_file),
        shard_digests=tuple(shard.sha256 for shard in spec.dataset.shards),
    )
    manifest = VersionManifest(
        model=spec.model,
        version=spec.version,
        parent=spec.parent,
        job=spec.job,
        attempt=spec.attempt,
        dataset=spec.dataset.dataset,
        spec=spec.spec,
        code_version=installed_version("cmcl"),
        created_at=datetime.now(UTC),
        files={name: entry_for(data) for name, data in files.items()},
        learned=(*parent.learned, learned),
        report=report,
    )
    try:
        write_candidate(store, manifest, {**files, layout.MOMENTS: moments_file})
    except ObjectExists:
        # Another rank group of this very attempt was first. The control plane checks every digest
        # before it publishes, so the worst outcome is one more attempt.
        print(f"attempt {spec.attempt} of {spec.job} had a candidate already", flush=True)
