"""N ranks equal one rank: real gloo processes, batches that do not divide."""

from pathlib import Path

import pytest
import torch

from tests.ranks.ranks import everything, in_ranks
from workers.train.distributed import World


@pytest.fixture(scope="module")
def alone() -> dict[str, object]:
    return everything(World(0, 1))


@pytest.fixture(scope="module", params=[2, 3, 4])
def ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    folder: Path = tmp_path_factory.mktemp(f"ranks-{request.param}")
    return in_ranks(everything, request.param, folder)


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


@pytest.mark.parametrize("dataset", ["first", "second"])
def test_ranks_train_the_heads_of_one(
    ranks: list[dict[str, dict[str, torch.Tensor]]],
    alone: dict[str, dict[str, torch.Tensor]],
    dataset: str,
) -> None:
    for rank in ranks:
        for name, value in alone[dataset].items():
            torch.testing.assert_close(rank[dataset][name], value, rtol=0, atol=1e-5)
