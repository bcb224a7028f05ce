"""Exported versions: what other programs compute with one equals the endpoint's answers."""

import contextlib
import json
import re
import sys
from pathlib import Path

import httpx
import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from safetensors.numpy import load_file

from cmcl.contract.model import ModelSpec
from cmcl.contract.version import Solution
from cmcl.storage import layout
from cmcl.storage.versions import read_version
from tests.fakes.app_client import AppClient
from tests.fakes.versions import publish_version, random_heads, stored_key
from tests.unit.serve.conftest import MODEL, Replica
from tests.unit.serve.exported import (
    SPEC,
    answered,
    features,
    heads,
    publish,
    run_without_cmcl,
    unpacked,
)
from tests.unit.serve.test_serve_auth_of_routes import LAB, OPERATOR, bearer, guarded
from workers.model.heads import ModalityHeads
from workers.nullspace.conditioning import Conditioning
from workers.serve.api.app import create_api
from workers.serve.errors import Unprocessable
from workers.serve.export.card import card_files
from workers.serve.export.formats import FORMATS, check_onnx

TOLERANCE = 1e-6
MODALITIES = sorted(SPEC.widths)
NUMPY = """
import runpy, sys
import numpy as np
folder = sys.argv[1]
recipe = runpy.run_path(f"{folder}/embed.py")
heads = recipe["load_file"](f"{folder}/heads.safetensors")
for modality in sys.argv[2:]:
    found = recipe["embed"](heads, modality, np.load(f"{folder}/{modality}.npy"))
    np.save(f"{folder}/{modality}-out.npy", found)
assert "torch" not in sys.modules
"""


@pytest.fixture
def exporting(replica: Replica) -> Replica:
    """A replica with a version that has every kind of head."""
    publish(replica)
    return replica


def computed(folder: Path, program: str) -> dict[str, np.ndarray]:
    """Embeddings of the features by a program in a separate interpreter."""
    for modality in MODALITIES:
        np.save(folder / f"{modality}.npy", features(modality))
    run_without_cmcl(program, str(folder), *MODALITIES)
    return {modality: np.load(folder / f"{modality}-out.npy") for modality in MODALITIES}


def check_equal(replica: Replica, found: dict[str, np.ndarray]) -> None:
    for modality in MODALITIES:
        assert found[modality].dtype == np.float32
        np.testing.assert_allclose(
            found[modality], answered(replica, modality), rtol=0, atol=TOLERANCE
        )


def test_the_recipe_computes_what_the_endpoint_answers_with_numpy_alone(
    exporting: Replica, tmp_path: Path
) -> None:
    folder = unpacked(exporting, "safetensors", tmp_path)
    check_equal(exporting, computed(folder, NUMPY))


def evaluated(model: onnx.ModelProto, rows: np.ndarray) -> np.ndarray:
    """Results of the reference implementation of the operators."""
    (found,) = ReferenceEvaluator(model).run(None, {"features": rows})
    assert isinstance(found, np.ndarray)
    return found


def test_onnx_computes_what_the_endpoint_answers(exporting: Replica, tmp_path: Path) -> None:
    folder = unpacked(exporting, "onnx", tmp_path)
    found = {}
    for modality in MODALITIES:
        model = onnx.load(folder / f"{modality}.onnx")
        onnx.checker.check_model(model, full_check=True)
        found[modality] = evaluated(model, features(modality))
    check_equal(exporting, found)


def test_onnx_embeds_a_feature_on_the_mean_by_the_bias_as_the_endpoint_does(
    exporting: Replica, tmp_path: Path
) -> None:
    row = np.full((1, 7), 3.0, np.float32)
    model = onnx.load(unpacked(exporting, "onnx", tmp_path) / "text.onnx")
    found = evaluated(model, row)
    bias = heads().weights["text"][:, -1].numpy()
    np.testing.assert_allclose(found[0], bias / np.linalg.norm(bias), atol=TOLERANCE)
    answer = exporting.embed(modality="text", input=row.tolist()).json()
    np.testing.assert_allclose(found[0], answer["data"][0]["embedding"], atol=TOLERANCE)


