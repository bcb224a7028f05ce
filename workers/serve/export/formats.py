"""A published version as the files of one format: safetensors, sentence-transformers, ONNX (`heads.py`), MLflow.

- safetensors: heads in one file, and a program of a few lines that embeds with NumPy alone.
- sentence-transformers: a folder for each modality, of Normalize and Dense modules and no code of ours. Their first
  module reads `sentence_embedding`, so a folder is a model of features, and the modules go behind those of an encoder
  as they are.
- MLflow: a folder for each modality, the ONNX model with MLflow's description of it.

Moments of its datasets can be added: another site needs them to merge the version, and they reveal more than heads.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from types import MappingProxyType
from typing import Final

import torch

from cmcl.contract.api.versions import EvaluationRow
from cmcl.contract.errors import DigestMismatch, InvalidVersion, ObjectNotFound
from cmcl.contract.version import VersionManifest
from cmcl.storage import layout
from cmcl.storage.object_store import ObjectStore
from cmcl.storage.versions import read_version, stream_blob
from workers.model.artifact import head_tensors, save_selftest
from workers.model.heads import ModalityHeads
from workers.serve.export.archive import ExportedFile
from workers.serve.export.card import card_files
from workers.serve.export.heads import (
    Affine,
    ExportedHead,
    check_onnx,
    exported_head,
    layers,
    onnx_files,
    onnx_model,
)

HEADS_FILE: Final = "heads.safetensors"
# docs/heads.md explains it; tests run both.
RECIPE: Final = '''"""Embed features with NumPy: `python embed.py` compares with the embeddings of selftest.safetensors.

