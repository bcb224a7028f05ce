"""Recall on earlier datasets, evaluated by ranks in parallel."""

import pytest
import torch

from cmcl.contract.modality import ModalityPair
from cmcl.contract.model import ModelSpec
from workers.methods.method import TrainingContext
from workers.model.heads import initial_heads
from workers.model.memory import Memory
from workers.nullspace.certificate import PairScores
from workers.nullspace.mask import everything_free
from workers.nullspace.moments import pair_moments
from workers.train import certify
from workers.train.certify import (
    PastDataset,
    PastState,
    limit_drift,
    weights_of,
)
from workers.train.distributed import World, rank_share

NEW = ModalityPair(first="image", second="text")
OTHER = ModalityPair(first="audio", second="depth")
SPEC = ModelSpec(
    width=4,
    modalities=dict.fromkeys((*NEW.modalities, *OTHER.modalities), 5),
    policy="preserve",
    max_drift=50.0,
)


@pytest.mark.parametrize("rank", [0, 1])
def test_bound_on_drift_reads_the_touched_ones_of_the_ranks_own_share_and_no_others(
    rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads = initial_heads(SPEC)
    read: set[str] = set()

    def earlier(name: str, pair: ModalityPair) -> PastDataset:
        def remembered() -> PastState:
            read.add(name)
            first_BI, second_BJ = (
                torch.randn(8, heads.weights[modality].shape[1]) for modality in pair.modalities
            )
            moments = pair_moments(first_BI, second_BJ)
            return PastState(PairScores(moments), weights_of(pair, heads))

        return PastDataset(name, pair, remembered)

    every = [earlier(f"{n}", pair) for n, pair in enumerate((NEW, OTHER, NEW, OTHER, OTHER, NEW))]
    spaces = {name: everything_free(*heads.weights[name].shape) for name in NEW.modalities}
    first, second = (0.1 * torch.ones_like(heads.weights[name]) for name in NEW.modalities)
    context = TrainingContext(heads, Memory(), {}, NEW, SPEC.training, seed=3)
    here = World(rank, 2)
    monkeypatch.setattr(certify, "all_reduce_max", lambda value, _: value)
    limit_drift(SPEC, context, spaces, (first, second), every, here)
    assert read == {one.dataset for one in rank_share(every, here) if one.pair == NEW}
