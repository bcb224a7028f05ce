"""What rank 0 does while the others wait."""

import pytest
import torch

from workers.train.distributed import SINGLE_PROCESS, when_leader_is_done


def test_rank_0_has_the_threads_of_the_ranks_that_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    own = torch.get_num_threads()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    assert when_leader_is_done(torch.get_num_threads, SINGLE_PROCESS) == 3 * own
    assert torch.get_num_threads() == own


def test_its_threads_are_given_back_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    own = torch.get_num_threads()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")

    def fails() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        when_leader_is_done(fails, SINGLE_PROCESS)
    assert torch.get_num_threads() == own
