"""The memory of stored rows: rows are returned unchanged, and draws depend on the seed alone."""

from dataclasses import replace

import pytest
import torch

from benchmarks.baselines.replay_memory import (
    Draws,
    ReplayMethod,
    choose_rows,
    memories_for,
    memories_in,
)
from tests.fakes.rotated_rows import seen
from tests.unit.methods.contexts import (
    AUDIO_DEPTH,
    AUDIO_IMAGE,
    IMAGE_TEXT,
    context_on,
    random_heads,
    random_rows,
    taught,
)
from workers.model.artifact import load_method_state, save_method_state

CPU = torch.device("cpu")
METHOD = ReplayMethod(memory_rows=6)


def test_memories_survive_the_files_of_a_version() -> None:
    """In the order of learning, of eleven datasets too, and the same pair twice."""
    pairs = [IMAGE_TEXT, AUDIO_IMAGE, AUDIO_DEPTH, IMAGE_TEXT] * 3
    seen = [(pair, random_rows(pair, seed=number)) for number, pair in enumerate(pairs)]
    loaded = memories_in(load_method_state(save_method_state(taught(METHOD, *seen))))
    assert [memory.pair for memory in loaded] == pairs
    for number, (memory, (pair, rows)) in enumerate(zip(loaded, seen, strict=True)):
        expected = choose_rows(rows, 6, seed=number)
        assert torch.equal(memory.rows.first_NI, expected.first_NI)
        assert torch.equal(memory.rows.second_NJ, expected.second_NJ)
        assert torch.equal(memory.rows.first_keys_N, expected.first_keys_N)
        assert torch.equal(memory.rows.second_keys_N, expected.second_keys_N)
        then = random_heads(100 + number).weights
        assert torch.equal(memory.first_outputs_NE, expected.first_NI @ then[pair.first].mT)
        assert torch.equal(memory.second_outputs_NE, expected.second_NJ @ then[pair.second].mT)


def test_what_others_keep_is_left_alone() -> None:
    kept = {"ewc/image/fisher": torch.ones(2)}
    context = context_on(IMAGE_TEXT, kept=kept)
    after = METHOD.next_state(context, random_heads(1), seen(random_rows(IMAGE_TEXT, 1)))
    assert after["ewc/image/fisher"] is kept["ewc/image/fisher"]
    assert len(memories_in(after)) == 1


def test_chosen_rows_are_a_sample_without_repetition() -> None:
    rows = random_rows(IMAGE_TEXT, seed=1, rows=40)
    chosen = choose_rows(rows, 15, seed=3)
    assert len(set(chosen.first_keys_N.tolist())) == len(chosen) == 15
    again, other = choose_rows(rows, 15, seed=3), choose_rows(rows, 15, seed=4)
    assert torch.equal(chosen.first_keys_N, again.first_keys_N)
    assert not torch.equal(chosen.first_keys_N, other.first_keys_N)
    assert chosen.first_keys_N.tolist() != rows.first_keys_N[:15].tolist()
    assert len(choose_rows(rows, 300, seed=3)) == 40


def test_only_memories_that_share_a_head_are_used() -> None:
    pairs = (AUDIO_IMAGE, AUDIO_DEPTH, IMAGE_TEXT)
    kept = taught(METHOD, *((pair, random_rows(pair, 1)) for pair in pairs))
    context = context_on(IMAGE_TEXT, kept=kept)
    assert [one.pair for one in memories_for(context, CPU)] == [AUDIO_IMAGE, IMAGE_TEXT]


def test_draws_repeat_with_the_seed_and_reach_every_row() -> None:
    pairs = (AUDIO_IMAGE, IMAGE_TEXT)
    kept = taught(METHOD, *((pair, random_rows(pair, n)) for n, pair in enumerate(pairs)))
    memories = memories_in(kept)
    one, same, other = (Draws(memories, 4, seed) for seed in (1, 1, 2))
    drawn = [[draws() for _ in range(40)] for draws in (one, same, other)]
    numbers = [[draw.rows.first_keys_N.tolist() for draw in draws] for draws in drawn]
    assert numbers[0] == numbers[1] != numbers[2]
    assert {draw.pair.key for draw in drawn[0]} == {pair.key for pair in pairs}
    stored = {int(key) for memory in memories for key in memory.rows.first_keys_N}
    assert {key for draw in numbers[0] for key in draw} == stored
    assert all(len(draw) == len(set(draw)) == 4 for draw in numbers[0])


def test_an_empty_lineage_and_an_empty_memory_are_rejected() -> None:
    with pytest.raises(ValueError, match="no memory"):
        Draws([], 4, seed=1)()
    with pytest.raises(ValueError, match="memory_rows is 0"):
        ReplayMethod(memory_rows=0)


def test_what_is_stored_follows_the_seed_of_the_context() -> None:
    rows, context = random_rows(IMAGE_TEXT, 1, rows=30), context_on(IMAGE_TEXT)
    one, same, other = (
        METHOD.next_state(replace(context, seed=seed), random_heads(1), seen(rows))
        for seed in (1, 1, 2)
    )
    name = "memory/0000/image/text/first_keys"
    assert torch.equal(one[name], same[name])
    assert not torch.equal(one[name], other[name])