@pytest.mark.parametrize("format_", FORMATS)
def test_every_export_has_a_card_the_record_and_a_selftest(
    exporting: Replica, tmp_path: Path, format_: str
) -> None:
    folder = unpacked(exporting, format_, tmp_path)
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlicense: other\n")
    assert f"# {MODEL}@1" in card
    assert "| data-1 | image--text | 8 | 1 |" in card.replace("depth--image", "image--text")
    pictures = re.findall(r"\]\((pictures/\w+\.svg)\)", card)
    assert pictures
    assert all((folder / name).read_text().startswith("<svg") for name in pictures)
    record = json.loads((folder / "manifest.json").read_text())
    assert (record["model"], record["version"]) == (MODEL, 1)
    rows = load_file(folder / "selftest.safetensors")
    for modality in MODALITIES:
        answer = exporting.embed(modality=modality, input=rows[f"{modality}/features"].tolist())
        expected = [each["embedding"] for each in answer.json()["data"]]
        np.testing.assert_allclose(rows[f"{modality}/embeddings"], expected, atol=TOLERANCE)


def test_no_file_of_an_export_has_moments_unless_they_are_asked_for(
    exporting: Replica, tmp_path: Path
) -> None:
    pooled = next(filter(layout.pair_of, read_version(exporting.store, MODEL, 1).files))
    moments = load_file_names(exporting.store.read(stored_key(exporting.store, MODEL, 1, pooled)))
    for format_ in FORMATS:
        folder = unpacked(exporting, format_, tmp_path / format_)
        for path in folder.rglob("*.safetensors"):
            assert not moments & set(load_file(path))


def test_moments_that_are_asked_for_are_those_that_are_stored_and_the_card_says_so(
    exporting: Replica, tmp_path: Path
) -> None:
    folder = unpacked(exporting, "safetensors&moments=true", tmp_path)
    assert {path.name: path.read_bytes() for path in (folder / "moments").iterdir()} == {
        f"{line.dataset}.safetensors": exporting.store.read(layout.blob(line.moments.sha256))
        for line in read_version(exporting.store, MODEL, 1).learned
    }
    assert "They reveal more than heads do" in (folder / "README.md").read_text()
    without = unpacked(exporting, "safetensors&moments=false", tmp_path / "without")
    assert "Nor are moments of a dataset." in (without / "README.md").read_text()


def test_moments_are_refused_where_they_cannot_be_merged_or_are_damaged(exporting: Replica) -> None:
    for format_ in ("onnx", "sentence-transformers"):
        status, _, message = error(export(exporting, MODEL, f"{format_}&moments=true"))
        assert status == 400
        assert (
            f'with the format safetensors alone, which is what can be merged; format is "{format_}"'
            in message
        )
    assert error(export(exporting, MODEL, "safetensors&moments=yes"))[2] == (
        'moments is "yes"; permitted are true, false'
    )
    trained = ModelSpec(width=6, modalities={"image": 9, "text": 7}, policy="preserve")
    publish_version(exporting.store, "trained", 1, trained, random_heads(trained, 1), 1)
    exporting.poll()
    status, _, message = error(export(exporting, "trained", "safetensors&moments=true"))
    assert status == 422
    assert "its heads were trained on rows (preserve" in message
    line = read_version(exporting.store, MODEL, 1).learned[-1]
    key = layout.blob(line.moments.sha256)
    exporting.store.put(key, exporting.store.read(key)[:-1])
    status, code, message = error(export(exporting, MODEL, "safetensors&moments=true"))
    assert (status, code) == (500, "version_damaged")
    assert "moments of its datasets are missing or damaged" in message
    assert export(exporting, MODEL).status_code == 200


def test_moments_are_exported_for_the_operators_key_alone(exporting: Replica) -> None:
    exporting.point(generation=2, version=1, owner="lab")
    exporting.poll()
    client = AppClient(create_api(guarded(exporting)))
    path = f"/v1/models/{MODEL}@1/export?format=safetensors&moments=true"
    refused = client.get(path, headers=bearer(LAB))
    assert error(refused)[0] == 403
    assert "only the operator's key may export them" in error(refused)[2]
    assert client.get(path, headers=bearer(OPERATOR)).status_code == 200


