"""Lists on the command line: content, filters and width."""

import pytest

from tests.unit.client.command_line import Cmcl

WIDTHS = ["--modality=image=4", "--modality=text=3", "--width=8"]


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
