"""THE MAIN PATH: how one dataset becomes a candidate version. Read it top to bottom.

Every rank runs `train_dataset`; what they must agree on goes through `distributed`, and the leading
rank alone writes. With one process and no process group it is the same code.
"""

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import closing
from datetime import UTC, datetime
from importlib.metadata import version as installed_version

import torch

from cmcl.contract import DISTRIBUTION
from cmcl.contract.errors import HOPELESS, ObjectExists, ObjectNotFound
from cmcl.contract.job import JobSpec
from cmcl.contract.version import LearnedDataset, VersionManifest, VersionReport
from workers.methods.port import Lesson
from workers.methods.registry import method_for
from workers.model.artifact import (
    save_heads,
    save_kept,
    save_memory,
    save_moments,
    save_selftest,
)
from workers.storage import layout
from workers.storage.patience import patiently
from workers.storage.port import ObjectStore
from workers.storage.scratch import Scratch
from workers.storage.uris import open_store
from workers.storage.verified import check_room
from workers.storage.versions import entry_for, read_candidate, write_candidate
from workers.train.certify import Earlier, capacities, certificates, own_earlier, protections
from workers.train.checkpoint import StoredCheckpoints
from workers.train.distributed import from_leader, meet, united, world
from workers.train.learn import Learned, Task, learn
from workers.train.lineage import Parent, evaluate, read_earlier, read_parent
from workers.train.notice import notice_given
from workers.train.report import Reporter, leave_failure
from workers.train.rows.dataset import training_rows
from workers.train.run import Run
from workers.train.settings import TrainSettings


def train_dataset(store_uri: str, job: str, attempt: int, device: torch.device) -> None:
    """Make the candidate of one attempt; one that is already complete is left as it is.

    Raises WorkerError, and leaves failure.json where another attempt would fail alike.
    """
    store = open_store(store_uri)
    key = layout.run_spec(job, attempt)
    spec = JobSpec.model_validate_json(patiently(lambda: store.read(key)))
    here = world()
    # A rank group that Ray restarted may find that its forerunner had finished.
    if from_leader(lambda: _is_complete(store, spec), here):
        return
    settings = TrainSettings()
    seconds, scratch = settings.checkpoint_seconds, Scratch(settings.scratch_bytes)
    try:
        with (
            Reporter(store, spec, here) as reporter,
            StoredCheckpoints(store, spec, here, seconds, notice_given) as checkpoints,
        ):
            run = Run(here, device, reporter, checkpoints)
            _train(store, spec, run, reporter, scratch)
    except HOPELESS as error:
        leave_failure(store, spec, error)
        raise


def _train(
    store: ObjectStore, spec: JobSpec, run: Run, reporter: Reporter, scratch: Scratch
) -> None:
    here = run.here
    # Refuses a method that is not installed before anything is read.
    method = method_for(spec.spec)
    reporter.enter("reading")
    parent = read_parent(store, spec)
    earlier = read_earlier(store, spec, parent)
    share = own_earlier(earlier, here)
    _check(share)
    check_room(spec.dataset.evaluation_shards, scratch)
    meet(here)
    # Copies of held-out rows need the room on the local disk that training rows have until here.
    with closing(training_rows(spec.dataset, spec.spec, scratch=scratch)) as rows:
        task = Task(spec.dataset.pair, rows, _seed(spec), earlier)
        learned = learn(spec.spec, parent.knowledge, task, run, method)

    reporter.enter("certifying")
    heads = learned.knowledge.heads
    own = certificates(share, parent.knowledge.heads, heads)
    meet(here)
    certified = united(own, here)
    if not here.leads:
        return

    evaluation = evaluate(store, spec, parent, heads, scratch)
    report = VersionReport(
        final_loss=learned.trained.final_loss,
        updates=learned.trained.updates,
        temperature=learned.trained.temperature,
        ranks=here.size,
        protection=protections(spec.spec, learned.spaces),
        drift={dataset: each.drift for dataset, each in certified.items()},
        quality={dataset: each.quality for dataset, each in certified.items()},
        capacity=capacities(spec.spec, _next_lessons(spec, parent, learned)),
        shrinkage=learned.shrinkage,
        recall_before=evaluation.before,
        evaluation=evaluation.now,
        not_evaluated=evaluation.missing,
        seconds=reporter.seconds,
    )

    reporter.enter("writing")
    _write(store, spec, parent, learned, report)
    reporter.enter("done")


def _check(share: Sequence[Earlier]) -> None:
    """Damage is found before the training, which may take hours. Raises StoreDamaged."""
    for one in share:
        one.read()


def _next_lessons(spec: JobSpec, parent: Parent, learned: Learned) -> Mapping[str, Lesson]:
    """What the next dataset of each modality would start from, if its pair came again."""
    pairs = [*(line.pair for line in parent.learned), spec.dataset.pair]
    latest = {modality: pair for pair in pairs for modality in pair.modalities}
    known = learned.knowledge
    return {
        modality: Lesson(
            known.heads, known.memory, known.kept, pair, spec.spec.training, spec.spec.seed
        )
        for modality, pair in latest.items()
    }


def _is_complete(store: ObjectStore, spec: JobSpec) -> bool:
    try:
        patiently(lambda: read_candidate(store, spec.job, spec.attempt))
    except ObjectNotFound:
        return False
    return True


def _seed(spec: JobSpec) -> int:
    """The order of rows: another one for each version, the same for each attempt."""
    digest = hashlib.blake2b(f"{spec.spec.seed}/{spec.version}".encode(), digest_size=7)
    return int.from_bytes(digest.digest(), "big")


def _write(
    store: ObjectStore,
    spec: JobSpec,
    parent: Parent,
    learned: Learned,
    report: VersionReport,
) -> None:
    moments_file = save_moments(learned.moments)
    knowledge = learned.knowledge
    files = {
        layout.HEADS: save_heads(knowledge.heads),
        layout.MEMORY: save_memory(knowledge.memory),
        layout.KEPT: save_kept(knowledge.kept),
        layout.SELFTEST: save_selftest(knowledge.heads, spec.spec),
    }
    line = LearnedDataset(
        dataset=spec.dataset.dataset,
        name=spec.dataset.name,
        pair=spec.dataset.pair,
        rows=learned.moments.count,
        version=spec.version,
        moments=entry_for(moments_file),
        shard_digests=tuple(shard.sha256 for shard in spec.dataset.shards),
        recall=report.evaluation.get(spec.dataset.dataset),
    )
    manifest = VersionManifest(
        model=spec.model,
        version=spec.version,
        parent=spec.parent,
        job=spec.job,
        attempt=spec.attempt,
        dataset=spec.dataset.dataset,
        spec=spec.spec,
        code_version=installed_version(DISTRIBUTION),
        created_at=datetime.now(UTC),
        files={name: entry_for(data) for name, data in files.items()},
        learned=(*parent.learned, line),
        report=report,
    )
    try:
        write_candidate(store, manifest, {**files, layout.MOMENTS: moments_file})
    except ObjectExists:
        # Another rank group of this very attempt was first. The control plane checks every digest
        # before it publishes, so the worst outcome is one more attempt.
        print(f"attempt {spec.attempt} of {spec.job} had a candidate already", flush=True)
