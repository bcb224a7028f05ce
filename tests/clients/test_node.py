"""OpenAI's client for JavaScript works unchanged, where node and npm are present."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from cmcl.storage.local import LocalStore
from tests.fakes.flaky_store import FlakyStore
from tests.fakes.letter_encoder import LetterEncoders
from tests.fakes.served_app import served
from tests.unit.serve.conftest import Replica
from workers.serve.settings import ServeSettings

_FOLDER = Path(__file__).parent / "node"
TEXTS = ["a cat", "tree"]
_SECONDS = 120


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with the package of the lock; skips where it cannot be installed."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("node and npm are not installed")
    folder = tmp_path / "node"
    shutil.copytree(_FOLDER, folder)
    options = ["--ignore-scripts", "--no-audit", "--no-fund", "--silent"]
    try:
        done = subprocess.run(
            [npm, "ci", *options],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        pytest.skip(f"npm cannot install openai: {error}")
    if done.returncode:
        pytest.skip(f"npm cannot install openai: {done.stderr[-500:]}")
    return folder


def test_openais_client_for_javascript_embeds_texts_and_is_told_about_token_ids(
    project: Path, tmp_path: Path
) -> None:
    store = FlakyStore(LocalStore(tmp_path / "store"))
    replica = Replica(store, ServeSettings(store=store.uri), encoders=LetterEncoders())
    replica.publish(version=1)
    replica.poll()
    with served(replica.app) as url:
        done = subprocess.run(
            ["node", "client.mjs", url, "scenes", json.dumps(TEXTS)],
            cwd=project,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    answer = replica.embed(modality="text", input=TEXTS).json()
    expected = [each["embedding"] for each in answer["data"]]
    np.testing.assert_allclose(found["vectors"], expected, atol=1e-6)
    assert (found["refused"]["status"], found["refused"]["code"]) == (400, "token_ids")
    assert "looks like token ids" in found["refused"]["message"]
