"""Feature replay: which rows are stored, how many bytes they take, and their loss."""

from dataclasses import replace

import pytest
import torch

from benchmarks.baselines.feature_replay import EqualBytes, FeatureReplay, moment_bytes
from benchmarks.baselines.replay_memory import memories_in
from tests.unit.methods.contexts import (
    AUDIO_DEPTH,
    AUDIO_IMAGE,
    IMAGE_TEXT,
    context_on,
    gradients_left_by,
    gradients_of,
    loss_by_loops,
    pair_for,
    random_rows,
    taught,
    weights_now,
)
from workers.methods.method import Vanilla

NEW, OLD = random_rows(IMAGE_TEXT, seed=1), random_rows(AUDIO_IMAGE, seed=2)


def test_gradient_is_that_of_the_batch_and_of_the_stored_rows() -> None:
    """A memory as small as a batch is drawn whole. Rows are those of float16."""
    method = FeatureReplay(weight=0.6)
    context = context_on(IMAGE_TEXT, kept=taught(method, (AUDIO_IMAGE, OLD)))
    pair = pair_for(method, context)
    stored = replace(
        OLD, first_NI=OLD.first_NI.half().double(), second_NJ=OLD.second_NJ.half().double()
    )
    now = weights_now(context, pair)
    replayed = loss_by_loops(now, AUDIO_IMAGE, stored, 0.2)
    value = loss_by_loops(now, IMAGE_TEXT, NEW, 0.2) + 0.6 * replayed
    torch.testing.assert_close(
        gradients_left_by(method, context, pair, NEW), gradients_of(value, pair)
    )


@pytest.mark.parametrize(("weight", "known"), [(0.0, AUDIO_IMAGE), (1.0, AUDIO_DEPTH)])
def test_without_replay_it_is_the_loss_alone_to_the_bit(weight: float, known: object) -> None:
    method = FeatureReplay(weight=weight)
    kept = taught(method, (known, random_rows(known, seed=2)))  # type: ignore[arg-type]
    context = context_on(IMAGE_TEXT, kept=kept)
    pair = pair_for(method, context)
    found = gradients_left_by(method, context, pair, NEW)
    pair.zero_grad()
    assert all(map(torch.equal, found, gradients_left_by(Vanilla(), context, pair, NEW)))


def test_every_row_of_every_dataset_is_stored() -> None:
    datasets = [(AUDIO_IMAGE, OLD), (IMAGE_TEXT, random_rows(IMAGE_TEXT, seed=3, rows=50))]
    memories = memories_in(taught(FeatureReplay(), *datasets))
    for memory, (_, rows) in zip(memories, datasets, strict=True):
        assert sorted(memory.rows.first_keys_N.tolist()) == sorted(rows.first_keys_N.tolist())


@pytest.mark.parametrize("count", [30, 600])
def test_stored_rows_have_the_bytes_of_the_moments_and_no_row_more_fits(count: int) -> None:
    """Audio reads 6 columns and image 7, with lifts of 8 times their features."""
    rows = random_rows(AUDIO_IMAGE, seed=2, rows=count)
    kept = taught(EqualBytes(), (AUDIO_IMAGE, rows))
    stored = sum(tensor.nbytes for tensor in kept.values())
    (memory,) = memories_in(kept)
    row = stored // len(memory)
    first, second = 6 + 8 * 5, 7 + 8 * 6
    numbers = first * (first + 1) // 2 + second * (second + 1) // 2 + first * second
    assert moment_bytes(first, second) == 4 * numbers
    assert stored <= 4 * numbers
    assert len(memory) == 30 or (count == 600 and stored + row > 4 * numbers)


def test_negative_weight_is_refused() -> None:
    with pytest.raises(ValueError, match="weight is -1; permitted are 0 and more"):
        FeatureReplay(weight=-1)
