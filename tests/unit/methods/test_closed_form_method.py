"""Policy `improve`: heads are a function of the moments of all datasets, turned onto the parent's."""

import pytest
import torch

from cmcl.contract.modality import ModalityPair
from cmcl.contract.model import ModelSpec, TrainingSpec
from workers.methods.improve import Improve, _significant, reduced_pairs
from workers.methods.method import Solved, TrainingContext
from workers.methods.registry import method_for
from workers.model.heads import ModalityHeads, PairedRows, initial_heads
from workers.model.memory import Memory
from workers.nullspace.centred import CentredMoments, dataset_moments, pooled
from workers.nullspace.closed_form import solve
from workers.nullspace.moments import PairMoments, pair_moments
from workers.nullspace.two_folds import Choice
from workers.train.evaluation import HeldOut, measure

WIDTHS = {"audio": 14, "image": 20, "text": 11}
SPEC = ModelSpec(width=6, modalities=WIDTHS, lift=0, training=TrainingSpec(batch_size=16))
METHOD = Improve.from_spec(SPEC)
IMAGE_TEXT = ModalityPair(first="image", second="text")
AUDIO_IMAGE = ModalityPair(first="audio", second="image")
TEXT_AUDIO = ModalityPair(first="text", second="audio")
Datasets = list[tuple[ModalityPair, PairedRows]]


def rows_of(pair: ModalityPair, seed: int, rows: int = 200) -> PairedRows:
    """Unit rows with the constant 1 that come from the same six numbers."""
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(rows, 6, generator=generator)
    sides = []
    for name in pair.modalities:
        mixing = torch.randn(6, WIDTHS[name], generator=torch.Generator().manual_seed(WIDTHS[name]))
        noise = 0.3 * torch.randn(rows, WIDTHS[name], generator=generator)
        side = torch.nn.functional.normalize(shared @ mixing + noise, dim=1)
        sides.append(torch.cat([side, torch.ones(rows, 1)], dim=1))
    keys = torch.arange(rows) + 1000 * seed
    return PairedRows(sides[0], sides[1], keys, keys)


STREAM: Datasets = [
    (IMAGE_TEXT, rows_of(IMAGE_TEXT, 1)),
    (AUDIO_IMAGE, rows_of(AUDIO_IMAGE, 2)),
    (TEXT_AUDIO, rows_of(TEXT_AUDIO, 3)),
    (IMAGE_TEXT, rows_of(IMAGE_TEXT, 4)),
]


RIDGES = dict.fromkeys(WIDTHS, 0.02)


def moments_of(rows: PairedRows) -> PairMoments:
    return pair_moments(rows.first_NI, rows.second_NJ)


def sums_of(
    dataset: tuple[ModalityPair, PairedRows],
) -> tuple[ModalityPair, CentredMoments, dict[str, float]]:
    pair, rows = dataset
    ridges = {name: RIDGES[name] for name in pair.modalities}
    return pair, dataset_moments(moments_of(rows)), ridges


def memory_of(datasets: Datasets, significant: int | None = None) -> Memory:
    memory = Memory()
    for dataset in datasets:
        memory = memory.with_sums(*sums_of(dataset), significant=significant)
    return memory


def solve_from(memory: Memory) -> Solved:
    context = TrainingContext(initial_heads(SPEC), Memory(), {}, IMAGE_TEXT, SPEC.training, seed=0)
    return METHOD.solve(context, memory)


def solved(datasets: Datasets, heads: ModalityHeads | None = None) -> Solved:
    *earlier, (pair, _) = datasets
    parent = heads or initial_heads(SPEC)
    context = TrainingContext(parent, memory_of(earlier), {}, pair, SPEC.training, seed=0)
    return METHOD.solve(context, memory_of(datasets))


def scores(found: Solved, pair: ModalityPair) -> torch.Tensor:
    return found.weights[pair.first].mT @ found.weights[pair.second]


def test_it_is_the_default() -> None:
    assert isinstance(method_for(SPEC), Improve)


def test_the_order_of_datasets_changes_no_score_but_by_rounding() -> None:
    one, other = solved(STREAM), solved(STREAM[::-1])
    for pair in (IMAGE_TEXT, AUDIO_IMAGE, TEXT_AUDIO):
        torch.testing.assert_close(scores(one, pair), scores(other, pair), rtol=0, atol=1e-4)


