"""The README's commands against the running stack."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cmcl.demo.stream import read_stream
from cmcl.stack import LocalStack
from tests.conftest import EXAMPLE_STREAM

pytestmark = pytest.mark.ray


class CommandLine:
    """`cmcl` in its own process, with the address of the stack in environment variables."""

    def __init__(self, stack: LocalStack) -> None:
        self._environment = {
            "CMCL_URL": stack.service_url,
            "CMCL_EMBEDDINGS_URL": stack.embeddings_url,
            "COLUMNS": "200",
        }

    def __call__(self, *arguments: str, code: int = 0) -> str:
        program = str(Path(sys.executable).parent / "cmcl")
        ended = subprocess.run(
            [program, *arguments],
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert ended.returncode == code, ended.stdout + ended.stderr
        return ended.stdout if code == 0 else ended.stderr


@pytest.fixture(scope="module")
def cmcl(stack: LocalStack) -> CommandLine:
    return CommandLine(stack)


@pytest.fixture(scope="module")
def published(cmcl: CommandLine) -> str:
    """A model with one version, made on the command line alone."""
    stream = read_stream(EXAMPLE_STREAM)
    widths = [f"--modality={name}={width}" for name, width in stream.modalities.items()]
    # Without a lift its heads are solved in a quarter of the time.
    cmcl("model", "create", "shapes", *widths, "--lift", "0")
    fashion = stream.datasets[0]
    answer = cmcl(
        *("dataset", "add", str(fashion.train), "--evaluation", str(fashion.evaluation)),
        *("--model", "shapes", "--name", "fashion", "--pair", "image,text", "--watch"),
    )
    assert "published as version 1" in answer
    return "shapes"


def test_model_is_listed_with_its_live_version(cmcl: CommandLine, published: str) -> None:
    # A job is published a moment before its version is stored and live.
    deadline = time.monotonic() + 60
    while not re.search(r"shapes\s+│ \w+\s+│ 1\s+│ 1 ", listed := cmcl("model", "list")):
        assert time.monotonic() < deadline, listed


def test_a_version_reports_what_was_learned(cmcl: CommandLine, published: str) -> None:
    assert re.search(r"│ 1\s+│ fashion", cmcl("version", "list", published))
    page = cmcl("version", "show", published, "1")
    assert re.search(r"│ 1\s+│ fashion │ \d\d\.\d", page)


def test_version_as_json_is_one_document(cmcl: CommandLine, published: str) -> None:
    version = json.loads(cmcl("version", "show", published, "1", "--json"))
    assert version["manifest"]["report"]["ranks"] == 2


def test_a_file_is_uploaded_and_has_an_address(cmcl: CommandLine, published: str) -> None:
    uploaded = json.loads(cmcl("upload", str(EXAMPLE_STREAM / "stream.json"), "--json"))
    assert re.fullmatch(r"upload:up-[0-9a-f]{12}", uploaded["uri"])


def test_embedding_comes_with_its_version(
    cmcl: CommandLine, published: str, tmp_path: Path
) -> None:
    feature = tmp_path / "feature.json"
    feature.write_text(json.dumps([0.5] * 384))
    live = json.loads(cmcl("embed", published, "text", str(feature)))
    exact = json.loads(cmcl("embed", f"{published}@1", "text", str(feature)))
    assert live == exact
    assert live["version"] == 1
    assert len(live["embeddings"][0]) == 256


def test_promoting_names_the_new_generation(cmcl: CommandLine, published: str) -> None:
    assert "version 1 is live (generation" in cmcl("promote", published, "1", "--reason", "why not")
    assert re.search(r"│ 1\s+│ 1\s+│ -\s+│ published", cmcl("history", published))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("promote", "shapes", "7"), "has no version 7"),
        (
            (
                *("dataset", "add", "/etc/hosts", "--upload=never"),
                *("--model", "shapes", "--pair", "image,text"),
            ),
            "outside the allowed prefixes",
        ),
    ],
)
def test_errors_are_answered_in_one_line(
    cmcl: CommandLine, published: str, arguments: tuple[str, ...], message: str
) -> None:
    answer = cmcl(*arguments, code=1)
    assert answer.startswith("error: ")
    assert message in answer.replace("\n", " ")
    assert "Traceback" not in answer


def test_server_that_is_not_there_is_named(cmcl: CommandLine) -> None:
    assert "cannot connect to http://127.0.0.1:9" in cmcl(
        "model", "list", "--url", "http://127.0.0.1:9", code=4
    )


def test_a_branch_is_merged_and_its_dataset_unlearned(cmcl: CommandLine, published: str) -> None:
    cmcl("model", "branch", f"{published}@1", "shapes-north")
    digits = next(each for each in read_stream(EXAMPLE_STREAM).datasets if each.name == "digits")
    cmcl(
        *("dataset", "add", str(digits.train), "--evaluation", str(digits.evaluation)),
        *(
            "--model",
            "shapes-north",
            "--name",
            "digits",
            "--pair",
            ",".join(digits.pair.modalities),
        ),
        "--watch",
    )
    merged = cmcl("model", "merge", published, "--from", "shapes-north@2", "--watch")
    assert "published as version 2" in merged
    lineage = json.loads(cmcl("version", "show", published, "2", "--json"))["lineage"]
    assert [line["name"] for line in lineage] == ["fashion", "digits"]
    unlearned = cmcl(
        *("dataset", "delete", lineage[1]["dataset"], "--unlearn"),
        *("--model", published, "--watch"),
    )
    assert "published as version 3" in unlearned
    version = json.loads(cmcl("version", "show", published, "3", "--json"))
    assert [line["name"] for line in version["lineage"]] == ["fashion"]
    assert version["manifest"]["unlearned"]["name"] == "digits"
