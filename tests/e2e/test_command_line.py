"""A branch is merged, and its dataset unlearned, by the command line against the running stack.

Pages of docs run its other commands (test_journeys.py).
"""

import json
import subprocess
import sys
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

    def __call__(self, *arguments: str) -> str:
        program = str(Path(sys.executable).parent / "cmcl")
        ended = subprocess.run(
            [program, *arguments],
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout


def test_a_branch_is_merged_and_its_dataset_unlearned(stack: LocalStack) -> None:
    cmcl, stream = CommandLine(stack), read_stream(EXAMPLE_STREAM)
    widths = [f"--modality={name}={width}" for name, width in stream.modalities.items()]
    # Without a lift its heads are solved in a quarter of the time.
    cmcl("model", "create", "shapes", *widths, "--lift", "0")

    def add(model: str, name: str) -> str:
        dataset = next(each for each in stream.datasets if each.name == name)
        pair = ",".join(dataset.pair.modalities)
        return cmcl(
            *("dataset", "add", str(dataset.train), "--evaluation", str(dataset.evaluation)),
            *("--model", model, "--name", name, "--pair", pair, "--watch"),
        )

    assert "published as version 1" in add("shapes", "fashion")
    cmcl("model", "branch", "shapes@1", "shapes-north")
    assert "published as version 2" in add("shapes-north", "digits")
    merged = cmcl("model", "merge", "shapes", "--from", "shapes-north@2", "--watch")
    assert "published as version 2" in merged
    lineage = json.loads(cmcl("version", "show", "shapes", "2", "--json"))["lineage"]
    assert [line["name"] for line in lineage] == ["fashion", "digits"]
    unlearned = cmcl(
        *("dataset", "delete", lineage[1]["dataset"], "--unlearn"),
        *("--model", "shapes", "--watch"),
    )
    assert "published as version 3" in unlearned
    version = json.loads(cmcl("version", "show", "shapes", "3", "--json"))
    assert [line["name"] for line in version["lineage"]] == ["fashion"]
    assert version["manifest"]["unlearned"]["name"] == "digits"
