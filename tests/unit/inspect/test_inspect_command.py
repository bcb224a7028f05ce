"""The command as a user types it: a table or one document, and a status for every end."""

import io
import json
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tests.unit.inspect.conftest import LOSSY, shard_file
from workers.inspect.__main__ import main
from workers.inspect.compare import ComparedDataset, Comparison
from workers.inspect.show import aligned, as_json
from workers.nullspace.compatibility import Compatibility, MixedScores
from workers.storage.object_store import ObjectStore


@dataclass(frozen=True)
class CommandResult:
    status: int
    stdout: str
    stderr: str


def ask(question: str, store: ObjectStore, *arguments: str | Path) -> CommandResult:
    return asked(question, "--store", store.uri, "--model", "m", *arguments)


def asked(*arguments: str | Path) -> CommandResult:
    stdout, stderr = io.StringIO(), io.StringIO()
    with redirect_stdout(stdout), redirect_stderr(stderr):
        try:
            status = main([*map(str, arguments)])
        except SystemExit as end:
            status = int(end.code or 0)
    return CommandResult(status, stdout.getvalue(), stderr.getvalue())


def questions(folder: Path) -> dict[str, list[str]]:
    """Arguments of each question that can be answered."""
    np.save(folder / "in.npy", np.eye(LOSSY, dtype=np.float32))
    versions = ["--from", "1", "--to", "3"]
    files = ["--vectors", str(folder / "in.npy"), "--out", str(folder / "out.npy")]
    return {
        "capacity": ["--version", "3"],
        "preflight": [
            *("--version", "3", "--pair", "v,a"),
            *("--shards", shard_file(folder, "x_va", 9).as_uri()),
        ],
        "compare": versions,
        "migrate": [*versions, "--modality", "v", *files],
    }


@pytest.mark.parametrize("question", ["capacity", "preflight", "compare", "migrate"])
def test_every_question_has_a_table_and_a_document(
    store: ObjectStore, tmp_path: Path, question: str
) -> None:
    arguments = questions(tmp_path)[question]
    table, document = ask(question, store, *arguments), ask(question, store, *arguments, "--json")
    assert (table.status, table.stderr) == (document.status, document.stderr) == (0, "")
    assert "{" not in table.stdout
    assert len(table.stdout.splitlines()) > 4
    (line,) = document.stdout.splitlines()
    assert json.loads(line)["model"] == "m"


def test_tables_say_what_documents_say(store: ObjectStore) -> None:
    arguments = ("--from", "1", "--to", "3")
    (found,) = json.loads(ask("compare", store, *arguments, "--json").stdout)["datasets"]
    table = ask("compare", store, *arguments).stdout
    for words, of in (
        ("drift", lambda one: one["both_new"]),
        ("v stored, against before", lambda one: one["first_stored"]["against_old"]),
        ("t stored, against re-indexed", lambda one: one["second_stored"]["against_new"]),
    ):
        (line,) = (line for line in table.splitlines() if line.startswith(words))
        ways = (found["predicted"], found["measured"]["scores"], found["measured"]["unit_scores"])
        cells = line.removeprefix(words).split()
        assert cells[:3] == [f"{of(way):.3g}" for way in ways]


def test_what_would_be_refused_ends_with_status_3(store: ObjectStore, tmp_path: Path) -> None:
    bad = tmp_path / "bad.parquet"
    bad.write_bytes(b"not Parquet")
    said = ask("preflight", store, "--version", "1", "--pair", "v,t", "--shards", bad.as_uri())
    assert (said.status, said.stderr) == (3, "")
    assert "It would be refused." in said.stdout
    assert "neither Parquet nor Arrow IPC" in said.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["capacity", "--version", "9"], "no version 9: the store has versions 1 to 3"),
        (["capacity", "--version", "0"], "'0' is no version"),
        (["compare", "--from", "1", "--to", "9"], "no version 9"),
        (["preflight", "--version", "1", "--pair", "v,v", "--shards", "x"], "'v,v' is no pair"),
        (["preflight", "--version", "1", "--pair", "v", "--shards", "x"], "'v' is no pair"),
        (
            ["preflight", "--version", "1", "--pair", "v,t", "--shards", "ftp://x"],
            "permitted schemes",
        ),
        (["migrate", "--from", "1", "--to", "3", "--modality", "v"], "--vectors"),
        (["preflight", "--version", "1", "--pair", "v,x", "--shards", "x"], "no modality 'x'"),
    ],
)
def test_an_error_is_answered_in_one_line(
    store: ObjectStore, arguments: Sequence[str], words: str
) -> None:
    said = ask(arguments[0], store, *arguments[1:])
    assert (said.status, said.stdout) == (2, "")
    (line,) = said.stderr.splitlines()
    assert line.startswith("workers.inspect: ")
    assert words in line


def test_a_folder_that_cannot_be_written_is_reported(store: ObjectStore, tmp_path: Path) -> None:
    arguments = questions(tmp_path)["migrate"]
    said = ask("migrate", store, *arguments[:-1], tmp_path / "nowhere" / "out.npy")
    assert said.status == 2
    (line,) = said.stderr.splitlines()
    assert "nowhere" in line


def test_a_path_is_an_address(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bad file.parquet").write_bytes(b"not Parquet")
    monkeypatch.chdir(tmp_path)
    said = ask("preflight", store, "--version=1", "--pair=v,t", "--shards", "bad file.parquet")
    assert said.status == 3
    assert "bad%20file.parquet: " in said.stdout
    assert "neither Parquet nor Arrow IPC" in said.stdout


def test_infinity_becomes_null_in_a_document() -> None:
    endless = MixedScores(float("inf"), 0.5)
    dataset = ComparedDataset("d", "n", ("a", "b"), 1, Compatibility(endless, endless, 0.0), None)
    found = json.loads(as_json(Comparison("m", 1, 2, (dataset,))))
    assert found["datasets"][0]["predicted"]["first_stored"] == {
        "against_old": None,
        "against_new": 0.5,
    }


def test_columns_are_aligned_left_then_right() -> None:
    assert aligned([["a", "bbb", "c"], ["dddd", "e", ""]]) == ["a     bbb  c", "dddd    e"]