def load_file_names(data: bytes) -> set[str]:
    length = int.from_bytes(data[:8], "little")
    names = set(json.loads(data[8 : 8 + length]))
    assert names
    return names


def error(response: httpx.Response) -> tuple[int, str, str]:
    found = response.json()["error"]
    return response.status_code, found["code"], found["message"]


def export(replica: Replica, reference: str, format_: str = "safetensors") -> httpx.Response:
    return replica.get(f"/v1/models/{reference}/export?format={format_}")


def test_a_format_that_does_not_exist_is_400_with_those_that_do(exporting: Replica) -> None:
    status, _, message = error(export(exporting, MODEL, "pickle"))
    assert status == 400
    assert message == f'format is "pickle"; permitted are {", ".join(FORMATS)}'


@pytest.mark.parametrize("name", [layout.HEADS, layout.MANIFEST, layout.SELFTEST])
def test_a_damaged_version_is_500_and_named(exporting: Replica, name: str) -> None:
    exporting.publish(version=2, generation=2, spec=SPEC)
    exporting.point(generation=3, version=1)
    key = stored_key(exporting.store, MODEL, 2, name)
    data = exporting.store.read(key)
    exporting.store.put(key, data[:-9] + b"\0" + data[-8:])
    status, code, message = error(export(exporting, f"{MODEL}@2"))
    assert (status, code) == (500, "version_damaged")
    assert f"{MODEL}@2" in message
    assert exporting.store.uri not in message


def test_a_manifest_damaged_after_it_was_loaded_is_500(exporting: Replica) -> None:
    exporting.store.put(layout.version_manifest(MODEL, 1), b"{}")
    status, code, message = error(export(exporting, MODEL))
    assert (status, code) == (500, "version_damaged")
    assert "its manifest fails its checks" in message


@pytest.mark.parametrize("format_", ["onnx", "mlflow"])
def test_onnx_is_501_where_its_package_is_not_installed(
    exporting: Replica, monkeypatch: pytest.MonkeyPatch, format_: str
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    status, code, message = error(export(exporting, MODEL, format_))
    assert (status, code) == (501, "not_installed")
    assert "needs the package onnx" in message
    assert export(exporting, MODEL).status_code == 200


def test_a_head_beyond_what_one_onnx_file_holds_is_refused() -> None:
    width = 23_200  # 2 GiB of float32 in its square; expanded, it takes no memory.
    wide = Conditioning(torch.zeros(width), torch.zeros(1).expand(width, width))
    large = ModalityHeads({"image": torch.zeros(2, width + 1)}, {"image": wide})
    with pytest.raises(Unprocessable, match="one ONNX file can hold 2146435072: export as"):
        check_onnx(large)


def test_an_export_is_429_while_others_take_all_places(exporting: Replica) -> None:
    parts = exporting.parts(exporting.args)
    client = AppClient(create_api(parts))
    path = f"/v1/models/{MODEL}/export?format=safetensors"
    with contextlib.ExitStack() as others:
        for number in range(exporting.args.max_exports):
            others.enter_context(parts.admission.exports.held(f"owner {number}", 1))
        assert client.get(path).status_code == 429
    assert client.get(path).status_code == 200


def test_the_card_says_between_which_modalities_scores_mean_nothing(exporting: Replica) -> None:
    manifest = read_version(exporting.store, MODEL, 1)
    groups = (("depth",), ("image", "text"))
    solution = Solution(ridges={}, directions=6, groups=groups)
    report = manifest.report.model_copy(update={"solution": solution})
    apart = manifest.model_copy(update={"report": report})
    for version, said in ((manifest, False), (apart, True)):
        _, text = next(card_files(version, [], "onnx"))
        assert ("scores between them mean nothing: depth; image, text." in text) == said
