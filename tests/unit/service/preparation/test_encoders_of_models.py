"""The encoder of a modality: bound when the model is created, fixed by the first dataset with a known one."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from cmcl.contract.api.jobs import FailureReason, JobState
from service.core.settings import Settings
from tests.fakes.preparer import identity, manifest_of, prepare_all, write_manifest
from tests.unit.service.preparation.conftest import CLIP, Unattended

OLD, OTHER = identity(normalize=False), identity(normalize=True)


def fixed(plane: Unattended) -> Any:
    return plane.client.get("/v1/models/scenes").json()["encoders"]


def learn(plane: Unattended, name: str, **encoders: Any) -> str:
    """Prepare a dataset with features of these encoders; its job."""
    job = plane.post_dataset(name)
    write_manifest(plane.store, manifest_of(plane.store, plane.request_of(job), **encoders))
    plane.tick(3)
    return job


def declared(identity: Any) -> dict[str, Any]:
    return {"image": identity.model_dump(mode="json")}


def test_declared_encoders_are_listed_without_their_folder(plane: Unattended) -> None:
    (found,) = plane.client.get("/v1/encoders").json()["items"]
    shown = {name: found[name] for name in ("name", "title", "takes", "width")}
    assert shown == {
        "name": "clip-image",
        "title": "sentence-transformers/clip",
        "takes": "image",
        "width": 4,
    }
    assert "/models" not in str(found)


def test_a_model_takes_the_width_of_its_encoder(plane: Unattended) -> None:
    modalities = plane.client.get("/v1/models/scenes").json()["modalities"]
    assert modalities == {
        "image": {"width": 4, "encoder": "clip-image"},
        "text": {"width": 3, "encoder": None},
    }


@pytest.mark.parametrize(
    ("modality", "field", "words"),
    [
        ({"encoder": "clap"}, "modalities.image.encoder", "permitted: clip-image"),
        ({"encoder": "clip-image", "width": 5}, "modalities.image.width", "has width 4, got 5"),
        ({}, "modalities.image", "neither a width nor an encoder"),
    ],
)
def test_a_modality_that_cannot_be_resolved_is_refused(
    plane: Unattended, modality: dict[str, object], field: str, words: str
) -> None:
    body = {"name": "new", "modalities": {"image": modality, "text": 3}}
    response = plane.client.post("/v1/models", json=body)
    assert response.status_code == 422
    (problem,) = response.json()["errors"]
    assert problem["field"] == field
    assert words in problem["message"]


def test_the_first_known_encoder_is_fixed(plane: Unattended) -> None:
    assert fixed(plane) == {}
    learn(plane, "features")
    assert fixed(plane) == {}
    learn(plane, "raw", image=OLD)
    assert fixed(plane) == declared(OLD)
    request = plane.request_of(plane.post_dataset("next"))
    assert request.identities == {"image": OLD}


def test_another_encoder_fails_the_job_with_field_and_values(plane: Unattended) -> None:
    learn(plane, "raw", image=OLD)
    job = learn(plane, "other", image=OTHER)
    found = plane.job(job)
    assert (found.state, found.reason) == (JobState.FAILED, FailureReason.ENCODER_MISMATCH)
    assert "normalize is True, expected False" in (found.message or "")
    assert plane.dataset_of(job).manifest is None
    assert fixed(plane) == declared(OLD)


def test_of_two_datasets_that_are_prepared_at_once_the_first_one_fixes_the_encoder(
    plane: Unattended,
) -> None:
    first, second = plane.post_dataset("one"), plane.post_dataset("two")
    requests = [plane.request_of(job) for job in (first, second)]
    for request, encoder in zip(requests, (OLD, OTHER), strict=True):
        assert request.identities == {}
        write_manifest(plane.store, manifest_of(plane.store, request, image=encoder))
    plane.tick(3)
    assert plane.job(first).state != JobState.FAILED
    assert plane.job(second).reason == FailureReason.ENCODER_MISMATCH


def test_features_of_another_declared_encoder_are_refused_at_once(plane: Unattended) -> None:
    learn(plane, "raw", image=OLD)
    body = plane.dataset_body("next", encoders=declared(OTHER))
    response = plane.client.post("/v1/datasets", json=body)
    assert response.status_code == 409
    (problem,) = response.json()["errors"]
    assert problem["field"] == "encoders.image"
    assert "normalize is True, expected False" in problem["message"]
    same = plane.client.post("/v1/datasets", json={**body, "encoders": declared(OLD)})
    assert same.status_code == 202
    assert plane.request_of(same.json()["job"]["id"]).declared == {"image": OLD}


@pytest.mark.parametrize(
    ("encoders", "field"),
    [
        ({"audio": OLD.model_dump(mode="json")}, "encoders.audio"),
        (declared(identity(width=5)), "encoders.image.width"),
    ],
)
def test_declared_encoders_must_fit_the_pair(
    plane: Unattended, encoders: dict[str, Any], field: str
) -> None:
    response = plane.client.post("/v1/datasets", json=plane.dataset_body("one", encoders=encoders))
    assert response.status_code == 422
    assert response.json()["errors"][0]["field"] == field


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": "/models/siglip"}, "model is 'siglip', expected 'clip'"),
        ({"kind": "open-clip"}, "kind is 'open-clip', expected 'sentence-transformers'"),
        ({"normalize": True}, "normalize is True, expected False"),
    ],
)
def test_a_declaration_that_changed_is_refused_before_anything_is_read(
    tmp_path: Path, change: dict[str, object], words: str
) -> None:
    plane = Unattended(tmp_path)
    learn(plane, "raw", image=OLD)
    plane.close()
    plane = Unattended(tmp_path, encoders=({**CLIP, **change},))
    response = plane.client.post("/v1/datasets", json=plane.dataset_body("next"))
    assert response.status_code == 409
    assert words in response.json()["detail"]
    # A dataset of features declares its encoder.
    body = plane.dataset_body("features", encoders=declared(OLD))
    assert plane.client.post("/v1/datasets", json=body).status_code == 202
    plane.close()


def test_settings_that_do_not_decide_features_may_change(tmp_path: Path) -> None:
    plane = Unattended(tmp_path)
    learn(plane, "raw", image=OLD)
    plane.close()
    moved = {**CLIP, "model": "/other/clip", "actors": 4, "max_batch": 64}
    plane = Unattended(tmp_path, encoders=(moved,))
    assert plane.post_dataset("next")
    plane.close()


def test_a_branch_starts_with_the_encoders_of_its_version(plane: Unattended) -> None:
    plane.preparer = prepare_all
    job = plane.post_dataset(encoders=declared(OLD))
    plane.run_to_end(job)
    version = plane.versions()[0].manifest
    assert (
        plane.client.post(
            "/v1/models/scenes/branch", json={"name": "branch", "version": 1}
        ).status_code
        == 201
    )
    assert plane.model("branch").encoders == version.encoders


def encoders_of_settings(value: object) -> list[str]:
    """Names of the encoders that this value declares."""
    settings = Settings.model_validate({"encoders": value})
    assert list(settings.encoders_by_name) == [encoder.name for encoder in settings.encoders]
    return list(settings.encoders_by_name)


def test_declarations_are_read_from_json_and_from_a_file(tmp_path: Path) -> None:
    text = json.dumps([CLIP, {**CLIP, "name": "other"}])
    (tmp_path / "encoders.json").write_text(text)
    assert (
        encoders_of_settings(text)
        == encoders_of_settings(str(tmp_path / "encoders.json"))
        == ["clip-image", "other"]
    )


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("nowhere.json", "neither a JSON list nor a file that can be read"),
        ("[", "not JSON"),
        (json.dumps([CLIP, CLIP]), "clip-image is declared twice"),
        (json.dumps([{**CLIP, "model": None}]), "needs a model"),
        (json.dumps([{**CLIP, "colour": "blue"}]), "colour"),
    ],
)
def test_a_wrong_declaration_stops_the_start(value: str, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        encoders_of_settings(value)
