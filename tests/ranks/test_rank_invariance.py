"""N ranks equal one rank: real gloo processes, batches that do not divide."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from cmcl.contract.dataset import Shard
from tests.ranks.processes import in_ranks
from tests.ranks.ranks import BATCH, PAIR, SPEC, diverged, everything, uneven, write_shards
from workers.model.heads import head_width
from workers.train.distributed import World

Found = Mapping[str, Any]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[Shard]:
    return write_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def alone(shards: list[Shard]) -> Found:
    return everything(shards, World(0, 1))


@pytest.fixture(scope="module")
def ranks(shards: list[Shard], tmp_path_factory: pytest.TempPathFactory) -> list[Found]:
    return in_ranks(partial(everything, shards), 2, tmp_path_factory.mktemp("ranks"))


@pytest.fixture(scope="module")
def several(shards: list[Shard], tmp_path_factory: pytest.TempPathFactory) -> list[Found]:
    """More than there are shards."""
    return in_ranks(partial(uneven, shards), 4, tmp_path_factory.mktemp("four"))


def check_sums_and_gradient(ranks: Sequence[Found], alone: Found) -> None:
    """Moments are those of one to rounding, and the same bits on all ranks; so are gradient and bound."""
    for rank in ranks:
        for ours, first, one in zip(
            rank["moments"], ranks[0]["moments"], alone["moments"], strict=True
        ):
            assert torch.equal(ours, first)
            torch.testing.assert_close(ours, one, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(rank["gradient"], alone["gradient"], rtol=1e-5, atol=1e-6)
        # Earlier datasets are divided among the ranks.
        torch.testing.assert_close(rank["limited"], alone["limited"], rtol=0, atol=1e-6)


def check_heads(ranks: Sequence[Found], alone: Found, dataset: str) -> None:
    """Heads, loss curve, moments, conditioning and certificate."""
    for rank in ranks:
        assert rank[dataset].keys() == alone[dataset].keys()
        for name, value in alone[dataset].items():
            # AdamW divides a gradient by its size, and rounding of a small one moves a head: by up to 4e-5
            # in these updates, depending on the CPU.
            torch.testing.assert_close(rank[dataset][name], value, rtol=0, atol=1e-4)


def check_traffic(ranks: Sequence[Found], alone: Found) -> None:
    """Bytes are those of the formula, and no rank holds more scores than its share.

    Per update: embeddings of both sides, two keys and three statistics of each row once; of the gradients the free
    entries. Per dataset, for each half of it: half of each symmetric moment, the cross moment and a count.
    """
    largest = -(-BATCH // len(ranks))
    row = 2 * SPEC.width * 4 + 3 * 4 + 2 * 8
    first, second = (head_width(SPEC.widths[name]) for name in PAIR.modalities)
    moments = first * (first + 1) // 2 + second * (second + 1) // 2 + first * second + 1
    assert alone["scores"] == BATCH * BATCH
    for rank in ranks:
        found = rank["traffic"]
        assert 0 < found["free"] < found["entries"]
        assert found["gathered"] == largest * found["updates"] * row
        assert found["reduced"] == found["updates"] * found["free"] * 4 + 2 * moments * 8
        assert 0 < rank["scores"] <= largest * BATCH


def test_two_ranks_have_the_sums_and_the_gradient_of_one(ranks: list[Found], alone: Found) -> None:
    check_sums_and_gradient(ranks, alone)


@pytest.mark.parametrize("dataset", ["second", "second of one modality", "second streamed"])
def test_two_ranks_train_the_heads_of_one(ranks: list[Found], alone: Found, dataset: str) -> None:
    check_heads(ranks, alone, dataset)


def test_ranks_train_in_the_update_space_of_rank_0(ranks: list[Found], alone: Found) -> None:
    """With a mask of its own each rank would reduce other entries, or free others of the reduced gradient."""
    check_heads(ranks, alone, "second in unlike spaces")


def test_two_ranks_send_the_bytes_of_the_formula(ranks: list[Found], alone: Found) -> None:
    check_traffic(ranks, alone)


def test_four_ranks_equal_one(several: list[Found], alone: Found) -> None:
    check_sums_and_gradient(several, alone)
    check_heads(several, alone, "second streamed")
    check_traffic(several, alone)


def test_ranks_solve_the_first_dataset_of_preserve_as_one_does(
    ranks: list[Found], alone: Found
) -> None:
    one = alone["first streamed"]
    for ours in (rank["first streamed"] for rank in ranks):
        assert torch.equal(ours["scores"], ranks[0]["first streamed"]["scores"])
        torch.testing.assert_close(ours["scores"], one["scores"], rtol=0, atol=5e-3)
        torch.testing.assert_close(ours["moments"], one["moments"], rtol=0, atol=1e-5)


def test_ranks_solve_the_same_heads_from_the_sums_of_one(ranks: list[Found], alone: Found) -> None:
    """Scores are those of one, to what directions and the polish make of rounding in float32; they have a size of 1.

    Each rank, by itself, finds the scores of all from the sums that it has.
    """
    one = alone["solved"]
    for ours in (rank["solved"] for rank in ranks):
        for name in ("sums", "moments", "first scores", "second scores"):
            assert torch.equal(ours[name], ranks[0]["solved"][name])
        torch.testing.assert_close(ours["moments"], one["moments"], rtol=0, atol=1e-5)
        torch.testing.assert_close(ours["sums"], one["sums"], rtol=0, atol=1e-6)
        torch.testing.assert_close(
            ours["second scores by itself"], ours["second scores"], rtol=0, atol=1e-5
        )
        for name in ("first scores", "second scores"):
            torch.testing.assert_close(ours[name], one[name], rtol=0, atol=5e-3)


def test_second_dataset_is_certified(alone: Found) -> None:
    """Otherwise the comparison of certificates would be empty."""
    assert alone["second"]["certificate"] > 0.01
    assert len(alone["second"]["losses"]) == 24


def test_ranks_whose_training_diverges_end_at_the_same_update(tmp_path: Path) -> None:
    """A rank that continued would wait for the others in its next collective."""
    alone = diverged(World(0, 1))
    first, second = in_ranks(diverged, 2, tmp_path)
    assert first == second
    assert first["one rank's rows"] == alone["one rank's rows"]
    assert first["all ranks' rows"] == alone["all ranks' rows"]
    assert "loss of update 4 of" in alone["one rank's rows"]
