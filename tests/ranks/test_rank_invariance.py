"""N ranks equal one rank: real gloo processes, batches that do not divide."""

from functools import partial
from pathlib import Path

import pytest
import torch

from cmcl.contract.dataset import Shard
from tests.ranks.processes import in_ranks
from tests.ranks.ranks import BATCH, PAIR, SPEC, diverged, everything, write_shards
from workers.model.heads import head_width
from workers.train.distributed import World


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[Shard]:
    return write_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def alone(shards: list[Shard]) -> dict[str, object]:
    return everything(shards, World(0, 1))


@pytest.fixture(scope="module", params=[2, 3, 4])
def ranks(
    request: pytest.FixtureRequest,
    shards: list[Shard],
    tmp_path_factory: pytest.TempPathFactory,
) -> list[object]:
    """Four ranks are more than there are shards."""
    folder: Path = tmp_path_factory.mktemp(f"ranks-{request.param}")
    return in_ranks(partial(everything, shards), request.param, folder)


def test_ranks_have_the_moments_of_one_to_rounding(
    ranks: list[dict[str, list[torch.Tensor]]], alone: dict[str, list[torch.Tensor]]
) -> None:
    for ours, one in zip(ranks[0]["moments"], alone["moments"], strict=True):
        torch.testing.assert_close(ours, one, rtol=1e-6, atol=1e-6)


def test_all_ranks_have_equal_moments_to_the_bit(
    ranks: list[dict[str, list[torch.Tensor]]],
) -> None:
    for other in ranks[1:]:
        for ours, theirs in zip(ranks[0]["moments"], other["moments"], strict=True):
            assert torch.equal(ours, theirs)


def test_ranks_have_the_gradient_of_one(
    ranks: list[dict[str, torch.Tensor]], alone: dict[str, torch.Tensor]
) -> None:
    for rank in ranks:
        torch.testing.assert_close(rank["gradient"], alone["gradient"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "dataset",
    ["second", "second of one modality", "second streamed"],
)
def test_ranks_train_the_heads_of_one(
    ranks: list[dict[str, dict[str, torch.Tensor]]],
    alone: dict[str, dict[str, torch.Tensor]],
    dataset: str,
) -> None:
    """Heads, loss curve, moments, conditioning and certificate."""
    for rank in ranks:
        assert rank[dataset].keys() == alone[dataset].keys()
        for name, value in alone[dataset].items():
            # AdamW divides a gradient by its size, and rounding of a small one moves a head: by up to 4e-5
            # in these updates, depending on the CPU.
            torch.testing.assert_close(rank[dataset][name], value, rtol=0, atol=1e-4)


@pytest.mark.parametrize("dataset", ["first", "first streamed"])
def test_ranks_solve_the_first_dataset_of_preserve_as_one_does(
    ranks: list[dict[str, dict[str, torch.Tensor]]],
    alone: dict[str, dict[str, torch.Tensor]],
    dataset: str,
) -> None:
    for rank in ranks:
        assert torch.equal(rank[dataset]["scores"], ranks[0][dataset]["scores"])
        torch.testing.assert_close(
            rank[dataset]["scores"], alone[dataset]["scores"], rtol=0, atol=5e-3
        )
        torch.testing.assert_close(
            rank[dataset]["moments"], alone[dataset]["moments"], rtol=0, atol=1e-5
        )


def test_ranks_that_share_the_earlier_datasets_keep_the_bound_of_one(
    ranks: list[dict[str, tuple[torch.Tensor, ...]]], alone: dict[str, tuple[torch.Tensor, ...]]
) -> None:
    for rank in ranks:
        torch.testing.assert_close(rank["limited"], alone["limited"], rtol=0, atol=1e-6)


SOLVED = pytest.mark.parametrize("dataset", ["solved", "solved streamed"])


@SOLVED
def test_ranks_solve_the_same_heads_from_the_sums_of_one(
    ranks: list[dict[str, dict[str, torch.Tensor]]],
    alone: dict[str, dict[str, torch.Tensor]],
    dataset: str,
) -> None:
    one = alone[dataset]
    for rank in ranks:
        ours = rank[dataset]
        for name in ("sums", "moments", "first scores", "second scores"):
            assert torch.equal(ours[name], ranks[0][dataset][name])
        torch.testing.assert_close(ours["moments"], one["moments"], rtol=0, atol=1e-5)
        torch.testing.assert_close(ours["sums"], one["sums"], rtol=0, atol=1e-6)


@SOLVED
def test_scores_depend_on_the_sums_and_not_on_the_ranks(
    ranks: list[dict[str, dict[str, torch.Tensor]]], dataset: str
) -> None:
    """Each rank, by itself, finds the scores of all from the sums that it has."""
    for rank in ranks:
        ours = rank[dataset]
        torch.testing.assert_close(
            ours["second scores by itself"], ours["second scores"], rtol=0, atol=1e-5
        )


@SOLVED
@pytest.mark.parametrize("scores", ["first scores", "second scores"])
def test_ranks_have_the_scores_of_one(
    ranks: list[dict[str, dict[str, torch.Tensor]]],
    alone: dict[str, dict[str, torch.Tensor]],
    dataset: str,
    scores: str,
) -> None:
    """To what the lift's directions and the polish make of rounding in float32; scores have a size of 1."""
    for rank in ranks:
        torch.testing.assert_close(rank[dataset][scores], alone[dataset][scores], rtol=0, atol=5e-3)


def test_second_dataset_is_certified(alone: dict[str, dict[str, torch.Tensor]]) -> None:
    """Otherwise the comparison of certificates would be empty."""
    assert alone["second"]["certificate"] > 0.01
    assert len(alone["second"]["losses"]) == 24


def test_bytes_that_travel_are_those_of_the_formula(
    ranks: list[dict[str, dict[str, int]]],
) -> None:
    """Per update: embeddings of both sides, two keys and three statistics of each row once; of the
    gradients the free entries. Per dataset, for each half of it: half of each symmetric moment, the cross moment and a
    count.
    """
    size = len(ranks)
    row = 2 * SPEC.width * 4 + 3 * 4 + 2 * 8
    first, second = (head_width(SPEC.widths[name]) for name in PAIR.modalities)
    moments = first * (first + 1) // 2 + second * (second + 1) // 2 + first * second + 1
    for rank in ranks:
        found = rank["traffic"]
        assert 0 < found["free"] < found["entries"]
        assert found["gathered"] == -(-BATCH // size) * found["updates"] * row
        assert found["reduced"] == found["updates"] * found["free"] * 4 + 2 * moments * 8


def test_no_rank_holds_more_scores_than_its_share(
    ranks: list[dict[str, int]], alone: dict[str, int]
) -> None:
    assert alone["scores"] == BATCH * BATCH
    for rank in ranks:
        assert 0 < rank["scores"] <= -(-BATCH // len(ranks)) * BATCH


def test_ranks_whose_training_diverges_end_at_the_same_update(tmp_path: Path) -> None:
    """A rank that continued would wait for the others in its next collective."""
    alone = diverged(World(0, 1))
    first, second = in_ranks(diverged, 2, tmp_path)
    assert first == second
    assert first["one rank's rows"] == alone["one rank's rows"]
    assert first["all ranks' rows"] == alone["all ranks' rows"]
    assert "loss of update 4 of" in alone["one rank's rows"]
