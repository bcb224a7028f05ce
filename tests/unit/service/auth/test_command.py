"""`python -m service`: wrong settings in one line each, and keys without HTTP."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from service.__main__ import main
from tests.fakes.control_plane import ControlPlane
from tests.unit.service.auth.key_client import ADMIN_KEY, KeyClient

ROOT = Path(__file__).resolve().parents[4]
SECRET = "too-short-secret"
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `python -m service keys ...` on its own database; return status, stdout, stderr."""
    monkeypatch.setenv("CMCL_DATABASE_URL", f"sqlite:///{tmp_path / 'cmcl.db'}")

    def run(*arguments: str) -> tuple[int, str, str]:
        status = main(["keys", *arguments])
        return (status, *capsys.readouterr())

    return run


def test_invalid_settings_are_reported_one_per_line_without_a_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = {"CMCL_PORT": "70000", "CMCL_LAUNCHER": "slurm", "CMCL_ADMIN_KEY": SECRET}
    for name, value in wrong.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    assert main([]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert sorted(line.partition(":")[0] for line in err.splitlines()) == sorted(wrong)
    assert SECRET not in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"CMCL_AUTH": "off", "CMCL_HOST": "0.0.0.0"}, ["CMCL_AUTH", "CMCL_HOST"]),
        ({"CMCL_HOST": "0.0.0.0"}, ["CMCL_HOST", "0.0.0.0", "CMCL_BEHIND_PROXY"]),
        ({"CMCL_OIDC_ISSUER": "https://issuer.example.org"}, ["CMCL_OIDC_AUDIENCE"]),
    ],
)
def test_settings_that_contradict_each_other_are_both_named(
    run: Run, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], named: list[str]
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    status, _, complaints = run("list")
    assert status == 2
    assert len(complaints.splitlines()) == 1
    assert [name for name in named if name not in complaints] == []


def test_the_first_key_needs_no_http(run: Run, tmp_path: Path) -> None:
    status, output, note = run("create", "first", "--scopes", "read,write", "--owner", "lab")
    assert status == 0
    assert re.fullmatch(r"cmcl_[0-9a-f]{12}_[A-Za-z0-9_-]{43}\n", output)
    assert "not shown again" in note
    plane = ControlPlane(tmp_path, auth="on", admin_key=ADMIN_KEY)
    known = KeyClient(plane, output.strip()).get("/v1/whoami").json()
    plane.close()
    assert known == {"name": "first", "owner": "lab", "scopes": ["read", "write"]}


def test_keys_are_listed_without_secrets_and_revoked(run: Run, tmp_path: Path) -> None:
    _, key, _ = run("create", "first", "--scopes", "admin", "--expires-in-days", "2")
    _, listed, _ = run("list")
    heading, line = listed.splitlines()
    assert heading.split()[:4] == ["id", "name", "owner", "scopes"]
    assert line.split()[1:4] == ["first", "default", "admin"]
    assert line.endswith("valid")
    assert key.strip().split("_", 2)[2] not in listed
    assert run("revoke", line.split()[0]) == (0, "", "")
    assert run("list")[1].splitlines()[1].endswith("revoked")
    plane = ControlPlane(tmp_path, auth="on")
    assert KeyClient(plane, key.strip()).get("/v1/whoami").status_code == 401
    plane.close()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["revoke", "key-000000000000"], "there is no key 'key-000000000000'"),
        (["create", "Bad Name", "--scopes", "read"], "name: "),
        (["create", "operator", "--scopes", "read"], "reserved actor name"),
        (["create", "x", "--scopes", "read", "--expires-in-days", "0"], "expires_in_days: "),
    ],
)
def test_a_wrong_value_is_refused_in_one_line(
    run: Run, arguments: list[str], complaint: str
) -> None:
    status, output, complaints = run(*arguments)
    assert (status, output) == (1, "")
    assert complaint in complaints
    assert len(complaints.splitlines()) == 1


def test_a_database_that_cannot_be_reached_is_one_line(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CMCL_DATABASE_URL", "postgresql://127.0.0.1:1/none")
    status, output, complaints = run("list")
    assert (status, output) == (1, "")
    assert complaints.startswith("the database did not respond")
    assert "Traceback" not in complaints