heads = load_file("heads.safetensors")
embeddings = embed(heads, "image", features)    # features: B x F, as the encoder gave them
"""

import numpy as np
from safetensors.numpy import load_file


def length(x):
    return np.linalg.norm(x, axis=1, keepdims=True)


def unit(x):
    return x / np.maximum(length(x), 1e-12)


def embed(heads, modality, features):
    """Unit embeddings (B x E) of features (B x F)."""
    x = unit(np.asarray(features, dtype=np.float32))
    if f"{modality}/map" in heads:
        mean = heads[f"{modality}/mean"]
        centred = x - mean
        on_the_mean = length(centred) <= 1e-6 * np.maximum(length(x), np.linalg.norm(mean))
        centred, map_ = np.where(on_the_mean, 0, centred), heads[f"{modality}/map"]
        x = unit(centred @ map_) if map_.ndim == 2 else centred * map_
    parts = [x]
    if f"{modality}/lift" in heads:
        random = heads[f"{modality}/lift"]
        parts.append(np.maximum(x @ random, 0) * np.float32((2 / random.shape[1]) ** 0.5))
    parts.append(np.ones((len(x), 1), dtype=np.float32))
    return unit(np.concatenate(parts, axis=1) @ heads[f"{modality}/weight"].T)



if __name__ == "__main__":
    heads, selftest = load_file("heads.safetensors"), load_file("selftest.safetensors")
    for name in sorted(key.removesuffix("/features") for key in selftest if key.endswith("/features")):
        gap = np.abs(embed(heads, name, selftest[f"{name}/features"]) - selftest[f"{name}/embeddings"])
        print(f"{name}: differs by at most {gap.max():.1e}")
        assert gap.max() < 1e-5
'''

# The names of all releases since 2.0; later ones know them as aliases.
_NORMALIZE = "sentence_transformers.models.Normalize"
_DENSE = "sentence_transformers.models.Dense"
_IDENTITY = "torch.nn.modules.linear.Identity"
_RELU = "torch.nn.modules.activation.ReLU"
_MODULES_CONFIG: Mapping[str, object] = {
    "prompts": {},
    "default_prompt_name": None,
    "similarity_fn_name": "cosine",
}

_MLFLOW_MODEL = "model.onnx"

MOMENTS_FOLDER: Final = "moments"


def plain_files(heads: ModalityHeads) -> Iterator[ExportedFile]:
    """The tensors as docs/heads.md lists them, and the program."""
    arrays = {name: tensor.numpy() for name, tensor in head_tensors(heads).items()}
    yield ExportedFile.of_tensors(HEADS_FILE, arrays)
    yield ExportedFile.of("embed.py", RECIPE)


def sentence_transformers_files(heads: ModalityHeads) -> Iterator[ExportedFile]:
    """A folder for each modality."""
    for modality in sorted(heads.weights):
        yield ExportedFile.of_json(f"{modality}/config_sentence_transformers.json", _MODULES_CONFIG)
        modules = []
        for number, layer in enumerate(layers(exported_head(heads, modality))):
            is_dense = isinstance(layer, Affine)
            # Names that no encoder has, behind whose modules they may be put.
            path = f"head_{number}_{'Dense' if is_dense else 'Normalize'}"
            kind = _DENSE if is_dense else _NORMALIZE
            modules.append({"idx": number, "name": str(number), "path": path, "type": kind})
            if isinstance(layer, Affine):
                yield from _dense(f"{modality}/{path}", layer)
            else:
                yield ExportedFile.of_json(f"{modality}/{path}/config.json", {})
        yield ExportedFile.of_json(f"{modality}/modules.json", modules)


def _dense(folder: str, layer: Affine) -> Iterator[ExportedFile]:
    out_features, in_features = layer.weight.shape
    config = {
        "in_features": in_features,
        "out_features": out_features,
        "bias": layer.bias is not None,
        "activation_function": _RELU if layer.relu else _IDENTITY,
    }
    yield ExportedFile.of_json(f"{folder}/config.json", config)
    tensors = {"linear.weight": layer.weight}
    if layer.bias is not None:
        tensors["linear.bias"] = layer.bias
    yield ExportedFile.of_tensors(f"{folder}/model.safetensors", tensors)


def mlflow_files(heads: ModalityHeads) -> Iterator[ExportedFile]:
    """A folder for each modality. Call `check_onnx` before."""
    for modality in sorted(heads.weights):
        head = exported_head(heads, modality)
        yield ExportedFile.of(
            f"{modality}/{_MLFLOW_MODEL}", onnx_model(head, modality).SerializeToString()
        )
        # YAML, of which JSON is a part.
        yield ExportedFile.of_json(f"{modality}/MLmodel", _mlflow_description(head))
        requirements = f"mlflow\nonnx=={version('onnx')}\nonnxruntime\n"
        yield ExportedFile.of(f"{modality}/requirements.txt", requirements)
        environment = {"python": _python(), "dependencies": ["-r requirements.txt"]}
        yield ExportedFile.of_json(f"{modality}/python_env.yaml", environment)


def _mlflow_description(head: ExportedHead) -> dict[str, object]:
    return {
        "flavors": {
            "onnx": {
                "onnx_version": version("onnx"),
                "data": _MLFLOW_MODEL,
                "providers": ["CPUExecutionProvider"],
            },
            "python_function": {
                "loader_module": "mlflow.onnx",
                "python_version": _python(),
                "data": _MLFLOW_MODEL,
                "env": {"virtualenv": "python_env.yaml"},
            },
        },
        "signature": {"inputs": _tensor(head.width), "outputs": _tensor(len(head.bias_E))},
    }


def _tensor(width: int) -> str:
    """Rows of float32, as MLflow writes a signature: JSON in a string."""
    return f'[{{"type": "tensor", "tensor-spec": {{"dtype": "float32", "shape": [-1, {width}]}}}}]'


def _python() -> str:
    return ".".join(map(str, sys.version_info[:3]))


def check_moments(store: ObjectStore, manifest: VersionManifest) -> None:
    """Check that the moments of every dataset are stored. Raises ObjectNotFound, DigestMismatch, StorageUnavailable."""
    for line in manifest.learned:
        found = store.size(layout.blob(line.moments.sha256))
        if found != line.moments.bytes:
            raise DigestMismatch(
                f"the moments of dataset {line.name!r} have {found} bytes, expected {line.moments.bytes}"
            )


def moments_files(store: ObjectStore, manifest: VersionManifest) -> Iterator[ExportedFile]:
    """A file for each dataset, as it is stored. Reading one raises DigestMismatch at its end if it is damaged."""
    for line in manifest.learned:
        pieces = stream_blob(store, line.moments)
        yield ExportedFile(
            f"{MOMENTS_FOLDER}/{line.dataset}.safetensors", line.moments.bytes, pieces
        )


Files = Callable[[ModalityHeads], Iterator[ExportedFile]]
FORMATS: Mapping[str, Files] = MappingProxyType(
    {
        "sentence-transformers": sentence_transformers_files,
        "safetensors": plain_files,
        "onnx": onnx_files,
        "mlflow": mlflow_files,
    }
)
# Rows of the recall matrix, the newest ones: each is a manifest to read.
_MOST_ROWS = 32
_READ_AT_ONCE = 8


def check_format(format_: str, heads: ModalityHeads) -> None:
    """Raises NotInstalled, Unprocessable where the heads cannot be written in this format here."""
    if format_ in ("onnx", "mlflow"):
        check_onnx(heads)


def export_files(
    manifest: VersionManifest,
    matrix: Sequence[EvaluationRow],
    heads: ModalityHeads,
    format_: str,
    moments: Iterable[ExportedFile] | None = None,
) -> Iterator[ExportedFile]:
    """All files of an export, one after the other. Call `check_format` before.

    `matrix`: recall of the versions up to this one. `moments`: those of its datasets (`moments_files`), if they are exported, too.
    """
    yield from card_files(manifest, matrix, format_, with_moments=moments is not None)
    yield ExportedFile.of("manifest.json", manifest.model_dump_json(indent=2) + "\n")
    with torch.inference_mode():
        yield ExportedFile.of("selftest.safetensors", save_selftest(heads, manifest.spec))
    yield from FORMATS[format_](heads)
    yield from moments or ()


def evaluation_matrix(store: ObjectStore, manifest: VersionManifest) -> list[EvaluationRow]:
    """Recall of the version and of those before it, as far as they are stored. Raises StorageUnavailable."""
    numbers = sorted({line.version for line in manifest.learned} - {manifest.version})

    def read(number: int) -> VersionManifest | None:
        try:
            return read_version(store, manifest.model, number)
        except (ObjectNotFound, InvalidVersion):
            return None

    with ThreadPoolExecutor(_READ_AT_ONCE) as threads:
        earlier = list(threads.map(read, numbers[-_MOST_ROWS:]))
    return [
        EvaluationRow(version=each.version, learned=each.dataset, recall=each.report.evaluation)
        for each in (*earlier, manifest)
        if each is not None
    ]
