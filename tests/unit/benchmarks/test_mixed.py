"""Recall among the items of all other modalities."""

import torch

from benchmarks.mixed import mixed_recall
from cmcl.contract.modality import ModalityPair
from workers.model.heads import ModalityHeads, PairedRows
from workers.train.evaluation import HeldOut

# An embedding is the feature at unit length.
HEADS = ModalityHeads({name: torch.eye(2, 3) for name in ("image", "sound", "text")})


def rows(*pairs: tuple[float, float]) -> HeldOut:
    """Rows of features at these angles, in degrees, which are their keys as well."""
    sides = []
    for angles in zip(*pairs, strict=True):
        radians = torch.deg2rad(torch.tensor(angles))
        sides.append(torch.stack([radians.cos(), radians.sin()], dim=1))
    keys = (torch.tensor(angles).long() for angles in zip(*pairs, strict=True))
    return HeldOut(PairedRows(sides[0], sides[1], *keys), None)


IMAGE_TEXT = ModalityPair(first="image", second="text")
SOUND_TEXT = ModalityPair(first="sound", second="text")


def test_an_item_of_another_dataset_comes_between() -> None:
    one = (IMAGE_TEXT, rows((0, 10)))
    assert mixed_recall(HEADS, [one]) == (1.0, 1.0)
    other = (SOUND_TEXT, rows((5, 40)))
    # The sound at 5 is nearer to the image at 0 and to the text at 10 than they are to each other, and the text at 10
    # nearer to it than its own. Only the text at 40 finds its own item first.
    assert mixed_recall(HEADS, [one, other]) == (0.25, 1.0)


def test_an_item_that_is_paired_twice_is_found_with_either() -> None:
    # The image at 0 belongs to the texts at 50 and 10, and the text at 10 to the images at 0 and 80.
    found = mixed_recall(HEADS, [(IMAGE_TEXT, rows((0, 50), (0, 10), (80, 10), (70, 50)))])
    # Each finds one of its own first, but for the image at 80: the text at 50 is nearer, and there twice.
    assert found == (7 / 8, 1.0)


def test_copies_of_a_wrong_item_stand_before_the_right_one() -> None:
    copies = [(90.0, 81.0)] * 10
    at_1, at_10 = mixed_recall(HEADS, [(IMAGE_TEXT, rows((70.0, 40.0), *copies))])
    # The text at 81 is nearer to the image at 70 than its own, ten times; all else finds its own first.
    assert (at_1, at_10) == (21 / 22, 21 / 22)


def test_items_that_score_the_same_come_before_a_hit() -> None:
    datasets = [(IMAGE_TEXT, rows((0, 10))), (SOUND_TEXT, rows((10, 90)))]
    # For the image at 0 the sound at 10 ties with its text. The text at 90 has its sound before the image.
    assert mixed_recall(HEADS, datasets) == (0.25, 1.0)
