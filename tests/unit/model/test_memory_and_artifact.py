"""The memory of moments, and the files of a version."""

import math

import pytest
import torch

from cmcl.contract.errors import InvalidVersion
from cmcl.contract.modality import ModalityPair
from cmcl.contract.model import ModelSpec
from workers.model import artifact
from workers.model.heads import ModalityHeads, initial_heads
from workers.model.memory import Chosen, Memory, in_order
from workers.nullspace.centred import CentredMoments, dataset_moments
from workers.nullspace.conditioning import Conditioning
from workers.nullspace.moments import PairMoments, pair_moments

SPEC = ModelSpec(width=4, modalities={"image": 6, "text": 3, "depth": 5}, lift=0)
HEADS = initial_heads(SPEC)
IMAGE_TEXT = ModalityPair(first="image", second="text")
TEXT_IMAGE = ModalityPair(first="text", second="image")
DEPTH_IMAGE = ModalityPair(first="depth", second="image")
WIDTHS = {"image": 7, "text": 4, "depth": 6}


def rows(pair: ModalityPair, seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(20, WIDTHS[modality], generator=generator) for modality in pair.modalities]


def two_datasets() -> Memory:
    memory = Memory().with_dataset(IMAGE_TEXT, pair_moments(*rows(IMAGE_TEXT, 0)))
    return memory.with_dataset(DEPTH_IMAGE, pair_moments(*rows(DEPTH_IMAGE, 1)))


