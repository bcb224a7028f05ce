"""Every registered method trains the heads of one rank on two: real gloo processes, uneven batches."""

import pytest
import torch
from torch import Tensor

from benchmarks.baselines import BASELINES
from cmcl.contract.methods import BUILT_IN_METHODS, installed_methods
from cmcl.contract.modality import ModalityPair
from cmcl.contract.model import ModelSpec, TrainingSpec
from tests.ranks.processes import in_ranks
from workers.methods.registry import method_class, method_for
from workers.model.heads import PairedRows
from workers.train.distributed import World
from workers.train.learn import Task, initial_state, learn
from workers.train.rows import RowsInMemory
from workers.train.run import Run

METHODS = (*BUILT_IN_METHODS, *BASELINES, *installed_methods())
WIDTH, WIDTHS = 8, {"image": 12, "text": 7, "audio": 9}
ROWS, BATCH = 64, 21  # Two ranks do not divide a batch.
# The last pair was learned before, and both heads have a past.
STREAM = (("image", "text"), ("audio", "image"), ("text", "image"))


def scores_of_all(here: World) -> dict[str, Tensor]:
    """By method: scores of some rows after three datasets. Heads themselves may be turned by a rotation."""
    return {name: scores_of(name, here) for name in METHODS}


def scores_of(name: str, here: World) -> Tensor:
    spec = ModelSpec(
        width=WIDTH,
        lift=0,
        modalities=WIDTHS,
        method=name,
        training=TrainingSpec(epochs=2, batch_size=BATCH, learning_rate=3e-3),
    )
    method = (
        method_class(BASELINES[name]).from_spec(spec) if name in BASELINES else method_for(spec)
    )
    state = initial_state(spec)
    for number, (first, second) in enumerate(STREAM):
        task = Task(
            ModalityPair(first=first, second=second),
            RowsInMemory(rows_of(spec, first, second, number)),
            number,
        )
        state = learn(spec, state, task, Run(here), method).model_state
    probe = rows_of(spec, "image", "text", seed=9)
    image, text = (
        state.heads.embed("image", probe.first_NI),
        state.heads.embed("text", probe.second_NJ),
    )
    return image @ text.mT


def rows_of(spec: ModelSpec, first: str, second: str, seed: int) -> PairedRows:
    generator, keys = torch.Generator().manual_seed(seed), torch.arange(ROWS)
    shared = torch.randn(ROWS, 5, generator=generator)
    sides = [
        shared @ torch.randn(5, spec.widths[name], generator=generator)
        + 0.3 * torch.randn(ROWS, spec.widths[name], generator=generator)
        for name in (first, second)
    ]
    return PairedRows(sides[0], sides[1], keys, keys)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Tensor]]:
    return in_ranks(scores_of_all, 2, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("name", METHODS)
def test_two_ranks_score_as_one(ranks: list[dict[str, Tensor]], name: str) -> None:
    assert torch.equal(ranks[0][name], ranks[1][name])
    torch.testing.assert_close(ranks[0][name], scores_of(name, World(0, 1)), rtol=0, atol=1e-4)
