"""compose.yaml: its services fit together, and their settings are valid."""

import re
import tomllib
from typing import Any

import pytest
import yaml

from cmcl.haproxy import SERVING
from service.core.settings import Settings
from tests.architecture.repository import ROOT
from workers.serve.settings import ServeArgs

FOLDER = ROOT / "deploy"
TEXT = (FOLDER / "compose.yaml").read_text()
COMPOSE = yaml.safe_load(TEXT)
PARTS: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {name: part for name, part in PARTS.items() if "/cmcl-" in part["image"]}
STAY = [name for name, part in PARTS.items() if part["restart"] != "no"]
SECRETS = set(re.findall(r"\$\{(\w+):\?", TEXT))
SERVE = yaml.safe_load((FOLDER / "compose" / "serve.yaml").read_text())
ARGS = ServeArgs.model_validate(SERVE["applications"][0]["args"])


def filled(value: str) -> str:
    """compose.yaml with its variables filled in."""
    with_secrets = re.sub(r"\$\{(\w+):\?[^}]*\}", lambda found: f"{found[1]:x<40}", value)
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", with_secrets)


def test_every_setting_is_one_of_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    written = PARTS["service"]["environment"]
    ours = {name for name in written if name.startswith("CMCL_")}
    assert {name.removeprefix("CMCL_").lower() for name in ours} <= set(Settings.model_fields)
    # One without a value is passed on only where the env file has it.
    environment = {name: filled(written[name]) for name in ours if written[name] is not None}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    settings = Settings()
    assert settings.database_url.startswith("postgresql://cmcl:DATABASE_PASSWORD")
    assert (settings.store_uri, settings.auth) == (ARGS.store, "on")


def test_compose_serves_with_the_arguments_of_the_chart() -> None:
    (application,) = SERVE["applications"]
    template = (ROOT / "helm" / "templates" / "serving" / "rayservice.yaml").read_text()
    assert f"import_path: {application['import_path']}\n" in template
    nodes = PARTS["ray-worker"]["environment"]
    assert {name: nodes[name] for name in SERVING} == SERVING


def test_no_secret_has_a_value_or_a_default() -> None:
    example = dict(
        line.partition("=")[::2]
        for line in (FOLDER / "compose.env.example").read_text().splitlines()
        if line and not line.startswith("#")
    )
    assert set(example) == SECRETS
    assert not any(example.values())
    named = re.findall(r"^ *(\w*(?:PASSWORD|SECRET\w*|TOKEN|KEY)): (.+)$", TEXT, re.MULTILINE)
    assert len(named) >= 5
    assert all(value.startswith("${") and ":?" in value for _, value in named)


def test_parts_wait_for_what_they_need() -> None:
    for part in PARTS.values():
        for name, need in part.get("depends_on", {}).items():
            if need["condition"] == "service_healthy":
                assert "healthcheck" in PARTS[name]
            else:
                assert need["condition"] == "service_completed_successfully"
                assert name not in STAY


def test_all_services_but_the_bucket_setup_restart_after_a_reboot() -> None:
    """Docker then ignores dependencies: each part exits or retries until they are available."""
    assert {PARTS[name]["restart"] for name in STAY} == {"unless-stopped"}
    assert PARTS.keys() - {*STAY} == {"bucket"}
    command = PARTS["serving"]["command"]
    assert command[:2] == ["python", "/etc/cmcl/serve.py"], "test_compose_serve has what it does"
    mounted = [volume.split(":")[1] for volume in PARTS["serving"]["volumes"]]
    assert {command[1], command[3]} == {*mounted}
    assert command[2] == PARTS["service"]["environment"]["CMCL_RAY_ADDRESS"]


@pytest.mark.parametrize("name", STAY)
def test_what_stays_is_looked_after(name: str) -> None:
    test = PARTS[name]["healthcheck"]["test"]
    # CMD-SHELL needs a shell in the image.
    assert test[0] == "CMD"


def _written(part: dict[str, Any]) -> dict[str, str]:
    """Writable volumes of a service, by mount path."""
    mounts = [volume.split(":") for volume in part.get("volumes", []) if not volume.endswith(":ro")]
    return {where: volume for volume, where in mounts}


@pytest.mark.parametrize("name", OURS)
def test_our_parts_write_their_temporary_files_and_nothing_else(name: str) -> None:
    part = OURS[name]
    assert (part["read_only"], part["cap_drop"]) == (True, ["ALL"])
    assert part["security_opt"] == ["no-new-privileges:true"]
    assert {*_written(part)} <= {"/tmp"}


@pytest.mark.parametrize("name", ["service", "ray-head", "ray-worker"])
def test_what_may_be_large_is_on_a_disk(name: str) -> None:
    """Uploads, shards that are validated, rows of ranks: all of them go where `tempfile` says."""
    part = PARTS[name]
    assert "TMPDIR" not in part["environment"], "which would name another folder"
    in_memory = {mount.partition(":")[0] for mount in part["tmpfs"]}
    volume = _written(part)["/tmp"]
    assert in_memory == {"/home/cmcl"}
    # Docker gives a named volume of its own kind, on the disk, the owner and mode of the image's folder.
    assert COMPOSE["volumes"][volume] is None
    assert sum(volume in _written(each).values() for each in PARTS.values()) == 1


def test_nothing_is_reached_from_the_network_by_default() -> None:
    ports = [port for part in PARTS.values() for port in part.get("ports", [])]
    assert len(ports) == 2
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_images_are_those_of_the_dockerfile_at_this_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    dockerfile = (ROOT / "Dockerfile").read_text()
    for part in OURS.values():
        assert filled(part["image"]).endswith(f":{version}")
    for part in (PARTS["service"], PARTS["ray-head"]):
        target = part["build"]["target"]
        assert f"AS {target}\n" in dockerfile
        assert f"/cmcl-{target}:" in part["image"]
        for argument in part["build"].get("args", {}):
            assert f"ARG {argument}=" in dockerfile


def test_files_that_are_mounted_are_there() -> None:
    volumes = [volume for part in OURS.values() for volume in part.get("volumes", [])]
    mounted = [volume.split(":")[0] for volume in volumes if volume.startswith(".")]
    assert mounted
    assert all((FOLDER / path).is_file() for path in mounted)
