"""Checkpoints: an interrupted and resumed run gives the same bits as an uninterrupted one."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from benchmarks.baselines.feature_replay import FeatureReplay
from cmcl.contract.dataset import DatasetManifest, Shard
from cmcl.contract.job import JobSpec
from cmcl.contract.modality import ModalityPair
from cmcl.contract.model import ModalitySpec, ModelSpec, TrainingSpec
from cmcl.storage import layout
from cmcl.storage.local import LocalStore
from cmcl.storage.object_store import ObjectStore
from tests.fakes.feature_shards import write_pair_shards
from tests.fakes.flaky_store import FlakyStore
from workers.methods.method import Method
from workers.train.checkpoint import StoredCheckpoints
from workers.train.dataset import training_rows
from workers.train.distributed import SINGLE_PROCESS
from workers.train.learn import ModelState, Task, TrainingResult, initial_state, learn
from workers.train.run import Run, UpdateDone, Watcher

PAIR = ModalityPair(first="image", second="text")
WIDTHS = {"image": 12, "text": 9}
EACH_UPDATE = 1e-9


class Interrupted(Exception):
    """Simulates a killed process."""


@dataclass
class Interrupting(Watcher):
    """Ends the run after an update; notes where it had begun."""

    after: int = 0
    resumed_at: int = 0
    losses: list[float] = field(default_factory=list)

    def resumed(self, updates: int) -> None:
        self.resumed_at = updates

    def update_done(self, update: UpdateDone) -> None:
        self.losses.append(float(update.local_loss))
        if update.done == self.after:
            raise Interrupted


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[Shard]:
    random = torch.Generator().manual_seed(0)
    shared = torch.randn(200, 5, generator=random)
    first, second = (
        (shared @ torch.randn(5, width, generator=random) + 0.5).half().numpy()
        for width in WIDTHS.values()
    )
    folder = tmp_path_factory.mktemp("shards")
    return write_pair_shards(folder, first, second, [120, 80], group_rows=33)


def spec_for() -> ModelSpec:
    return ModelSpec(
        width=8,
        modalities=WIDTHS,
        policy="preserve",
        training=TrainingSpec(epochs=4, batch_size=32),
    )


def job_for(spec: ModelSpec, shards: list[Shard], attempt: int = 1) -> JobSpec:
    return JobSpec(
        job="job-1",
        attempt=attempt,
        model="m",
        version=2,
        parent=1,
        spec=spec,
        dataset=DatasetManifest(
            dataset="ds-1", model="m", name="one", pair=PAIR, shards=tuple(shards)
        ),
    )


def learned_by(
    store: ObjectStore,
    job: JobSpec,
    before: ModelState,
    watcher: Watcher,
    held_bytes: int,
    method: Method | None = None,
) -> TrainingResult:
    rows = training_rows(job.learns, job.spec, held_bytes)
    task = Task(job.learns.pair, rows, seed=3)
    with StoredCheckpoints(store, job, SINGLE_PROCESS, EACH_UPDATE) as checkpoints:
        run = Run(watcher=watcher, checkpoints=checkpoints)
        return learn(job.spec, before, task, run, method=method)


def tensors_of(learned: TrainingResult) -> dict[str, torch.Tensor]:
    known = learned.model_state
    return {
        **{f"head/{name}": weight for name, weight in known.heads.weights.items()},
        **{f"kept/{name}": tensor for name, tensor in known.method_state.items()},
        **{f"map/{name}": each.map for name, each in known.heads.conditioning.items()},
        "moments": learned.moments.cross_IJ,
        **{f"projections/{name}": each for name, each in learned.projections.items()},
        "loss": torch.tensor(learned.trained.final_loss),
    }


@pytest.mark.parametrize(
    ("baseline", "held_bytes"),
    [
        (None, 2**20),
        (None, 0),
        # It draws at random and keeps rows.
        (FeatureReplay, 2**20),
    ],
)
def test_interrupted_run_ends_with_the_bits_of_one_that_was_not(
    tmp_path: Path,
    shards: list[Shard],
    baseline: type[Method] | None,
    held_bytes: int,
) -> None:
    """Held rows and streamed ones, in a model that has learned the very pair before."""
    spec = spec_for()
    method = None if baseline is None else baseline.from_spec(spec)
    first = learn(
        spec,
        initial_state(spec),
        Task(PAIR, training_rows(job_for(spec, shards).learns, spec), 1),
        method=method,
    )
    store, job = LocalStore(tmp_path), job_for(spec, shards)
    for after in (5, 17):
        with pytest.raises(Interrupted):
            learned_by(store, job, first.model_state, Interrupting(after), held_bytes, method)
    last, whole = Interrupting(), Interrupting()
    found = tensors_of(learned_by(store, job, first.model_state, last, held_bytes, method))
    undisturbed = LocalStore(tmp_path / "undisturbed")
    expected = tensors_of(
        learned_by(undisturbed, job, first.model_state, whole, held_bytes, method)
    )
    # A checkpoint that is due while another is written is left out.
    assert 0 < last.resumed_at <= 17
    assert last.losses == whole.losses[last.resumed_at :]
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def test_a_modality_that_joins_continues_with_the_bits_of_one_that_was_not_interrupted(
    tmp_path: Path, shards: list[Shard]
) -> None:
    """Its head starts from weights that the parent version does not have."""
    joining = ModalityPair(first=PAIR.first, second="joining")
    widths = {**WIDTHS, "joining": WIDTHS[PAIR.second]}
    spec = spec_for().model_copy(
        update={"modalities": {name: ModalitySpec(width=width) for name, width in widths.items()}}
    )
    known = job_for(spec, shards)
    rows = training_rows(known.learns, spec)
    first = learn(spec, initial_state(spec), Task(PAIR, rows, 1)).model_state
    job = known.model_copy(update={"dataset": known.learns.model_copy(update={"pair": joining})})
    store = LocalStore(tmp_path / "store")
    with pytest.raises(Interrupted):
        learned_by(store, job, first, Interrupting(17), 2**20)
    last = Interrupting()
    found = tensors_of(learned_by(store, job, first, last, 2**20))
    expected = tensors_of(
        learned_by(LocalStore(tmp_path / "undisturbed"), job, first, Interrupting(), 2**20)
    )
    assert last.resumed_at > 0
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def parent_of(job: JobSpec) -> ModelState:
    """A model that has learned the pair before: the first time it is solved, without an update."""
    rows = training_rows(job.learns, job.spec)
    return learn(job.spec, initial_state(job.spec), Task(PAIR, rows, 1)).model_state


def interrupted(store: ObjectStore, job: JobSpec, after: int) -> list[str]:
    """The keys of the checkpoints that are left."""
    with pytest.raises(Interrupted):
        learned_by(store, job, parent_of(job), Interrupting(after), 2**20)
    return list(store.keys(layout.run_checkpoints(job.job, job.attempt)))


def resumed_at(store: ObjectStore, job: JobSpec) -> int:
    watcher = Interrupting()
    learned_by(store, job, parent_of(job), watcher, 2**20)
    return watcher.resumed_at


@pytest.fixture
def job(shards: list[Shard]) -> JobSpec:
    return job_for(spec_for(), shards)


def updates_in(key: str) -> int:
    return int(key.rpartition("/")[2].split("-")[0])


def test_last_two_checkpoints_are_kept(tmp_path: Path, job: JobSpec) -> None:
    keys = interrupted(LocalStore(tmp_path), job, after=15)
    assert 1 <= len(keys) <= 2
    assert updates_in(keys[-1]) <= 15


def test_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path: Path, job: JobSpec) -> None:
    store = LocalStore(tmp_path)
    older = interrupted(store, job, after=8)[-1]
    whole = store.read(older)
    newer = layout.run_checkpoint("job-1", 1, updates_in(older) + 1, "f" * 64)
    store.put(newer, whole)
    cut = layout.run_checkpoint("job-1", 1, updates_in(older) + 2, older[-76:-12])
    store.put(cut, whole[:-1])
    assert resumed_at(store, job) == updates_in(older)


def test_the_next_attempt_resumes_from_the_checkpoint_of_its_spec(
    tmp_path: Path, job: JobSpec
) -> None:
    store = LocalStore(tmp_path)
    key = interrupted(store, job, after=8)[-1]
    again = job.model_copy(update={"attempt": 2, "resume_from": key})
    assert resumed_at(store, again) == updates_in(key)


def test_an_attempt_without_its_checkpoint_starts_over(tmp_path: Path, job: JobSpec) -> None:
    key = layout.run_checkpoint("job-1", 1, 7, "0" * 64)
    again = job.model_copy(update={"attempt": 2, "resume_from": key})
    assert resumed_at(LocalStore(tmp_path), again) == 0


def test_store_that_refuses_checkpoints_does_not_stop_the_training(
    tmp_path: Path, job: JobSpec, capsys: pytest.CaptureFixture[str]
) -> None:
    store = FlakyStore(LocalStore(tmp_path))
    store.broken = "checkpoints/"
    rows = training_rows(job.learns, job.spec)
    with StoredCheckpoints(store, job, SINGLE_PROCESS, EACH_UPDATE) as checkpoints:
        checkpoints.set_start({})
        checkpoints.save_if_due(1, lambda: {"done": torch.tensor(1)})
    assert "checkpoint after 1 updates was not written" in capsys.readouterr().out
    assert len(rows) == 200


def test_notice_that_a_node_goes_makes_a_checkpoint_due(tmp_path: Path, job: JobSpec) -> None:
    """Not again at once: training continues between checkpoints."""
    store, notices = LocalStore(tmp_path), [False, True]
    with StoredCheckpoints(store, job, SINGLE_PROCESS, 1000.0, lambda: notices[-1]) as checkpoints:
        checkpoints.set_start({})
        checkpoints._taken_at -= 10
        checkpoints.save_if_due(1, lambda: {"done": torch.tensor(1)})
        checkpoints.save_if_due(2, lambda: {"done": torch.tensor(2)})
    assert [updates_in(key) for key in store.keys("runs/")] == [1]


def test_what_trains_on_is_not_what_is_written(tmp_path: Path, job: JobSpec) -> None:
    """The state is copied before the next update changes it."""
    store, moving = LocalStore(tmp_path), torch.zeros(3)
    with StoredCheckpoints(store, job, SINGLE_PROCESS, EACH_UPDATE) as checkpoints:
        checkpoints.set_start({})
        checkpoints.save_if_due(1, lambda: {"value": moving})
        moving += 1
    saved = StoredCheckpoints(store, job, SINGLE_PROCESS, 60).newest(SINGLE_PROCESS)
    assert saved is not None
    assert torch.equal(saved["value"], torch.zeros(3))
