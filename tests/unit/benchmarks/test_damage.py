"""Every kind of stored object, damaged in every way: whatever reads it notices."""

from benchmarks.damage import page, run


def test_all_damage_is_refused_by_name_or_does_no_harm() -> None:
    found, total = run(bits=3)
    assert set(total) <= {"refused", "unharmed", "absent"}, page(found)
    # No kind or reader has been left out.
    assert total["refused"] > 300
