"""What is remembered of requests, and for how long."""

import numpy as np

from tests.unit.serve.served_versions import rows
from workers.serve.canary.agreement import RecentFeatures, RecentRows


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


def test_places_that_nobody_asks_for_are_given_up() -> None:
    recent = RecentFeatures(most_places=2)
    recent.keep("m", "image", rows("image", 1))
    recent.keep("m", "text", rows("text", 1))
    recent.keep("m", "image", rows("image", 1, seed=2))
    recent.keep("other", "text", rows("text", 1))
    images = recent.of("m", "image")
    assert images is not None
    assert len(images) == 2
    assert recent.of("m", "text") is None


def test_a_model_of_the_same_name_begins_anew() -> None:
    recent = RecentFeatures()
    recent.keep("m", "image", rows("image", 1))
    recent.keep("m", "image", rows("text", 1))
    images = recent.of("m", "image")
    assert images is not None
    assert images.rows().shape == (1, 4)
