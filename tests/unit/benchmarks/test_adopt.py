"""Another encoder's vectors, that join by a sample of pairs: measured, and beside it the prediction."""

from pathlib import Path

import pytest

from benchmarks.adopt import _first_sentence, _page, cases, measure
from tests.unit.benchmarks.tiny_stream import NAMES, write_stream


def test_a_rotated_encoder_is_measured_and_predicted(tmp_path: Path) -> None:
    folder = write_stream(tmp_path / "tiny", NAMES[:1])
    made = list(cases(folder, "unseen"))
    assert [kind for _, kind, _ in made] == ["rotated and cut", "other training"]
    name, kind, make = made[0]
    found = {"name": name, "kind": kind, "held": "unseen", **measure(make())}
    # Four classes of many rows: what is found by class is found by the other encoder, too.
    assert found["2000"]["share"] == pytest.approx(1.0, abs=0.4)
    assert found["2000"]["predicted"]["share"] == pytest.approx(found["2000"]["share"], abs=0.4)
    page = _page({"cases": [found], "machine": {}})
    assert "| tiny | unseen | rotated and cut | 1 |" in page


def test_texts_are_first_sentences_of_installed_packages() -> None:
    assert _first_sentence("numpy/_core/numeric.py:ones") is not None
    assert _first_sentence("numpy/_core/numeric.py:there_is_none") is None
    assert _first_sentence("there_is_no_package/module.py:function") is None
