"""The wheel in an environment without a checkout."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.architecture.repository import ROOT

UV = Path(sys.executable).parent / "uv"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run([UV, "build", "--quiet", "--wheel", "--out-dir", folder, ROOT], check=True)
    [built] = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python of an environment with the wheel and what it requires."""
    environment = tmp_path_factory.mktemp("environment") / "venv"
    subprocess.run([UV, "venv", "--quiet", "--python", sys.executable, environment], check=True)
    found = environment / "bin" / "python"
    subprocess.run([UV, "pip", "install", "--quiet", "--python", found, wheel], check=True)
    return found


def test_the_wheel_installs_no_top_level_package_but_cmcl(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        tops = {name.split("/")[0] for name in archive.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"cmcl"}


def test_the_client_works_beside_packages_of_the_users_own(python: Path, tmp_path: Path) -> None:
    for name in ("workers", "service"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("MINE = True\n")
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, workers, service, cmcl, cmcl.cli\n"
        "from cmcl.contract.model import ModelSpec\n"
        "cmcl.Client('http://127.0.0.1:1', 'http://127.0.0.1:1').close()\n"
        "assert ModelSpec(modalities={'image': 2, 'text': 2}).width\n"
        "assert workers.MINE and service.MINE\n"
        "ours = {name.split('.')[1] for name in sys.modules if name.startswith(('workers.', 'service.'))}\n"
        "assert not ours, ours\n"
    )
    subprocess.run([python, "-W", "error", script], check=True, cwd=tmp_path)


def test_the_command_line_is_installed(python: Path, tmp_path: Path) -> None:
    command = [str(python.parent / "cmcl"), "--help"]
    shown = subprocess.run(command, check=True, cwd=tmp_path, capture_output=True, text=True)
    assert "dataset" in shown.stdout
