"""Comparison of a canary with the live version on rows of requests."""

import numpy as np
import pytest
import torch

from cmcl.contract.modality import ModalityPair
from cmcl.contract.model import ModelSpec
from tests.fakes.versions import random_heads
from tests.unit.serve.served_versions import PAIRS, SPEC, rows, version
from workers.serve.canary.agreement import (
    RecentFeatures,
    RecentRows,
    VersionComparison,
    partners_of,
)


def remembering(images: int = 0, texts: int = 0) -> RecentFeatures:
    recent = RecentFeatures()
    for modality, count in (("image", images), ("text", texts)):
        for row_BF in np.split(rows(modality, count, seed=5), count) if count else []:
            recent.keep("m", modality, row_BF)
    return recent


def test_a_version_agrees_with_itself() -> None:
    live = version(1)
    found = VersionComparison(live, version(2, heads=live.heads), remembering(texts=40)).score(
        "image", rows("image", 3)
    )
    assert set(found) == {"image--text"}
    assert found["image--text"].queries == 3
    assert found["image--text"].cosine_sum == pytest.approx(3)
    assert found["image--text"].overlap_sum == pytest.approx(3)


def test_agreement_is_that_of_all_scores_and_of_the_ten_best() -> None:
    live, canary = version(1), version(2)
    recent = remembering(texts=50)
    queries = rows("image", 4)
    found = VersionComparison(live, canary, recent).score("image", queries)["image--text"]
    stored = torch.from_numpy(rows("text", 50, seed=5))
    raw = torch.from_numpy(queries)
    one, other = (
        each.heads.embed("image", raw) @ each.heads.embed("text", stored).mT
        for each in (live, canary)
    )
    cosine = torch.nn.functional.cosine_similarity(one, other, dim=1).sum()
    overlap = sum(
        len(set(a.topk(10).indices.tolist()) & set(b.topk(10).indices.tolist())) / 10
        for a, b in zip(one, other, strict=True)
    )
    assert found.cosine_sum == pytest.approx(float(cosine), abs=1e-4)
    assert found.overlap_sum == pytest.approx(overlap)
    assert found.overlap_sum < 3.5


def test_few_rows_to_rank_say_nothing() -> None:
    live, canary = version(1), version(2)
    assert (
        VersionComparison(live, canary, remembering(texts=31)).score("image", rows("image", 1))
        == {}
    )
    assert (
        VersionComparison(live, canary, remembering(images=40)).score("image", rows("image", 1))
        == {}
    )


def test_only_learned_pairs_are_scored() -> None:
    audio = ModalityPair(first="text", second="audio")
    assert partners_of("text", [*PAIRS, audio]) == {"image--text": "image", "audio--text": "audio"}
    assert partners_of("image", [*PAIRS, audio]) == {"image--text": "text"}
    assert partners_of("audio", PAIRS) == {}


def test_rows_that_were_added_are_ranked_as_well() -> None:
    recent = remembering(texts=40)
    two = VersionComparison(version(1), version(2), recent)
    query = rows("image", 2)
    before = two.score("image", query)
    recent.keep("m", "text", rows("text", 1, seed=9))
    assert two.score("image", query) == before
    for seed in range(20, 32):
        recent.keep("m", "text", rows("text", 1, seed=seed))
    assert two.score("image", query) != before


def test_a_canary_without_the_modality_raises() -> None:
    spec = ModelSpec(width=SPEC.width, modalities={"text": 4, "audio": 3})
    canary = version(2, heads=random_heads(spec, 2), spec=spec)
    two = VersionComparison(version(1), canary, remembering(texts=40))
    with pytest.raises(KeyError):
        two.score("image", rows("image", 1))


def test_scores_that_are_not_finite_raise() -> None:
    heads = random_heads(SPEC, 2)
    broken = heads.replaced({"image": heads.weights["image"] * float("nan")})
    two = VersionComparison(version(1), version(2, heads=broken), remembering(texts=40))
    with pytest.raises(ValueError, match="not finite"):
        two.score("image", rows("image", 1))


def test_the_last_rows_are_kept_and_older_ones_go() -> None:
    recent = RecentRows(width=5, most=3)
    sent = rows("image", 5)
    for row_BF in np.split(sent, 5):
        recent.keep(row_BF)
    np.testing.assert_array_equal(recent.rows(), sent[2:])
    assert (len(recent), recent.added) == (3, 5)


def test_a_row_that_comes_again_is_kept_once() -> None:
    recent = RecentRows(width=5)
    for _ in range(3):
        recent.keep(rows("image", 1))
    assert (len(recent), recent.added) == (1, 1)


def test_of_a_large_request_four_rows_are_kept() -> None:
    recent = RecentRows(width=5)
    sent = rows("image", 1000)
    recent.keep(sent)
    np.testing.assert_array_equal(recent.rows(), sent[::250])


def test_what_is_kept_holds_on_to_no_request() -> None:
    recent = RecentRows(width=5)
    sent = rows("image", 1)
    kept_before = sent.copy()
    recent.keep(sent)
    sent[:] = 0
    np.testing.assert_array_equal(recent.rows(), kept_before)


def test_unused_samples_are_dropped() -> None:
    recent = RecentFeatures(most_places=2)
    recent.keep("m", "image", rows("image", 1))
    recent.keep("m", "text", rows("text", 1))
    recent.keep("m", "image", rows("image", 1, seed=2))
    recent.keep("other", "text", rows("text", 1))
    images = recent.of("m", "image")
    assert images is not None
    assert len(images) == 2
    assert recent.of("m", "text") is None


def test_a_model_of_the_same_name_starts_from_zero() -> None:
    recent = RecentFeatures()
    recent.keep("m", "image", rows("image", 1))
    recent.keep("m", "image", rows("text", 1))
    images = recent.of("m", "image")
    assert images is not None
    assert images.rows().shape == (1, 4)
