"""Pages for newcomers: their commands run from top to bottom against the running stack.

A block that cannot run here, such as the installation, says so in a comment in front of it. Ports differ, and the
encoders of docs/start.md are synthetic ones of the same names; tests/unit/encoders runs the real ones.
"""

import hashlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from cmcl.client import Client
from cmcl.stack import LocalStack
from cmcl.stack_host import HOST, Ports
from tests.architecture.documents import CodeBlock, code_blocks
from tests.architecture.repository import ROOT

pytestmark = pytest.mark.ray

_SERVICE, _EMBEDDINGS, _DASHBOARD = (f"http://{HOST}:{port}" for port in (8000, 8001, 8265))
_SECONDS = 900
# Characters of the trace of a page that failed: its last commands, and what they said.
_SHOWN = 4000
_END = "END_OF_BLOCK"


def run_page(page: str, folder: Path, addresses: Mapping[str, str], **environment: str) -> str:
    """Run the blocks of a page in one shell, and return what they printed. `addresses`: in place of those of the page."""
    script = "\n".join(
        [
            "set -euxo pipefail",
            *(_command(block) for block in code_blocks(_text(page)) if block.is_run),
        ]
    )
    for documented, actual in addresses.items():
        script = script.replace(documented, actual)
    (folder / "examples").symlink_to(ROOT / "examples")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CMCL_")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    shell = subprocess.Popen(
        ["bash", "-c", script],
        cwd=folder,
        env={**kept, "PATH": path, "COLUMNS": "200", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        printed, said = shell.communicate(timeout=_SECONDS)
    finally:
        # A page that fails may leave processes in the background.
        with suppress(ProcessLookupError):
            os.killpg(shell.pid, signal.SIGKILL)
    assert shell.returncode == 0, f"...{said[-_SHOWN:]}\nprinted: ...{printed[-_SHOWN:]}"
    return printed


def _text(page: str) -> str:
    return (ROOT / "docs" / page).read_text()


def _command(block: CodeBlock) -> str:
    """The block as shell commands."""
    if block.language == "python":
        return f"python - <<'{_END}'\n{block.text}{_END}"
    assert block.language == "sh", f"blocks of {block.language} cannot be run"
    return block.text


def test_an_application_searches_pictures_and_learns_more_without_a_new_index(
    stack: LocalStack, client: Client, tmp_path: Path
) -> None:
    addresses = {_SERVICE: stack.service_url, _EMBEDDINGS: stack.embeddings_url}
    printed = run_page("start.md", tmp_path, addresses)
    assert "published as version 1" in printed
    assert "2 embeddings of 256 numbers" in printed
    assert "published as version 2" in printed
    assert "mine: version 1 is live (generation 3)" in printed
    first, second = (client.version("mine", number) for number in (1, 2))
    assert [line.name for line in second.lineage] == ["pictures", "more-pictures"]
    assert second.lineage[0].rows == first.lineage[0].rows > 50
    searched = client.collection("pictures").searched
    assert searched is not None
    assert searched.rows == {"image": len(list((tmp_path / "pictures").glob("*.png")))}


def test_a_researcher_compares_a_method_reads_a_certificate_and_exports(
    stack: LocalStack, tmp_path: Path
) -> None:
    addresses = {_SERVICE: stack.service_url, _EMBEDDINGS: stack.embeddings_url}
    printed = run_page("start-research.md", tmp_path, addresses)
    assert "HalfWay" in printed
    assert "published as version 2" in printed
    assert "drift 0." in printed
    assert printed.count(": differs by at most") == 3
    assert (tmp_path / "study-2.svg").read_text().startswith("<svg")


@pytest.fixture
def platform(stack: LocalStack, tmp_path: Path) -> Iterator[tuple[Path, Mapping[str, str]]]:
    """A folder, and the environment of a control plane of its own that uses the Ray of the stack."""
    yield (
        tmp_path,
        {
            "CMCL_PORT": str(Ports.free().service),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": stack.ray_headers["Authorization"].removeprefix("Bearer "),
        },
    )
    store = hashlib.sha256((tmp_path / "rehearsal" / "store").as_uri().encode()).hexdigest()[:8]
    jobs = f"{stack.dashboard_url}/api/jobs/"
    for job in httpx.get(jobs, headers=stack.ray_headers).json():
        name = job["submission_id"]
        if name and name.startswith(f"driver-{store}-"):
            httpx.post(f"{jobs}{name}/stop", headers=stack.ray_headers).raise_for_status()


def test_an_operator_gates_kills_rolls_back_and_rebuilds(
    stack: LocalStack, platform: tuple[Path, Mapping[str, str]]
) -> None:
    folder, environment = platform
    addresses = {
        _SERVICE: f"http://{HOST}:{environment['CMCL_PORT']}",
        _DASHBOARD: stack.dashboard_url,
    }
    printed = run_page("start-platform.md", folder, addresses, **environment)
    assert "a second model exceeds the quota" in printed
    assert "another owner does not see it" in printed
    assert "published as version 1" in printed
    assert 'cmcl_service_jobs_finished_total{reason="",state="published"} 1.0' in printed
    assert printed.count("published as version 2") == 1
    assert "parts: version 1 is live (generation 3)" in printed
    assert "a rehearsal" in printed
    assert re.findall(r"│ 3 +│ 1 +│", printed) == ["│ 3          │ 1       │"] * 2, (
        "before and rebuilt"
    )
