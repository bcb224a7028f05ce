"""Datasets that are measured only, from the command line and in pictures."""

from pathlib import Path

import pytest

from tests.fakes.control_plane import ControlPlane
from tests.fakes.feature_shards import feature_table, write_shard
from tests.unit.client.command_line import Cmcl
from tests.unit.client.test_commands import train_next


@pytest.fixture
def plane(published_plane: ControlPlane) -> ControlPlane:
    return published_plane


def views(plane: ControlPlane) -> Path:
    """A file of pairs image, audio."""
    path = plane.shards / "views.parquet"
    write_shard(path, feature_table(16, widths=(4, 4), prefix="views"))
    return path


def test_a_pair_is_measured_without_being_learned(
    cmcl: Cmcl, plane: ControlPlane, tmp_path: Path
) -> None:
    thread = train_next(plane)
    options = ("--pair=image,audio", "--model=scenes", "--evaluate-only", "--watch")
    ended = cmcl("dataset", "add", str(views(plane)), *options)
    thread.join()
    assert "evaluated; see: cmcl dataset show ds-" in ended
    (dataset,) = [line for line in cmcl.lines("dataset", "list") if line["evaluate_only"]]
    shown = cmcl("dataset", "show", dataset["id"])
    assert "sealed, measured only" in shown
    assert "at 1: 50.0 % (equal item), at 10: 70.0 % of 16 rows, in version 2" in shown
    assert "own row at 1: 25.0 %, at 10: 35.0 %" in shown
    assert "at 1: 50.0 %" in cmcl("job", "show", dataset["job"])

    plane.run_to_end(plane.post_dataset("three"))
    picture = tmp_path / "three.svg"
    version = cmcl("version", "show", "scenes@3", f"--picture={picture}")
    assert "measured only, never learned" in version
    assert "80.0" in version, "R@10"
    assert "audio with image: 60.0 %, never trained together" in picture.read_text()

    cmcl("dataset", "delete", dataset["id"])
    assert dataset["id"] not in cmcl("dataset", "list")