def test_equal_moments_give_equal_heads_to_the_bit() -> None:
    one, other = solved(STREAM), solved(STREAM)
    assert all(torch.equal(weight, other.weights[name]) for name, weight in one.weights.items())


def test_new_heads_are_turned_onto_the_parents() -> None:
    """A query of the new version finds its partner among vectors that the parent has stored."""
    first = solved(STREAM[:2])
    parent = initial_heads(SPEC).replaced(first.weights)
    # The parent's bases are arbitrary to the solver: turn them all.
    turn = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(5))).Q
    parent = parent.replaced({name: turn @ weight for name, weight in first.weights.items()})
    now = parent.replaced(solved(STREAM[:3], parent).weights)
    rows = rows_of(IMAGE_TEXT, 9)
    stored = rows.first_NI @ parent.weights["image"].mT
    queries = rows.first_NI @ now.weights["image"].mT
    agreement = torch.nn.functional.cosine_similarity(stored, queries).mean()
    assert float(agreement) > 0.95


def test_embeddings_have_unit_length_in_the_mean() -> None:
    found = solved(STREAM)
    memory = memory_of(STREAM)
    for name, weight in found.weights.items():
        inputs = memory.inputs_of(name)
        assert inputs is not None
        size = inputs.through(weight).mean_II.trace()
        torch.testing.assert_close(float(size), 1.0, rtol=1e-5, atol=0)


def test_pairs_of_held_out_rows_are_found() -> None:
    heads = ModalityHeads(solved(STREAM).weights)
    for pair in (IMAGE_TEXT, AUDIO_IMAGE, TEXT_AUDIO):
        rows = rows_of(pair, 20)
        raw = PairedRows(
            rows.first_NI[:, :-1], rows.second_NJ[:, :-1], rows.first_keys_N, rows.second_keys_N
        )
        assert measure(heads, pair, HeldOut(raw, None)).at_10 > 0.9


def test_a_pair_that_was_never_trained_is_found_through_its_partners() -> None:
    heads = ModalityHeads(solved(STREAM[:2]).weights)
    rows = rows_of(TEXT_AUDIO, 21)
    raw = PairedRows(
        rows.first_NI[:, :-1], rows.second_NJ[:, :-1], rows.first_keys_N, rows.second_keys_N
    )
    assert measure(heads, TEXT_AUDIO, HeldOut(raw, None)).at_10 > 0.8


def test_a_dataset_whose_rows_are_all_in_one_half_is_solved() -> None:
    rows = rows_of(IMAGE_TEXT, 1)
    same = PairedRows(rows.first_NI, rows.second_NJ, torch.full((200,), 7), torch.full((200,), 9))
    first, second = (moments_of(half) for half in same.halves())
    assert METHOD.choose(IMAGE_TEXT, (first, second)) == Choice((0.02, 0.02), 0.0, 1)


def test_only_significant_directions_are_kept() -> None:
    """Those of all datasets of a pair together, and pairs may have the same ones."""
    few = memory_of(STREAM[:1], significant=2)
    assert solve_from(few).directions == 2
    assert solve_from(few.with_sums(*sums_of(STREAM[3]), significant=3)).directions == 5
    assert solve_from(few.with_sums(*sums_of(STREAM[3]))).directions == SPEC.width
    assert 2 <= solve_from(memory_of(STREAM[:3], significant=2)).directions <= 6


@pytest.mark.parametrize("significant", [2, 6, None])
@pytest.mark.parametrize("level", [0.0, 1.0])
def test_a_later_dataset_with_a_constant_side_has_no_part_in_the_polish(
    significant: int | None, level: float
) -> None:
    """Its rows have nothing to agree in: no update draws them."""
    rows = rows_of(AUDIO_IMAGE, 2)
    audio = torch.zeros_like(rows.first_NI)
    audio[:, 0], audio[:, -1] = level, 1.0
    constant = PairedRows(audio, rows.second_NJ, rows.first_keys_N, rows.second_keys_N)
    before = memory_of(STREAM[:1], significant)
    after = before.with_sums(*sums_of((AUDIO_IMAGE, constant)), significant=significant)
    found = solve_from(after)
    assert found.updates == solve_from(before).updates
    assert float(found.weights["audio"][:, :-1].abs().max()) < 1e-3


