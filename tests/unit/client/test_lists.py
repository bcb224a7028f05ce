"""Lists on the command line: content, filters and width."""

import pytest

from tests.fakes.control_plane import ControlPlane
from tests.fakes.feature_shards import table_with_nan, write_shard
from tests.unit.client.command_line import Cmcl

WIDTHS = ["--modality=image=4", "--modality=text=3", "--width=8"]


@pytest.fixture
def plane(published_plane: ControlPlane) -> ControlPlane:
    return published_plane


def test_a_job_that_failed_shows_no_version(cmcl: Cmcl, plane: ControlPlane) -> None:
    """The service returns the planned version of a job; a failed job has none."""
    bad = write_shard(plane.shards / "bad.parquet", table_with_nan(16)).uri
    job = cmcl.one("dataset", "add", bad, "--pair=image,text", "--model=scenes")["job"]["id"]
    plane.run_to_end(job)
    (line,) = (line for line in cmcl("job", "list").splitlines() if job in line)
    assert [cell.strip() for cell in line.split("│")[3:5]] == ["failed", "-"]
    shown = dict(line.split(None, 1) for line in cmcl("job", "show", job).splitlines() if line)
    assert shown["version"].strip() == "-"


def test_lists_cover_all_models_unless_filtered(
    cmcl: Cmcl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CMCL_MODEL", "trees")
    cmcl("model", "create", "trees", *WIDTHS)
    for group in ("job", "dataset"):
        assert len(cmcl.lines(group, "list")) == 2
        assert cmcl.lines(group, "list", "--model=trees") == []
    assert "no version yet" in cmcl("version", "list"), "an argument that is needed comes from it"


def test_lists_show_the_newest_items_on_request(cmcl: Cmcl) -> None:
    for arguments, field in {
        ("job", "list"): "id",
        ("dataset", "list"): "id",
        ("version", "list", "scenes"): "version",
        ("history", "scenes"): "generation",
    }.items():
        oldest_first = [line[field] for line in cmcl.lines(*arguments)]
        newest_first = [line[field] for line in cmcl.lines(*arguments, "--order=desc")]
        assert newest_first == oldest_first[::-1]
        (newest,) = cmcl.lines(*arguments, "--order=desc", "--limit=1")
        assert newest[field] == oldest_first[-1]
    cmcl("model", "create", "trees", *WIDTHS)
    assert [line["name"] for line in cmcl.lines("model", "list", "--order=desc")] == [
        "trees",
        "scenes",
    ]
    assert "--limit" in cmcl("job", "list", "--limit=0", code=2)


def test_an_empty_list_shows_the_next_command(cmcl: Cmcl) -> None:
    cmcl("model", "create", "trees", *WIDTHS)
    for arguments, words in {
        ("job", "list", "--state=held"): "no jobs in state held\n",
        ("job", "list", "--model=trees"): "no jobs of model trees\n",
        ("dataset", "list", "--model=trees"): "cmcl dataset add",
        ("version", "list", "trees"): "cmcl dataset add",
        ("history", "trees"): "model trees has not had a live version yet",
        ("key", "list"): "cmcl key create",
    }.items():
        assert words in cmcl(*arguments)
        assert cmcl(*arguments, "--json") == ""


@pytest.mark.parametrize("width", ["20", "40", "80", "300"])
def test_tables_are_complete_on_any_terminal(
    cmcl: Cmcl, width: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", width)
    for arguments in (
        ("model", "list"),
        ("job", "list"),
        ("dataset", "list"),
        ("version", "list", "scenes"),
        ("history", "scenes"),
    ):
        shown = cmcl(*arguments)
        assert max(map(len, shown.splitlines())) <= int(width)
        assert "…" not in shown
        if int(width) >= 40:
            first = cmcl.lines(*arguments)[0]
            assert first.get("id", first.get("job", first.get("name", ""))) in shown
