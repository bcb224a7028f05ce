"""Who meets the candidate: a share of the callers, always the same ones."""

import pytest

from workers.serve.versions.lookup import routed_to_canary

KEYS = [f"caller-{number}" for number in range(10_000)]


def chosen(share: float, revision: int = 3, model: str = "scenes") -> set[str]:
    return {key for key in KEYS if routed_to_canary(model, revision, key, share)}


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.9])
def test_the_share_of_the_callers_is_the_share_asked_for(share: float) -> None:
    deviation = (share * (1 - share) / len(KEYS)) ** 0.5
    assert abs(len(chosen(share)) / len(KEYS) - share) < 4 * deviation


def test_nobody_at_share_zero_and_everybody_at_one() -> None:
    assert chosen(0) == set()
    assert chosen(1) == set(KEYS)


def test_who_is_in_stays_in_when_the_share_grows() -> None:
    assert chosen(0.05) < chosen(0.1) < chosen(0.5)


def test_the_same_key_is_chosen_in_every_process() -> None:
    # Fixed for ever: two releases that choose otherwise would show one caller both versions.
    assert sorted(chosen(0.0005)) == ["caller-6144", "caller-6250", "caller-6983"]


@pytest.mark.parametrize("other", [{"revision": 4}, {"model": "sounds"}])
def test_another_trial_meets_other_callers(other: dict[str, object]) -> None:
    both = chosen(0.1) & chosen(0.1, **other)  # type: ignore[arg-type]
    assert len(both) < 0.02 * len(KEYS)