def test_order_of_columns_does_not_matter_to_the_memory() -> None:
    image, text = rows(IMAGE_TEXT, 2)
    one = Memory().with_dataset(IMAGE_TEXT, pair_moments(image, text))
    other = Memory().with_dataset(TEXT_IMAGE, pair_moments(text, image))
    assert one.by_pair.keys() == other.by_pair.keys()
    for left, right in zip(one.by_pair.values(), other.by_pair.values(), strict=True):
        torch.testing.assert_close(left.first.sum_II, right.first.sum_II, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(left.cross_IJ, right.cross_IJ, rtol=1e-5, atol=1e-5)


def test_inputs_and_partners_come_from_all_datasets_of_a_modality() -> None:
    memory = two_datasets()
    (image_0, text_0), (depth_1, image_1) = rows(IMAGE_TEXT, 0), rows(DEPTH_IMAGE, 1)
    inputs = memory.inputs_of("image")
    partners = memory.partners_of("image", HEADS)
    assert inputs is not None
    assert partners is not None
    everything = torch.cat([image_0, image_1]).double()
    torch.testing.assert_close(inputs.sum_II, everything.mT @ everything, rtol=1e-5, atol=1e-5)
    embeddings = torch.cat(
        [text_0 @ HEADS.weights["text"].mT, depth_1 @ HEADS.weights["depth"].mT]
    ).double()
    torch.testing.assert_close(partners.sum_II, embeddings.mT @ embeddings, rtol=1e-5, atol=1e-5)


def test_memory_survives_a_round_trip() -> None:
    memory = two_datasets()
    again = artifact.load_memory(artifact.save_memory(memory))
    assert artifact.save_memory(again) == artifact.save_memory(memory)
    assert again.has(TEXT_IMAGE)
    assert artifact.load_memory(artifact.save_memory(Memory())).by_pair == {}


def run_selftest(data: bytes, heads: ModalityHeads) -> None:
    """Raises InvalidVersion if the heads do not give the promised embeddings."""
    for modality, (features, promised) in artifact.load_selftest(data, heads.weights).items():
        artifact.check_selftest(modality, heads.embed(modality, features), promised)


def test_heads_keep_their_conditioning_in_the_file() -> None:
    heads = HEADS.conditioned({"text": Conditioning(torch.ones(3), 2 * torch.eye(3))})
    again = artifact.load_heads(artifact.save_heads(heads), SPEC)
    assert torch.equal(again.conditioning["text"].map, 2 * torch.eye(3))
    assert set(again.conditioning) == {"text"}
    run_selftest(artifact.save_selftest(heads, SPEC), again)
    with pytest.raises(InvalidVersion, match="self-test of head 'text'"):
        run_selftest(artifact.save_selftest(heads, SPEC), HEADS)


def test_centred_moments_of_a_dataset_are_a_quarter_and_exact() -> None:
    moments = with_ones(*rows(IMAGE_TEXT, 3))
    sums = dataset_moments(moments)
    saved = artifact.save_centred_moments(sums)
    exact = artifact.load_centred_moments(saved)
    assert all(torch.equal(each, getattr(exact, name)) for name, each in tensors_of(sums))
    assert len(saved) < len(artifact.save_moments(moments))
    again = artifact.load_moments(saved)
    assert again.count == moments.count
    torch.testing.assert_close(again.first.sum_II, moments.first.sum_II, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(again.cross_IJ, moments.cross_IJ, rtol=1e-6, atol=1e-5)


def test_a_memory_centres_each_dataset_by_its_own_means() -> None:
    ridges = {"image": 0.01, "text": 0.04}
    memory = Memory()
    for pair, seed, significant in ((IMAGE_TEXT, 3, None), (TEXT_IMAGE, 5, 12)):
        moments = with_ones(*rows(pair, seed))
        memory = memory.with_sums(pair, dataset_moments(moments), ridges, significant)
    again = artifact.load_memory(artifact.save_memory(memory))
    assert again.significant == {("image", "text"): Chosen((12, math.inf))}
    assert again.datasets == {("image", "text"): 2}
    ours, theirs = memory.centred["image", "text"], again.centred["image", "text"]
    assert (ours.rows, ours.weight) == (theirs.rows, theirs.weight)
    torch.testing.assert_close(ours.first_FF, theirs.first_FF, rtol=1e-6, atol=1e-5)
    assert torch.equal(ours.first_means_DF, theirs.first_means_DF)
    (image, text), (other_text, other_image) = rows(IMAGE_TEXT, 3), rows(TEXT_IMAGE, 5)
    weight = len(image) ** 0.5
    expected = weight * (covariance(image, text) + covariance(other_image, other_text))
    torch.testing.assert_close(theirs.cross_FG, expected, rtol=1e-5, atol=1e-5)
    # The geometric mean of equal ones is the same, divided by √2 datasets.
    pooled = {name: each.ridge for name, each in again.ridges.items()}
    assert pooled == pytest.approx({name: ridge / 2**0.5 for name, ridge in ridges.items()})


def tensors_of(sums: CentredMoments) -> list[tuple[str, torch.Tensor]]:
    return [(name, each) for name, each in vars(sums).items() if isinstance(each, torch.Tensor)]


def two_sums() -> list[CentredMoments]:
    return [dataset_moments(with_ones(*rows(IMAGE_TEXT, seed))) for seed in (3, 4)]


def test_pooled_sums_are_stored_to_the_bit() -> None:
    memory, ridges = Memory(), {"image": 0.01, "text": 0.04}
    for sums in two_sums():
        memory = memory.with_sums(IMAGE_TEXT, sums, ridges)
        again = artifact.load_memory(artifact.save_memory(memory)).centred["image", "text"]
        ours = memory.centred["image", "text"]
        assert all(torch.equal(each, getattr(again, name)) for name, each in tensors_of(ours))


def test_the_first_dataset_of_a_pair_is_what_is_pooled() -> None:
    """So that both are one blob."""
    key, ridges = ("image", "text"), {"image": 0.01, "text": 0.04}
    sums = two_sums()[0]
    solved = artifact.save_memory(Memory().with_sums(IMAGE_TEXT, sums, ridges))
    assert solved.pooled[key] == artifact.save_centred_moments(sums)
    moments = pair_moments(*rows(TEXT_IMAGE, 3))
    masked = artifact.save_memory(Memory().with_dataset(TEXT_IMAGE, moments))
    assert masked.pooled[key] == artifact.save_moments(in_order(TEXT_IMAGE, moments))


def test_only_pairs_that_changed_are_saved() -> None:
    ridges = {"image": 0.01, "text": 0.04}
    one, two = two_sums()
    other = dataset_moments(with_ones(*rows(DEPTH_IMAGE, 5)))
    parent = Memory().with_sums(DEPTH_IMAGE, other, {}).with_sums(IMAGE_TEXT, one, ridges)
    after = parent.with_sums(IMAGE_TEXT, two, ridges)
    assert artifact.save_memory(after, parent).pooled.keys() == {("image", "text")}


def test_a_memory_with_a_strange_tensor_is_refused() -> None:
    strange = artifact.save_method_state({"image/text/audio/first": torch.ones(2)})
    with pytest.raises(InvalidVersion, match="no pair"):
        artifact.load_memory(artifact.SavedMemory(strange, {}))


def test_a_memory_without_the_moments_of_a_pair_is_refused() -> None:
    saved = artifact.save_memory(two_datasets())
    with pytest.raises(InvalidVersion, match="no moments of depth and image"):
        artifact.load_memory(artifact.SavedMemory(saved.others, {}))


def with_ones(first: torch.Tensor, second: torch.Tensor) -> PairMoments:
    first, second = (torch.cat([side[:, :-1], torch.ones(20, 1)], 1) for side in (first, second))
    return pair_moments(first, second)


def covariance(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    first, second = (
        side[:, :-1].double() - side[:, :-1].double().mean(0) for side in (first, second)
    )
    return first.mT @ second / len(first)


def test_new_weights_leave_what_heads_read_as_it_is() -> None:
    conditioned = HEADS.conditioned({"text": Conditioning(torch.ones(3), 2 * torch.eye(3))})
    turned = conditioned.replaced({"text": HEADS.weights["text"].roll(1, dims=0)})
    before, after = artifact.save_heads(conditioned), artifact.save_heads(turned)
    assert (before[0] == after[0], before[1] == after[1]) == (False, True)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[: len(data) // 2], "cannot be read"),
        (lambda data: b"", "cannot be read"),
        (lambda data: data.replace(b'"text/weight"', b'"tuxt/weight"'), "'text/weight' is missing"),
    ],
)
def test_damaged_heads_are_rejected_with_a_message(damage, message: str) -> None:  # type: ignore[no-untyped-def]
    weights, inputs = artifact.save_heads(HEADS)
    with pytest.raises(InvalidVersion, match=message):
        artifact.load_heads([damage(weights), inputs], SPEC)


def test_heads_with_nan_or_another_shape_are_refused() -> None:
    broken = HEADS.replaced({"text": torch.full((4, 4), float("nan"))})
    with pytest.raises(InvalidVersion, match="not finite"):
        artifact.load_heads(artifact.save_heads(broken), SPEC)
    wide = ModelSpec(width=4, modalities={**SPEC.modalities, "text": 8}, lift=0)
    with pytest.raises(InvalidVersion, match=r"has shape \(4, 4\), expected \(4, 9\)"):
        artifact.load_heads(artifact.save_heads(HEADS), wide)