@pytest.mark.parametrize(
    ("directions", "width", "updates", "rate"),
    [
        (9, 256, 94, 6e-4),
        (256, 256, 94, 6e-4),
        (512, 512, 47, 3e-4),
        (1024, 1024, 24, 1.5e-4),
        (256, 128, 376, 6e-4),
        (256, 32, 376, 6e-4),
        (256, 200, 154, 6e-4),
        (0, 64, 94, 6e-4),
    ],
)
def test_updates_and_rate_follow_from_directions_and_width(
    directions: int, width: int, updates: int, rate: float
) -> None:
    found = METHOD._settings(directions, width)
    assert (found.updates, found.learning_rate) == (updates, rate)


def test_a_pair_correlates_in_no_more_directions_than_are_significant_for_it() -> None:
    """Although another pair has more of them."""
    memory = memory_of(STREAM[:1], significant=2).with_sums(*sums_of(STREAM[1]))
    (group,) = solve(pooled(memory.centred), RIDGES, 6, torch.float64).groups
    limits = {IMAGE_TEXT.modalities: 2.0}
    kept, pairs = _significant(group, reduced_pairs(memory.centred, group), limits)
    crosses = {each.pair: each.covariance_LL[: kept.rank, kept.rank :] for each in pairs}
    ranks = {pair: int(torch.linalg.matrix_rank(each, rtol=1e-9)) for pair, each in crosses.items()}
    assert ranks == {IMAGE_TEXT.modalities: 2, AUDIO_IMAGE.modalities: kept.rank}
    assert kept.rank > 2


def test_datasets_with_different_classes_have_the_directions_of_all_classes() -> None:
    """Of one pair, four classes each."""
    memory = Memory()
    for number in range(3):
        generator = torch.Generator().manual_seed(number)
        names = torch.randn(4, 8, generator=generator)
        kinds = torch.arange(400) // 2 % 4
        texts, images = names[kinds], names[kinds] + 0.3 * torch.randn(400, 8, generator=generator)
        sides = [torch.cat([each, torch.ones(400, 1)], dim=1) for each in (images, texts)]
        halves = [pair_moments(*(side[part::2] for side in sides)) for part in (0, 1)]
        choice = METHOD.choose(IMAGE_TEXT, (halves[0], halves[1]))
        assert choice.significant == 3
        memory = memory.with_sums(
            IMAGE_TEXT, dataset_moments(halves[0] + halves[1]), RIDGES, choice.significant
        )
    # Three times three directions, in eight columns, and E is six.
    assert solve_from(memory).directions == 6


def test_the_first_heads_are_turned_to_their_principal_axes() -> None:
    """So a shorter embedding is a prefix: each number keeps less than the one before."""
    found, memory = solved(STREAM[:1]), memory_of(STREAM[:1])
    spread = torch.zeros(SPEC.width, SPEC.width, dtype=torch.float64)
    for name, weight_EI in found.weights.items():
        inputs = memory.inputs_of(name)
        assert inputs is not None
        spread += inputs.through(weight_EI).mean_II.double()
    assert torch.allclose(spread, spread.diag().diag(), atol=1e-5)
    assert bool((spread.diag().diff() < 0).all())


def test_groups_without_a_common_dataset_are_named() -> None:
    spec = ModelSpec(width=4, modalities={**WIDTHS, "depth": 9}, lift=0, training=SPEC.training)
    other = ModalityPair(first="audio", second="depth")
    sides = rows_of(IMAGE_TEXT, 2)
    depth = torch.cat([sides.second_NJ[:, :9], torch.ones(200, 1)], dim=1)
    audio = torch.cat([sides.first_NI[:, :14], torch.ones(200, 1)], dim=1)
    memory = memory_of(STREAM[:1]).with_sums(
        other, dataset_moments(pair_moments(audio, depth)), {"audio": 0.02, "depth": 0.02}
    )
    context = TrainingContext(initial_heads(spec), Memory(), {}, other, spec.training, seed=0)
    found = Improve.from_spec(spec).solve(context, memory)
    assert found.groups == (("audio", "depth"), ("image", "text"))


