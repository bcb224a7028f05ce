"""A hanging cluster delays one call from time to time; one that responds is always called."""

from collections.abc import Iterable

import pytest

from service.launchers.port import (
    ClusterResources,
    LauncherUnavailable,
    LaunchState,
    LaunchStatus,
    Submission,
    WatchedLauncher,
    status_of,
)
from tests.fakes.launcher import FakeLauncher


class _Hanging(FakeLauncher):
    """Each call takes some seconds of a clock that the test reads."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.takes = 30.0
        self.asked = 0

    def _answer(self) -> None:
        self.asked += 1
        self.now += self.takes
        super()._answer()


@pytest.fixture
def hanging() -> _Hanging:
    return _Hanging()


@pytest.fixture
def breaker(hanging: _Hanging) -> WatchedLauncher:
    return WatchedLauncher(hanging, 0.0, lambda: hanging.now)


def test_of_many_calls_one_waits_for_a_cluster_that_hangs(
    hanging: _Hanging, breaker: WatchedLauncher
) -> None:
    hanging.is_down = True
    for call in range(100):
        with pytest.raises(LauncherUnavailable, match="no response"):
            status_of(breaker, f"job-{call}-a1")
    assert hanging.asked == 1
    assert hanging.now == 30


def test_a_log_out_of_reach_fails_no_other_call(
    hanging: _Hanging, breaker: WatchedLauncher
) -> None:
    hanging.is_down = True
    with pytest.raises(LauncherUnavailable):
        breaker.log("job-a1")
    hanging.is_down = False
    assert status_of(breaker, "job-a1").state == LaunchState.UNKNOWN


def test_no_log_is_asked_of_a_cluster_that_hangs(
    hanging: _Hanging, breaker: WatchedLauncher
) -> None:
    hanging.is_down = True
    with pytest.raises(LauncherUnavailable):
        status_of(breaker, "job-a1")
    with pytest.raises(LauncherUnavailable):
        breaker.log("job-a1")
    assert hanging.asked == 1


def test_a_cluster_that_hung_is_retried_later(hanging: _Hanging, breaker: WatchedLauncher) -> None:
    hanging.is_down = True
    with pytest.raises(LauncherUnavailable):
        breaker.stop("job-a1")
    hanging.is_down = False
    hanging.now += 16
    breaker.submit(Submission("job-a1", ["true"]))
    assert status_of(breaker, "job-a1").state == LaunchState.RUNNING


def test_a_quick_rejection_does_not_open_the_breaker(
    hanging: _Hanging, breaker: WatchedLauncher
) -> None:
    hanging.is_down, hanging.takes = True, 0.01
    for _ in range(5):
        with pytest.raises(LauncherUnavailable):
            status_of(breaker, "job-a1")
    assert hanging.asked == 5


def test_a_slow_response_does_not_open_the_breaker(
    hanging: _Hanging, breaker: WatchedLauncher
) -> None:
    for _ in range(5):
        assert status_of(breaker, "job-a1").state == LaunchState.UNKNOWN
    assert hanging.asked == 5


def test_resources_are_asked_for_from_time_to_time_and_outlive_an_outage(
    hanging: _Hanging, breaker: WatchedLauncher
) -> None:
    hanging.takes, hanging.cluster = 0.0, ClusterResources(8, 0, 1e9)
    assert [breaker.resources() for _ in range(3)] == [hanging.cluster] * 3
    assert hanging.asked == 1
    hanging.now, hanging.is_down = 60.0, True
    assert breaker.resources() == hanging.cluster
    hanging.now, hanging.is_down, hanging.cluster = 120.0, False, ClusterResources(16, 0, 1e9)
    assert breaker.resources() == hanging.cluster


def test_a_cluster_that_has_never_responded_has_no_known_resources(
    hanging: _Hanging, breaker: WatchedLauncher
) -> None:
    hanging.is_down = True
    with pytest.raises(LauncherUnavailable):
        breaker.resources()


class _Listing(FakeLauncher):
    """Counts its lists, on a clock that the test moves."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.lists: list[set[str]] = []

    def statuses(self, submission_ids: Iterable[str]) -> dict[str, LaunchStatus]:
        wanted = set(submission_ids)
        self.lists.append(wanted)
        return super().statuses(wanted)


@pytest.fixture
def listing() -> _Listing:
    listing = _Listing()
    for name in ("a", "b", "c"):
        listing.submit(Submission(name, ["sleep"]))
    return listing


@pytest.fixture
def cache(listing: _Listing) -> WatchedLauncher:
    return WatchedLauncher(listing, 2.0, lambda: listing.now)


def test_one_list_serves_all_who_ask_within_its_time(
    listing: _Listing, cache: WatchedLauncher
) -> None:
    cache.statuses("ab")
    for name in "abab":
        assert status_of(cache, name).state == LaunchState.RUNNING
    assert len(listing.lists) == 1
    listing.now += 2
    cache.statuses("ab")
    assert len(listing.lists) == 2


def test_those_who_ask_about_different_submissions_share_the_next_list(
    listing: _Listing, cache: WatchedLauncher
) -> None:
    cache.statuses("ab")
    status_of(cache, "c")
    for _ in range(5):
        listing.now += 2
        status_of(cache, "c")
        cache.statuses("ab")
    assert listing.lists[1:] == 6 * [{"a", "b", "c"}]


def test_an_unknown_submission_is_looked_for_in_a_new_list(
    listing: _Listing, cache: WatchedLauncher
) -> None:
    """The last list may be older than its submission by another replica."""
    cache.statuses("ab")
    listing.submit(Submission("d", ["sleep"]))
    assert status_of(cache, "d").state == LaunchState.RUNNING


def test_a_stop_is_seen_at_once(listing: _Listing, cache: WatchedLauncher) -> None:
    status_of(cache, "a")
    cache.stop("a")
    assert status_of(cache, "a").state == LaunchState.STOPPED


def test_what_nobody_asks_about_is_not_kept(listing: _Listing, cache: WatchedLauncher) -> None:
    status_of(cache, "a")
    listing.now += 100
    status_of(cache, "b")
    assert listing.lists[-1] == {"b"}
