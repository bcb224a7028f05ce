"""`cmcl apply`: a file of models, policies, webhooks and keys."""

import io
import json
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cmcl import Client, Gate
from cmcl.cli import apply as apply_command
from cmcl.cli.apply import read_file
from cmcl.cli.errors import Exit
from cmcl.client import InvalidArgument
from tests.architecture.repository import ROOT
from tests.fakes.control_plane import ControlPlane
from tests.unit.client.command_line import Cmcl
from tests.unit.client.either import in_process

EXAMPLE = ROOT / "examples" / "apply" / "cmcl.yaml"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "cmcl.yaml"


@pytest.fixture
def client(published_plane: ControlPlane) -> Iterator[Client]:
    with in_process("blocking", published_plane.app) as client:
        yield client


def secrets(folder: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (folder / "secrets.jsonl").read_text().splitlines()]


def changes(cmcl: Cmcl, file: Path, *options: str) -> list[Any]:
    """Apply the file and return what was changed."""
    applied = cmcl.one("apply", "-f", str(file), *options)
    return [(each["action"], each["kind"], each["name"]) for each in applied["changes"]]


def test_the_example_is_applied_once_and_its_secrets_are_kept_for_the_owner_alone(
    cmcl: Cmcl, tmp_path: Path
) -> None:
    file = f"--file={EXAMPLE}"
    shown = cmcl("apply", file, "--dry-run")
    assert "+ model shapes" in shown
    assert "min_backward_transfer: none -> -0.02" in shown
    assert "shapes" not in cmcl("model", "list"), "a dry run changes nothing"
    assert "--secrets" in cmcl("apply", file, code=Exit.USAGE)
    assert "shapes" not in cmcl("model", "list"), "nothing is changed before the file is known"

    kept = tmp_path / "secrets.jsonl"
    cmcl("apply", file, f"--secrets={kept}")
    assert cmcl.one("model", "gate", "shapes")["min_backward_transfer"] == -0.02
    written = secrets(tmp_path)
    assert [each["name"] for each in written] == [
        "https://example.com/hooks/cmcl",
        "nightly",
        "search-app",
    ]
    assert written[1]["secret"].startswith(written[1]["id"].replace("key-", "cmcl_"))
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600

    assert cmcl("apply", file).splitlines()[-1] == "nothing to change"
    assert changes(cmcl, EXAMPLE) == []
    assert len(cmcl.lines("key", "list")) == 2


def test_what_the_file_does_not_say_stays(cmcl: Cmcl, file: Path) -> None:
    cmcl("model", "gate", "scenes", "--max-drift=0.3", "--manual-approval")
    file.write_text(
        "models: {scenes: {modalities: {image: 4, text: 3, sound: 6}, gate: {max_drift: null}}}"
    )
    assert changes(cmcl, file) == [
        ("create", "modality", "sound of model scenes"),
        ("change", "gate", "of model scenes"),
    ]
    policy = cmcl.one("model", "gate", "scenes")
    assert (policy["max_drift"], policy["manual_approval"]) == (None, True)
    assert cmcl.one("model", "show", "scenes")["modalities"]["sound"]["width"] == 6
    file.write_text("models: {}\nkeys: []\nwebhooks: []\n")
    assert "model scenes is not in the file" in cmcl("apply", "-f", str(file))
    assert "scenes" in cmcl("model", "list")


def test_nothing_is_changed_if_something_is_fixed(cmcl: Cmcl, file: Path) -> None:
    file.write_text(
        "models:\n"
        "  new: {modalities: {image: 4, text: 3}}\n"
        "  scenes: {width: 16, modalities: {image: 4, text: 5}}\n"
        "  bound: {modalities: {image: {encoder: clip}, text: 3}}\n"
    )
    cmcl("apply", "-f", str(file), code=Exit.FAILED)
    assert "3 conflicts" in cmcl.stderr
    assert "nothing was changed" in cmcl.stderr
    found = cmcl("apply", "-f", str(file), "--dry-run", code=Exit.FAILED)
    assert "3 conflicts" in found
    assert [model["name"] for model in cmcl.lines("model", "list")] == ["scenes"]


