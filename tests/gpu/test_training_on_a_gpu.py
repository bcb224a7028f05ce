"""A GPU gives what the CPU gives: moments to rounding, heads closely, and bfloat16 learns too."""

from functools import partial

import pytest
import torch

from cmcl.contract.dataset import Shard
from cmcl.contract.modality import ModalityPair
from cmcl.contract.model import ModelSpec, TrainingSpec
from tests.fakes.feature_shards import write_pair_shards
from workers.model.heads import PairedRows
from workers.train.dataset import RowsOnDisk
from workers.train.distributed import World
from workers.train.learn import ModelState, Task, TrainingResult, initial_state, learn
from workers.train.rows import RowsInMemory, TrainingRows
from workers.train.run import Run, UpdateDone, Watcher

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here"),
]

PAIR = ModalityPair(first="image", second="text")
WIDTHS = {"image": 96, "text": 64}
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
TRAINING = TrainingSpec(epochs=4, batch_size=256)
SPEC = ModelSpec(
    width=48,
    modalities=WIDTHS,
    training=TRAINING,
    policy="preserve",
)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[Shard]:
    random = torch.Generator().manual_seed(0)
    shared = torch.randn(2000, 12, generator=random)
    first, second = (
        (shared @ torch.randn(12, width, generator=random) + 0.5).half().numpy()
        for width in WIDTHS.values()
    )
    folder = tmp_path_factory.mktemp("shards")
    return write_pair_shards(folder, first, second, [1200, 800], group_rows=300)


class Curve(Watcher):
    """The losses of all updates."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def update_done(self, update: UpdateDone) -> None:
        self.losses.append(float(update.local_loss))


def streamed(shards: list[Shard]) -> RowsOnDisk:
    return RowsOnDisk(shards, (WIDTHS["image"], WIDTHS["text"]))


def twice(
    rows: TrainingRows, device: torch.device, spec: ModelSpec = SPEC
) -> tuple[TrainingResult, TrainingResult, list[float]]:
    """A dataset, and the same again: solved, then trained under the mask, with shares and penalty."""
    curve = Curve()
    run = Run(device=device, watcher=curve)
    first = learn(spec, initial_state(spec), Task(PAIR, rows, 1), run)
    return first, learn(spec, first.model_state, Task(PAIR, rows, 2), run), curve.losses


def held(shards: list[Shard]) -> RowsInMemory:
    raw = streamed(shards).chunks(World(0, 1))
    parts = [(each.first_NI, each.second_NJ, each.first_keys_N, each.second_keys_N) for each in raw]
    return RowsInMemory(PairedRows(*(torch.cat(side) for side in zip(*parts, strict=True))))


@pytest.mark.parametrize("way", ["held", "streamed"])
def test_card_learns_what_the_host_learns(shards: list[Shard], way: str) -> None:
    rows = partial(held if way == "held" else streamed, shards)
    ours, theirs = twice(rows(), CUDA), twice(rows(), CPU)
    for one, other in zip(ours[:2], theirs[:2], strict=True):
        assert one.moments.cross_IJ.device == CPU
        torch.testing.assert_close(
            one.moments.cross_IJ, other.moments.cross_IJ, rtol=1e-5, atol=1e-4
        )
    torch.testing.assert_close(torch.tensor(ours[2]), torch.tensor(theirs[2]), rtol=1e-2, atol=1e-3)
    assert _gap(ours[0].model_state, theirs[0].model_state) < 1e-2


def test_bfloat16_products_learn_with_heads_of_float32(shards: list[Shard]) -> None:
    spec = SPEC.model_copy(
        update={"training": TRAINING.model_copy(update={"precision": "bfloat16"})}
    )
    _, exact, curve = twice(streamed(shards), CUDA)
    _, rough, rough_curve = twice(streamed(shards), CUDA, spec)
    assert all(weight.dtype == torch.float32 for weight in rough.model_state.heads.weights.values())
    assert torch.equal(exact.moments.cross_IJ, rough.moments.cross_IJ)
    assert rough_curve[-1] < 1.5 * curve[-1] + 0.05


def _gap(one: ModelState, other: ModelState) -> float:
    weights = zip(one.heads.weights.values(), other.heads.weights.values(), strict=True)
    return max(float((ours - theirs).abs().max()) for ours, theirs in weights)