# A second encoder of images, whose pairs are images that both have seen.
IMAGE2_IMAGE = ModalityPair(first="image2", second="image")
ALIGNED = ModelSpec.model_validate(
    {
        **SPEC.model_dump(),
        "modalities": {**WIDTHS, "image2": {"width": 20, "aligned_to": "image"}},
    }
)


def adopted() -> tuple[ModalityPair, PairedRows]:
    rows = rows_of(IMAGE_TEXT, 30)
    turn_FF = torch.linalg.qr(torch.randn(20, 20, generator=torch.Generator().manual_seed(7))).Q
    turned_NI = torch.cat([rows.first_NI[:, :-1] @ turn_FF, torch.ones(200, 1)], dim=1)
    return IMAGE2_IMAGE, PairedRows(turned_NI, rows.first_NI, rows.first_keys_N, rows.first_keys_N)


def with_adopted(memory: Memory) -> tuple[Memory, Improve]:
    method, (pair, rows) = Improve.from_spec(ALIGNED), adopted()
    choice = method.choose(pair, (moments_of(rows.halves()[0]), moments_of(rows.halves()[1])))
    ridges = choice.by_modality(pair.modalities, ALIGNED.aligned(pair))
    return memory.with_sums(pair, dataset_moments(moments_of(rows)), ridges), method


def solve_aligned(memory: Memory, method: Improve, parent: ModalityHeads) -> Solved:
    context = TrainingContext(parent, memory_of(STREAM), {}, IMAGE2_IMAGE, SPEC.training, seed=0)
    return method.solve(context, memory)


def test_an_aligned_modality_changes_no_other_head_and_is_found_by_text() -> None:
    parent = initial_heads(ALIGNED).replaced(solved(STREAM).weights)
    before = solve_aligned(memory_of(STREAM), METHOD, parent)
    after = solve_aligned(*with_adopted(memory_of(STREAM)), parent)
    assert all(torch.equal(weight, after.weights[name]) for name, weight in before.weights.items())
    assert after.groups == (("audio", "image", "image2", "text"),)
    _, rows = adopted()
    stored_NE = rows.first_NI @ after.weights["image2"].mT
    wanted_NE = rows.second_NJ @ after.weights["image"].mT
    assert float(torch.nn.functional.cosine_similarity(stored_NE, wanted_NE).mean()) > 0.99


def test_alone_with_its_partner_an_aligned_modality_is_like_any_other() -> None:
    """So too where what the partner had learned is unlearned."""
    memory, method = with_adopted(Memory())
    found = solve_aligned(memory, method, initial_heads(ALIGNED))
    assert set(found.weights) == {"image", "image2"}
    assert found.updates > 0


def test_a_second_partner_makes_it_a_modality_like_any_other() -> None:
    pair = ModalityPair(first="audio", second="image2")
    audio = rows_of(AUDIO_IMAGE, 2)
    memory, method = with_adopted(memory_of(STREAM))
    sums = dataset_moments(moments_of(audio))
    memory = memory.with_sums(pair, sums, {"audio": 0.02, "image2": 0.02})
    before = solve_aligned(memory_of(STREAM), METHOD, initial_heads(ALIGNED))
    after = solve_aligned(memory, method, initial_heads(ALIGNED))
    assert not torch.allclose(before.weights["audio"], after.weights["audio"], atol=1e-3)


@pytest.mark.parametrize(
    ("modality", "policy", "message"),
    [
        ({"width": 3, "aligned_to": "film"}, "improve", "permitted: audio, image, text"),
        ({"width": 3, "aligned_to": "image2"}, "improve", "permitted: audio, image, text"),
        ({"width": 3, "aligned_to": "image"}, "preserve", "needs the policy improve"),
    ],
)
def test_what_a_modality_cannot_be_aligned_to(
    modality: dict[str, object], policy: str, message: str
) -> None:
    document = {**SPEC.model_dump(), "policy": policy}
    with pytest.raises(ValueError, match=message):
        ModelSpec.model_validate({**document, "modalities": {**WIDTHS, "image2": modality}})
