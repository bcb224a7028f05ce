"""Settings of submission: read from JSON, and rejected with a message when the service starts."""

from pathlib import Path

import pytest
from pydantic import ValidationError
from ray.runtime_env import RuntimeEnv

from service.core.setting_values import RUNTIME_ENV_FIELDS
from service.core.settings import Settings
from service.launchers.kuberay import legal_value, resource_name

KUBERAY = {"CMCL_LAUNCHER": "kuberay", "CMCL_KUBERAY_IMAGE": "an-image"}


def _settings(monkeypatch: pytest.MonkeyPatch, **variables: str) -> Settings:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return Settings()


def test_objects_are_written_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = _settings(
        monkeypatch,
        CMCL_RUNTIME_ENV='{"env_vars": {"NCCL_DEBUG": "WARN"}, "pip": ["einops==0.8.1"]}',
        CMCL_KUBERAY_PRIORITY_CLASSES='{"high": "urgent"}',
    )
    assert settings.runtime_env["env_vars"] == {"NCCL_DEBUG": "WARN"}
    assert settings.kuberay_priority_classes == {"high": "urgent"}


def test_an_empty_text_is_an_empty_object(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _settings(monkeypatch, CMCL_RUNTIME_ENV="").runtime_env == {}


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"CMCL_RUNTIME_ENV": "{pip"}, "it is not JSON: Expecting property name"),
        ({"CMCL_RUNTIME_ENV": '["pip"]'}, "it is not a JSON object, such as"),
        (
            {"CMCL_RUNTIME_ENV": '{"pips": []}'},
            "it has the field 'pips'; permitted are working_dir",
        ),
        (
            {"CMCL_RUNTIME_ENV": '{"env_vars": {"A": 1}}'},
            "env_vars.A is 1; it must be a string, in quotes",
        ),
        ({"CMCL_RUNTIME_ENV": '{"env_vars": "A=1"}'}, "it must be an object of strings"),
        (
            {"CMCL_RUNTIME_ENV": '{"working_dir": "/srv/code"}'},
            "working_dir has '/srv/code'; it must be an address that all nodes can read",
        ),
        ({"CMCL_RUNTIME_ENV": '{"py_modules": [3]}'}, "py_modules has 3; it must be an address"),
        ({"CMCL_KUBERAY_PRIORITY_CLASSES": '{"top": "x"}'}, "'low', 'normal' or 'high'"),
        (
            {"CMCL_RANKS": "4", "CMCL_MIN_RANKS": "5"},
            "CMCL_MIN_RANKS is 5; it must be from 1 to CMCL_RANKS, which is 4",
        ),
        ({"CMCL_LAUNCHER": "kuberay"}, "CMCL_KUBERAY_IMAGE is missing"),
        (
            {**KUBERAY, "CMCL_KUBERAY_POD_TEMPLATE": "/no/such/file"},
            "CMCL_KUBERAY_POD_TEMPLATE: /no/such/file cannot be read: No such file",
        ),
    ],
)
def test_impossible_values_are_rejected_with_a_message(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], words: str
) -> None:
    with pytest.raises(ValidationError) as refused:
        _settings(monkeypatch, **variables)
    assert words in str(refused.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- head", "must be a map with head, workers and submitter"),
        ("heads: {}", "has 'heads'; permitted are head, workers and submitter"),
        (
            "head: {containers: []}",
            "head is not a pod template: it must be a map of metadata and spec",
        ),
        ("head: [", "is not YAML"),
    ],
)
def test_a_pod_template_that_is_none_is_refused_when_the_service_starts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, words: str
) -> None:
    path = tmp_path / "pods.yaml"
    path.write_text(text)
    with pytest.raises(ValidationError, match=words):
        _settings(monkeypatch, **KUBERAY, CMCL_KUBERAY_POD_TEMPLATE=str(path))


def test_every_permitted_field_exists_in_ray() -> None:
    assert set(RUNTIME_ENV_FIELDS) <= RuntimeEnv.known_fields


@pytest.mark.parametrize(
    ("submission", "name"),
    [("job-0123456789ab-a1", "job-0123456789ab-a1"), ("pf-0a-a2", "pf-0a-a2")],
)
def test_our_ids_are_names_as_they_are(submission: str, name: str) -> None:
    assert resource_name(submission) == name


def test_every_id_has_a_unique_name_that_kuberay_accepts() -> None:
    odd = ["Job-1", "job-1", "job_1", "7-a1", "x" * 47, "x" * 48, "x" * 49, "ä", "-"]
    names = [resource_name(submission) for submission in odd]
    assert len(set(names)) == len(odd)
    for name in names:
        assert len(name) <= 47
        assert name[0].isalpha()
        assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
        assert not name.endswith("-")


@pytest.mark.parametrize(
    ("text", "value"),
    [("team-a", "team-a"), ("a@b.org", "a_b.org"), ("x" * 70, "x" * 63), ("@", ""), ("", "")],
)
def test_an_owner_becomes_a_legal_value(text: str, value: str) -> None:
    assert legal_value(text) == value
