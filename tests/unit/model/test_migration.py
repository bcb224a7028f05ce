"""Which stored vectors can be migrated to another version, and the message for others."""

import pytest
import torch

from cmcl.contract.modality import ModalityPair
from cmcl.contract.model import ModelSpec
from tests.fakes.versions import random_heads
from workers.model.heads import ModalityHeads
from workers.model.memory import Memory
from workers.model.migration import (
    CannotMigrate,
    NothingKept,
    NothingLearned,
    NumberedHeads,
    OtherConditioning,
    TooInexact,
    check_error,
    migration_between,
    same_conditioning,
)
from workers.nullspace.conditioning import Conditioning
from workers.nullspace.moments import pair_moments

NARROW = ModelSpec(width=4, modalities={"image": 6, "text": 5, "audio": 3}, lift=0)
ROOMY = ModelSpec(width=9, modalities=NARROW.modalities, lift=0)


def conditioned(spec: ModelSpec, seed: int, first_dataset: int = 0) -> ModalityHeads:
    generator = torch.Generator().manual_seed(first_dataset)
    made = {
        modality: Conditioning(
            torch.randn(width, generator=generator), torch.randn(width, width, generator=generator)
        )
        for modality, width in spec.widths.items()
    }
    return random_heads(spec, seed).conditioned(made)


def raw_rows(modality: str, rows: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, NARROW.widths[modality], generator=generator)


def memory_of(heads: ModalityHeads, rows: int = 200) -> Memory:
    """The memory of a version that has learned images with texts."""
    sides = [heads.prepare(modality, raw_rows(modality, rows, 1)) for modality in ("image", "text")]
    return Memory().with_dataset(ModalityPair(first="image", second="text"), pair_moments(*sides))


def test_a_roomy_head_gives_the_vectors_of_the_new_version() -> None:
    old, new = conditioned(ROOMY, 1), conditioned(ROOMY, 2)
    found = migration_between("image", memory_of(old), NumberedHeads(1, old), NumberedHeads(2, new))
    fresh_BF = raw_rows("image", 20, 3)
    migrated_BE = found.apply_unit(old.embed("image", fresh_BF))
    torch.testing.assert_close(migrated_BE, new.embed("image", fresh_BF), atol=1e-4, rtol=0)
    assert found.exact
    check_error("image", found, most_error=1e-5)


def test_a_narrow_head_is_as_inexact_as_it_says() -> None:
    old, new = conditioned(NARROW, 1), conditioned(NARROW, 2)
    found = migration_between("image", memory_of(old), NumberedHeads(1, old), NumberedHeads(2, new))
    raw_BF = raw_rows("image", 5000, 3)
    stored_BE, expected_BE = (heads.outputs("image", raw_BF).double() for heads in (old, new))
    error = float((found.apply(stored_BE) - expected_BE).norm() / expected_BE.norm())
    assert error == pytest.approx(found.predicted_error, rel=0.1)
    check_error("image", found, most_error=found.predicted_error)
    with pytest.raises(TooInexact, match=r"rank 4 of 4, .* more than the permitted 0\.001"):
        check_error("image", found, most_error=0.001)


def refusal(modality: str, old: ModalityHeads, new: ModalityHeads) -> CannotMigrate:
    with pytest.raises(CannotMigrate) as caught:
        migration_between(modality, memory_of(old), NumberedHeads(3, old), NumberedHeads(7, new))
    return caught.value


def test_a_modality_without_moments_is_refused() -> None:
    error = refusal("audio", conditioned(NARROW, 1), conditioned(NARROW, 2))
    assert isinstance(error, NothingLearned)
    assert "version 3 has learned nothing of modality 'audio'" in str(error)


@pytest.mark.parametrize("first_dataset", [None, 1])
def test_versions_that_read_other_features_are_refused(first_dataset: int | None) -> None:
    old = conditioned(NARROW, 1)
    new = random_heads(NARROW, 2)
    if first_dataset is not None:
        new = conditioned(NARROW, 2, first_dataset)
    error = refusal("image", old, new)
    assert isinstance(error, OtherConditioning)
    assert "versions 3 and 7 have conditioned 'image' by different first datasets" in str(error)


def test_a_head_that_keeps_nothing_is_refused() -> None:
    old = conditioned(NARROW, 1)
    zero = old.replaced({"image": torch.zeros_like(old.weights["image"])})
    error = refusal("image", zero, old)
    assert isinstance(error, NothingKept)
    assert "'image' cannot be migrated: rank 0" in str(error)


def test_heads_of_one_first_dataset_read_the_same() -> None:
    assert same_conditioning("image", conditioned(NARROW, 1), conditioned(NARROW, 2))
    assert not same_conditioning("image", conditioned(NARROW, 1), random_heads(NARROW, 1))
    assert same_conditioning("image", random_heads(NARROW, 1), random_heads(NARROW, 2))
