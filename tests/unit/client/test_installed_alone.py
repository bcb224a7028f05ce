"""The wheel contains the client only; commands that need more say so."""

import os
import subprocess
from pathlib import Path

import pytest

PROGRAM = "import sys; from cmcl.cli import main; sys.exit(main(sys.argv[1:]))"


def run(python: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command line of that Python in that folder."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        # -P as for the script `cmcl`: the current folder is not searched for packages.
        [str(python), "-P", "-c", PROGRAM, *arguments],
        cwd=folder,
        env={**environment, "COLUMNS": "300"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def test_the_client_alone_runs_its_commands_and_names_those_that_need_a_checkout(
    installed: Path, tmp_path: Path
) -> None:
    """Other projects may have packages named `service` or `workers`."""
    assert run(installed, tmp_path, "model", "list", "--url=http://127.0.0.1:9").returncode == 4
    up = run(installed, tmp_path, "up")
    (site,) = installed.parents[1].glob("lib/python*/site-packages")
    for name in ("service", "workers"):
        (site / name).mkdir()
        (site / name / "__init__.py").write_text("raise SystemExit('of the user')")
    rebuild = run(installed, tmp_path, "admin", "rebuild", "--dry-run")
    for done, command in ((up, "up"), (rebuild, "admin")):
        assert done.returncode == 1
        assert done.stderr.startswith(f"error: `cmcl {command}` needs the control plane and the")
        assert "only the client is installed here: run it from a checkout" in done.stderr
        assert done.stderr.count("\n") == 1
    assert not (tmp_path / ".cmcl").exists()


def test_a_package_of_the_same_name_in_the_current_folder_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from cmcl.cli import main

    (tmp_path / "workers").mkdir()
    (tmp_path / "workers" / "__init__.py").touch()
    monkeypatch.chdir(tmp_path)
    assert main(["up", "--folder=up"]) == 1
    error = capsys.readouterr().err
    assert f"the package {tmp_path}/workers would run instead of cmcl's" in error
    assert not (tmp_path / "up").exists()
