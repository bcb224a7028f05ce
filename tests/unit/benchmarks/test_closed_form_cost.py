"""The benchmark of the closed form: its document and page are complete."""

import json
from pathlib import Path

import pytest

from benchmarks.closed_form import main

TINY = ["--features", "24", "--width", "8", "--lift", "4", "--rows", "100", "--datasets", "1,15"]


def test_last_line_and_page_have_every_figure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*TINY, "--repeats", "1", "--out", str(tmp_path)]) == 0
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [(each["width"], each["lift"]) for each in answer["moments"]] == [(24, 0), (24, 4)]
    assert all(each["share_of_products"] > 0 for each in answer["moments"])
    assert [each["datasets"] for each in answer["solutions"]] == [1, 15]
    for each in answer["solutions"]:
        assert 0 < each["directions_seconds"] < each["seconds"]
        assert min(each["dense_seconds"], each["arpack_seconds"]) > 0
    plain, lifted = answer["bytes"]
    # Two triangles and a cross moment of float32, and little else.
    assert 2 * 24 * 24 * 4 < plain["dataset"] < lifted["dataset"]
    page = (tmp_path / "closed-form.md").read_text()
    assert all(part in page for part in ("## Machine", "## Moments", "## Solution", "## Bytes"))
