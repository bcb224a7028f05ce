"""Feature replay: which rows are stored, how many bytes they take, and their loss."""

from dataclasses import replace

import pytest
import torch

from benchmarks.baselines.feature_replay import (
    EqualBytes,
    FeatureReplay,
    memories_in,
    moment_bytes,
)
from tests.fakes.rotated_rows import seen
from tests.unit.methods.contexts import (
    AUDIO_DEPTH,
    AUDIO_IMAGE,
    IMAGE_TEXT,
    context_on,
    gradients_left_by,
    gradients_of,
    loss_by_loops,
    pair_for,
    random_heads,
    random_rows,
    taught,
    weights_now,
)
from workers.methods.method import Vanilla
from workers.model.artifact import load_method_state, save_method_state

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


def test_every_row_is_stored_and_survives_the_files_of_a_version() -> None:
    """In the order of learning, of eleven datasets too, and the same pair twice."""
    pairs = [IMAGE_TEXT, AUDIO_IMAGE, AUDIO_DEPTH, IMAGE_TEXT] * 3
    datasets = [(pair, random_rows(pair, seed=number)) for number, pair in enumerate(pairs)]
    kept = taught(FeatureReplay(), *datasets)
    loaded = memories_in(load_method_state(save_method_state(kept)))
    assert [memory.pair for memory in loaded] == pairs
    for memory, (_, rows) in zip(loaded, datasets, strict=True):
        order_N = memory.rows.first_keys_N.argsort()
        whole = rows.at(rows.first_keys_N.argsort())
        assert torch.equal(memory.rows.first_NI[order_N], whole.first_NI.half())
        assert torch.equal(memory.rows.second_NJ[order_N], whole.second_NJ.half())
        assert torch.equal(memory.rows.first_keys_N[order_N], whole.first_keys_N)
        assert torch.equal(memory.rows.second_keys_N[order_N], whole.second_keys_N)


def test_a_sample_is_that_of_the_seed_and_leaves_what_others_keep() -> None:
    rows = random_rows(IMAGE_TEXT, seed=1, rows=40)
    context = context_on(IMAGE_TEXT, kept={"ewc/image/fisher": torch.ones(2)})
    method, name = FeatureReplay(memory_rows=15), "memory/0000/image/text/first_keys"
    one, same, other = (
        method.next_state(replace(context, seed=seed), random_heads(1), seen(rows))
        for seed in (3, 3, 4)
    )
    assert len(set(one[name].tolist())) == 15
    assert torch.equal(one[name], same[name])
    assert not torch.equal(one[name], other[name])
    assert one[name].tolist() != rows.first_keys_N[:15].tolist()
    assert one["ewc/image/fisher"] is context.method_state["ewc/image/fisher"]


@pytest.mark.parametrize("count", [30, 600])
def test_stored_rows_have_the_bytes_of_the_moments_and_no_row_more_fits(count: int) -> None:
    """Audio reads 6 columns and image 7, with lifts of 8 times their features."""
    rows = random_rows(AUDIO_IMAGE, seed=2, rows=count)
    kept = taught(EqualBytes(), (AUDIO_IMAGE, rows))
    stored = sum(tensor.nbytes for tensor in kept.values())
    (memory,) = memories_in(kept)
    row = stored // len(memory.rows)
    first, second = 6 + 8 * 5, 7 + 8 * 6
    numbers = first * (first + 1) // 2 + second * (second + 1) // 2 + first * second
    assert moment_bytes(first, second) == 4 * numbers
    assert stored <= 4 * numbers
    assert len(memory.rows) == 30 or (count == 600 and stored + row > 4 * numbers)
