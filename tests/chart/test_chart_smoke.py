"""`helm test`: the pod that posts the example and compares, and the script that it runs."""

import re
from pathlib import Path

import numpy as np
import pytest

from deploy.smoke import smoke
from tests.chart.release import CHART, ROOT, Object, Release, each_release, environment_of

STREAM = ROOT / "examples" / "stream"


def _pod(release: Release) -> Object:
    return release.one("Pod", "demo-cmcl-smoke")


def _arguments(release: Release) -> dict[str, str]:
    (container,) = _pod(release)["spec"]["containers"]
    program, script, *options = container["command"]
    assert (program, script) == ("python", "/etc/cmcl/smoke.py")
    return dict(option.removeprefix("--").split("=", 1) for option in options)


@each_release()
def test_helm_runs_it_on_helm_test(release: Release) -> None:
    assert _pod(release)["metadata"]["annotations"]["helm.sh/hook"] == "test"
    assert _pod(release)["spec"]["restartPolicy"] == "Never"


def test_it_runs_the_script_that_checks_every_deployment(trial: Release) -> None:
    script = CHART / "files" / "smoke.py"
    assert script.is_symlink()
    assert script.resolve() == ROOT / "deploy" / "smoke" / "smoke.py"
    config_map = trial.one("ConfigMap", "demo-cmcl-smoke")
    assert config_map["data"]["smoke.py"].strip() == script.read_text().strip()
    (volume,) = [item for item in _pod(trial)["spec"]["volumes"] if item["name"] == "script"]
    assert volume["configMap"]["name"] == config_map["metadata"]["name"]


@each_release()
def test_it_calls_the_services_of_the_release(release: Release) -> None:
    arguments = _arguments(release)
    service = release.one("Service", "demo-cmcl")
    (port,) = service["spec"]["ports"]
    assert arguments["service"] == f"http://{service['metadata']['name']}:{port['port']}"
    assert arguments["embeddings"] == release.settings()["CMCL_EMBEDDINGS_URL"]


def test_it_uses_the_operators_key(trial: Release, production: Release) -> None:
    for release, secret in ((trial, "demo-cmcl-admin"), (production, "cmcl-admin-key")):
        (container,) = _pod(release)["spec"]["containers"]
        key = {"secretKeyRef": {"name": secret, "key": "admin-key"}}
        assert environment_of(container)["CMCL_KEY"] == key


def test_the_image_carries_the_example(trial: Release) -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    copied = re.search(r"^COPY (examples/stream) (\S+)$", dockerfile, re.MULTILINE)
    assert copied is not None
    assert _arguments(trial)["stream"] == copied[2]
    (container,) = _pod(trial)["spec"]["containers"]
    assert container["image"] == trial.container("training")["image"]


def test_the_example_is_one_that_it_can_read() -> None:
    example = smoke.Example.read(STREAM)
    first_NI, second_NJ = example.held_out()
    assert example.pair == ("depth", "text")
    assert len(first_NI) == len(second_NJ) == 220
    assert {"depth": first_NI.shape[1], "text": second_NJ.shape[1]} == example.widths


def test_recall_is_counted_as_training_counts_it() -> None:
    """Against the function that measures versions, on rows with repeated texts."""
    from tests.chart.reference import recall_at_10  # torch takes seconds

    example = smoke.Example.read(STREAM)
    features = example.held_out()
    random = np.random.default_rng(3)
    sides = []
    for rows_NI in features:
        head_IE = random.standard_normal((rows_NI.shape[1], 16)).astype(np.float32)
        side_NE = rows_NI @ head_IE
        sides.append(side_NE / np.linalg.norm(side_NE, axis=1, keepdims=True))
    ours = smoke.recall_at_10(features, sides)
    assert 0 < ours < 1
    assert ours == pytest.approx(recall_at_10(features, sides), abs=1e-6)


def test_a_service_that_does_not_respond_is_reported_with_a_message(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    closed = "http://127.0.0.1:9"
    addresses = [f"--service={closed}", f"--embeddings={closed}", f"--stream={STREAM}"]
    assert smoke.main(addresses) == 1
    assert "smoke: " in capsys.readouterr().err
