"""New pairs are compared with earlier ones of their kind, by moments alone."""

import pytest
import torch

from cmcl.contract.modality import FileEntry, ModalityPair
from cmcl.contract.version import Halves, LearnedDataset
from workers.nullspace.centred import CentredMoments, centred, dataset_moments
from workers.nullspace.moments import PairMoments, pair_moments
from workers.nullspace.two_folds import Choice, best_choice
from workers.train.agreement import agreement, comparable, halves_of

PAIR = ModalityPair(first="text", second="image")


def rows_of(seed: int, kind: int, rows: int = 1000) -> tuple[torch.Tensor, torch.Tensor]:
    """Both sides come from the same five numbers, in a way of their kind."""
    random = torch.Generator().manual_seed(seed)
    shared = torch.randn(rows, 5, generator=random)
    sides = []
    for width in (30, 20):
        mixing = torch.randn(5, width, generator=torch.Generator().manual_seed(width + kind))
        side = shared @ mixing + 0.5 * torch.randn(rows, width, generator=random)
        sides.append(torch.cat([side, torch.ones(rows, 1)], dim=1))
    return sides[0], sides[1]


def learned(seed: int, kind: int) -> tuple[PairMoments, Choice]:
    first, second = rows_of(seed, kind)
    halves = [pair_moments(first[n::2], second[n::2]) for n in (0, 1)]
    return halves[0] + halves[1], best_choice((centred(halves[0], 1.0), centred(halves[1], 1.0)))


def earlier(name: str, kind: int, *, turned: bool = False) -> tuple[LearnedDataset, CentredMoments]:
    """A dataset of the pair; `turned`: posted with its two sides exchanged."""
    moments, choice = learned(len(name), kind)
    pair = PAIR.swapped() if turned else PAIR
    moments = moments.swapped() if turned else moments
    line = LearnedDataset(
        dataset=name,
        name=name,
        pair=pair,
        rows=moments.count,
        version=1,
        moments=FileEntry(bytes=0, sha256="0" * 64),
        shard_digests=("0" * 64,),
        ridges=choice.by_modality(PAIR.modalities, None),
        halves=halves_of(choice),
    )
    return line, dataset_moments(moments)


def halves(seed: int, kind: int) -> tuple[PairMoments, Halves]:
    moments, choice = learned(seed, kind)
    found = halves_of(choice)
    assert found is not None
    return moments, found


@pytest.mark.parametrize("turned", [False, True])
def test_pairs_are_compared_with_the_dataset_of_their_kind(turned: bool) -> None:
    known = [earlier("other", 7), earlier("same", 0, turned=turned), earlier("third", 9)]
    found = agreement(PAIR, *halves(5, 0), known)
    assert found.dataset == "same"
    assert found.score >= found.least


@pytest.mark.parametrize("kinds", [(), (7,), (7, 9)])
def test_pairs_of_a_kind_of_their_own_are_compared_with_chance(kinds: tuple[int, ...]) -> None:
    moments, own = halves(5, 0)
    found = agreement(PAIR, moments, own, [earlier(f"kind-{kind}", kind) for kind in kinds])
    assert (found.dataset, found.score) == (None, own.agreement)
    assert found.least == pytest.approx(3 * (2 / 1000) ** 0.5)


def test_rows_without_any_relation_agree_by_chance_alone() -> None:
    first, second = rows_of(5, 0)
    mixed = second[torch.randperm(1000, generator=torch.Generator().manual_seed(0))]
    parts = [pair_moments(first[n::2], mixed[n::2]) for n in (0, 1)]
    found = halves_of(best_choice((centred(parts[0], 1.0), centred(parts[1], 1.0))))
    assert found is not None
    of_chance = agreement(PAIR, parts[0] + parts[1], found, [])
    assert of_chance.score < of_chance.least


def test_the_newest_datasets_of_the_pair_are_compared() -> None:
    lines = [earlier(f"number-{number}", 0)[0] for number in range(6)]
    other = lines[0].model_copy(update={"pair": ModalityPair(first="audio", second="text")})
    unknown = lines[0].model_copy(update={"halves": None})
    found = comparable([*lines, other, unknown], PAIR.swapped())
    assert [line.dataset for line in found] == [f"number-{number}" for number in range(2, 6)]