def test_conflicts_name_the_field_and_both_values(client: Client, file: Path) -> None:
    file.write_text("models: {scenes: {width: 16, modalities: {image: {encoder: x}, text: 3}}}")
    plan = apply_command.plan_changes(client, read_file(file), prune=False)
    fixed = "it is fixed when a model is created"
    assert plan.conflicts == [
        f"models.scenes.width is 8 and the file says 16; {fixed}",
        f"models.scenes.modalities.image.encoder is none and the file says x; {fixed}",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: {}", "model: there is no such field; permitted: keys, models, webhooks"),
        ("", "has no section; permitted: models, webhooks, keys"),
        (
            "models: {a: {breadth: 8}}",
            "models.a.breadth: there is no such field; permitted: centred, erasable, gate",
        ),
        (
            "models: {policy: {modalities: {image: 4, text: 3}, gate: {drift: 1}}}",
            "models.policy.gate.drift: there is no such field; permitted: bounds, manual_approval, max_drift",
        ),
        (
            "models: {a: {modalities: {image: {size: 4}, text: 3}}}",
            "models.a.modalities.image.size: there is no such field; permitted: aligned_to, encoder, width",
        ),
        ("models: {A: {}}", "models.A: 'A'; permitted: lower-case letters, digits"),
        ("models: {a: {modalities: {image: 4}}}", "a model needs two modalities"),
        ("models: {a: {modalities: {image: 4, text: {}}}}", "neither a width nor an encoder"),
        ("models: {a: {modalities: {image: 4, text: 3}, width: 1}}", "models.a.width: 1: "),
        ("webhooks: [{url: 'https://x', kinds: [job.lost]}]", "webhooks[0].kinds[0]: 'job.lost'"),
        (
            "keys: [{name: a, scopes: [reads]}]",
            "keys[0].scopes[0]: 'reads': Input should be 'read'",
        ),
        ("keys: [{name: a}]", "keys[0].scopes: Field required"),
        ("keys: [{name: a, scopes: [read], secret: x}]", "keys[0].secret: there is no such field"),
        ("keys: [{name: a, scopes: [read]}, {name: a, scopes: [embed]}]", "keys[1] and keys[0]"),
        ("models: {a: {width: 4, width: 8}}", ":1: 'width' is given twice"),
        ("a: &b [1]\nc: *b", ":2: aliases are not permitted"),
        ("models: [", "is not valid YAML"),
    ],
)
def test_a_wrong_file_is_refused_with_path_and_permitted_values(
    file: Path, text: str, message: str
) -> None:
    file.write_text(text)
    with pytest.raises(InvalidArgument) as refused:
        read_file(file)
    assert message in str(refused.value)


def test_deletions_need_prune_and_a_confirmation(
    cmcl: Cmcl, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = cmcl.one("key", "create", "mine", "--scope=read")
    cmcl("key", "create", "old", "--scope=read")
    cmcl("webhook", "add", "https://example.com/old")
    monkeypatch.setenv("CMCL_KEY", own["key"])
    file.write_text("keys: [{name: old, scopes: [embed]}]\nwebhooks: []\nmodels: {}\n")
    cmcl("apply", "-f", str(file), code=Exit.FAILED)
    assert "1 conflicts" in cmcl.stderr
    kept = f"--secrets={tmp_path / 'secrets.jsonl'}"
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    cmcl("apply", "-f", str(file), "--prune", kept, code=Exit.FAILED)
    assert "Delete these 3?" in cmcl.stderr
    assert len(cmcl.lines("key", "list")) == 2
    assert changes(cmcl, file, "--prune", "--yes", kept) == [
        ("create", "key", "old"),
        ("delete", "key", "old"),
        ("delete", "webhook", "https://example.com/old"),
        ("delete", "model", "scenes"),
    ]
    active = [key for key in cmcl.lines("key", "list") if not key["revoked_at"]]
    assert {(key["name"], *key["scopes"]) for key in active} == {("mine", "read"), ("old", "embed")}
    assert changes(cmcl, file, "--prune") == []
    file.write_text("keys: []\n")
    cmcl("model", "create", "trees", "--modality=image=4", "--modality=text=3")
    deleted = changes(cmcl, file, "--prune", "--yes")
    assert deleted == [("delete", "key", "old")], "models are no section of this file"


def test_a_policy_changed_since_it_was_read_is_not_overwritten(
    cmcl: Cmcl, client: Client, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text(
        "models:\n"
        "  first: {modalities: {image: 4, text: 3}}\n"
        "  scenes: {modalities: {image: 4, text: 3}, gate: {max_drift: 0.2}}\n"
        "  last: {modalities: {image: 4, text: 3}}\n"
    )
    planned = apply_command.plan_changes

    def someone_else_is_faster(*given: Any, **options: Any) -> apply_command.Plan:
        plan = planned(*given, **options)
        client.set_gate("scenes", Gate(max_drift=0.7))
        return plan

    monkeypatch.setattr("cmcl.cli.apply.plan_changes", someone_else_is_faster)
    error = cmcl("apply", "-f", str(file), code=Exit.FAILED)
    assert "gate of model scenes: someone else changed it in the meantime" in error
    assert "1 of 3 changes were made" in error
    assert client.gate("scenes").max_drift == 0.7
    assert {model.name for model in client.models()} == {"first", "scenes"}
    monkeypatch.undo()
