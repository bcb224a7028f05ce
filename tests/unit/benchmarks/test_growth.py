"""One more version with a simulated history."""

from benchmarks.live.growth import measure_growth
from cmcl.contract.model import ModelSpec

SPEC = ModelSpec(width=8, lift=0, modalities={"a": 6, "b": 5, "c": 4}, centred=False)


def test_a_version_certifies_no_more_datasets_after_a_long_history_than_after_a_short_one() -> None:
    short, long = measure_growth((15, 100), SPEC, rows=60)
    assert (short["datasets"], short["measured"]) == (15, 15)
    assert (long["datasets"], long["measured"]) == (100, 12)
    assert short["phases"].keys() == long["phases"].keys() >= {"training", "certifying"}
