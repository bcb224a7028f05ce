"""A published version as the files of one format, in a tar archive that is made while it is sent: memory is that of its
largest file.

- safetensors: heads in one file, and a program of a few lines that embeds with NumPy alone.
- sentence-transformers: a folder for each modality, of Normalize and Dense modules and no code of ours. Their first
  module reads `sentence_embedding`, so a folder is a model of features, and the modules go behind those of an encoder
  as they are.
- ONNX: a file for each modality, which takes `features` (B × F) and returns `embeddings` (B × E).
- MLflow: a folder for each modality, the ONNX model with MLflow's description of it.

Moments of its datasets can be added: another site needs them to merge the version, and they reveal more than heads.

Shapes: B rows, F width of the raw feature, K random features of its lift, E width of the embeddings. All arrays are
float32.
"""

import json
import sys
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from safetensors.numpy import save

from cmcl.contract.api.versions import EvaluationRow
from cmcl.contract.errors import DigestMismatch, InvalidVersion, ObjectNotFound
from cmcl.contract.version import VersionManifest
from cmcl.storage import layout
from cmcl.storage.object_store import ObjectStore
from cmcl.storage.versions import read_version, stream_blob
from workers.model.artifact import head_tensors, save_selftest
from workers.model.heads import ModalityHeads
from workers.serve.errors import NotInstalled, Unprocessable
from workers.serve.export.card import card_files
from workers.serve.versions.loading import Float32Array

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

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
INPUT, OUTPUT = "features", "embeddings"
# Operators of 2023, which every present runtime has; the format of the file is that of the same year.
_OPSET, _IR_VERSION = 18, 8
# Protobuf's limit, less what is around the numbers.
_LARGEST = (2 << 30) - (1 << 20)
# As torch.nn.functional.normalize divides, and Conditioning decides what lies on the mean.
_SHORTEST, _ON_THE_MEAN = 1e-12, 1e-6


@dataclass(frozen=True)
class ExportedFile:
    """A file of an export. `pieces` have `size` bytes together, and are read once."""

    name: str
    size: int
    pieces: Iterable[bytes]

    @classmethod
    def from_content(cls, name: str, content: bytes | str) -> "ExportedFile":
        """A file whose content is in memory; texts are UTF-8."""
        data = content.encode() if isinstance(content, str) else content
        return cls(name, len(data), [data])

    @classmethod
    def from_json(cls, name: str, content: object) -> "ExportedFile":
        """A file of indented JSON."""
        return cls.from_content(name, json.dumps(content, indent=2, ensure_ascii=False) + "\n")

    @classmethod
    def from_tensors(cls, name: str, tensors: Mapping[str, Float32Array]) -> "ExportedFile":
        """A safetensors file."""
        arrays = {key: np.ascontiguousarray(array) for key, array in tensors.items()}
        return cls.from_content(name, save(arrays))


def write_files(files: Iterable[ExportedFile], folder: Path) -> None:
    """Write the files into a folder. Raises OSError, FileExistsError for one that is there."""
    for file in files:
        path = folder / file.name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as opened:
            opened.writelines(file.pieces)


def tar(files: Iterable[ExportedFile], changed: datetime) -> Iterator[bytes]:
    """Yield an uncompressed tar archive. `changed`: time of every file, so that equal exports have equal bytes."""
    for file in files:
        entry = tarfile.TarInfo(file.name)
        entry.size, entry.mtime = file.size, int(changed.timestamp())
        yield entry.tobuf(tarfile.PAX_FORMAT)
        sent = 0
        for piece in file.pieces:
            sent += len(piece)
            yield piece
        assert sent == file.size, f"the archive is damaged from {file.name} on"
        yield b"\0" * (-file.size % tarfile.BLOCKSIZE)
    yield b"\0" * (2 * tarfile.BLOCKSIZE)


@dataclass(frozen=True)
class ExportedHead:
    """A head in parts, without copies.

    `mean_F` and `map` are None for a modality that is not conditioned, `random_FK` for one without a lift; it
    includes the scale of the random features. `map` is a matrix (F × F) or one number (1). `weight_EF` is that of the
    feature, `lifted_EK` that of the lift, `bias_E` that of the constant 1.
    """

    width: int
    mean_F: Float32Array | None
    map: Float32Array | None
    random_FK: Float32Array | None
    weight_EF: Float32Array
    lifted_EK: Float32Array
    bias_E: Float32Array


@dataclass(frozen=True)
class Normalized:
    """A layer that scales rows to unit length."""


@dataclass(frozen=True)
class Affine:
    """A layer y = W x + b, and the positive part of it with `relu`. `bias`: None is 0."""

    weight: Float32Array
    bias: Float32Array | None = None
    relu: bool = False


def exported_head(heads: ModalityHeads, modality: str) -> ExportedHead:
    """The head of this modality. Raises KeyError."""
    weight_EI: Float32Array = heads.weights[modality].numpy()
    conditioning = heads.conditioning.get(modality)
    random_FK = None
    if lift := heads.lifts.get(modality):
        # As `Lift` scales them: a positive factor may go before the positive part.
        random_FK = lift.random_FK.numpy() * np.float32((2 / lift.width) ** 0.5)
    width = weight_EI.shape[1] - (lift.width if lift else 0) - 1
    return ExportedHead(
        width,
        conditioning.mean_F.numpy() if conditioning else None,
        conditioning.map.numpy() if conditioning else None,
        random_FK,
        weight_EI[:, :width],
        weight_EI[:, width:-1],
        weight_EI[:, -1],
    )


def layers(head: ExportedHead) -> Iterator[Normalized | Affine]:
    """The layers that compute the embedding of a feature, each made when it is asked for.

    The mean is subtracted by a layer of its own: x M − μ M would cancel where the map M enlarges directions in which
    the mean is large. The lift appends relu(x R) to x: as x = relu(x) − relu(−x), one layer with a positive part
    carries both, and the head's layer puts them together:

        [W, −W, V] relu([I; −I; Rᵀ] x) = W x + V relu(Rᵀ x)
    """
    yield Normalized()
    one_FF = np.eye(head.width, dtype=np.float32)
    if head.mean_F is not None and head.map is not None:
        if head.map.ndim == 2:
            yield Affine(one_FF, -head.mean_F)
            yield Affine(head.map)  # Symmetric.
            yield Normalized()
        else:
            yield Affine(one_FF * head.map, -head.mean_F * head.map)
    if head.random_FK is None:
        yield Affine(head.weight_EF, head.bias_E)
    else:
        yield Affine(np.concatenate([one_FF, -one_FF, head.random_FK.T]), relu=True)
        weights = [head.weight_EF, -head.weight_EF, head.lifted_EK]
        yield Affine(np.concatenate(weights, axis=1), head.bias_E)
    yield Normalized()


def check_onnx(heads: ModalityHeads) -> None:
    """Raises NotInstalled without the package onnx, Unprocessable for a head beyond what one file can hold."""
    try:
        import onnx  # noqa: F401 - only whether it is installed
    except ImportError as error:
        raise NotInstalled(
            "ONNX needs the package onnx, which is not installed where this endpoint runs. The worker image has "
            "it, and so has a checkout after `make setup`; or export as safetensors or sentence-transformers"
        ) from error
    for modality in heads.weights:
        head = exported_head(heads, modality)
        size = sum(array.nbytes for array in _tensors(head).values())
        if size > _LARGEST:
            raise Unprocessable(
                f"the head of {modality!r} has {size} bytes; one ONNX file can hold {_LARGEST}: export as "
                "safetensors",
                "format",
            )


def onnx_files(heads: ModalityHeads) -> Iterator[ExportedFile]:
    """A file for each modality. Call `check_onnx` before."""
    for modality in sorted(heads.weights):
        model = onnx_model(exported_head(heads, modality), modality)
        yield ExportedFile.from_content(f"{modality}.onnx", model.SerializeToString())


def onnx_model(head: ExportedHead, modality: str) -> "ModelProto":
    """The graph of one head: the steps of docs/heads.md, as the endpoint computes them."""
    from onnx import TensorProto, helper, numpy_helper

    graph = _Graph()
    rows = graph.unit(INPUT)
    if head.map is not None:
        centred = graph.centred(rows)
        if head.map.ndim == 2:
            rows = graph.unit(graph.node("MatMul", centred, "map"))
        else:
            rows = graph.node("Mul", centred, "map")
    outputs = graph.node("MatMul", rows, "weight")
    if head.random_FK is not None:
        random = graph.node("Relu", graph.node("MatMul", rows, "lift"))
        lifted = graph.node("MatMul", random, "lift_weight")
        outputs = graph.node("Add", outputs, lifted)
    embedded = graph.unit(graph.node("Add", outputs, "bias"))
    nodes = [*graph.nodes, helper.make_node("Identity", [embedded], [OUTPUT])]
    float32 = TensorProto.FLOAT
    made = helper.make_graph(
        nodes,
        f"head of {modality}",
        [helper.make_tensor_value_info(INPUT, float32, ["rows", head.width])],
        [helper.make_tensor_value_info(OUTPUT, float32, ["rows", len(head.bias_E)])],
        initializer=[
            numpy_helper.from_array(np.array([-1], np.int64), "last_axis"),
            *(
                numpy_helper.from_array(np.ascontiguousarray(array), name)
                for name, array in _tensors(head).items()
            ),
        ],
    )
    return helper.make_model(
        made,
        producer_name="cmcl",
        ir_version=_IR_VERSION,
        opset_imports=[helper.make_opsetid("", _OPSET)],
    )


class _Graph:
    """Nodes of a graph in their order; each method returns the name of what it adds."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []

    def node(self, operator: str, *inputs: str) -> str:
        """Add one node."""
        from onnx import helper

        name = f"{operator.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [name], name))
        return name

    def unit(self, rows: str) -> str:
        """Rows at unit length; a row of zeros stays one."""
        length = self.node("Max", self.length(rows), "shortest")
        return self.node("Div", rows, length)

    def length(self, rows: str) -> str:
        """Length of each row (B × 1)."""
        return self.node("ReduceL2", rows, "last_axis")

    def centred(self, rows: str) -> str:
        """x − μ; zeros if only rounding would be left (`Conditioning.centred`)."""
        centred = self.node("Sub", rows, "mean")
        size = self.node("Max", self.length(rows), "mean_length")
        apart = self.node("Greater", self.length(centred), self.node("Mul", size, "on_the_mean"))
        return self.node("Where", apart, centred, "zero")


def _tensors(head: ExportedHead) -> dict[str, Float32Array]:
    """The numbers of the graph by name; matrices as they are multiplied from the right."""
    found = {
        "shortest": np.array(_SHORTEST, np.float32),
        "weight": head.weight_EF.T,
        "bias": head.bias_E,
    }
    if head.mean_F is not None and head.map is not None:
        found |= {
            "mean": head.mean_F,
            "map": head.map,
            "mean_length": np.array(np.linalg.norm(head.mean_F), np.float32),
            "on_the_mean": np.array(_ON_THE_MEAN, np.float32),
            "zero": np.array(0, np.float32),
        }
    if head.random_FK is not None:
        found |= {"lift": head.random_FK, "lift_weight": head.lifted_EK.T}
    return found


def plain_files(heads: ModalityHeads) -> Iterator[ExportedFile]:
    """The tensors as docs/heads.md lists them, and the program."""
    arrays = {name: tensor.numpy() for name, tensor in head_tensors(heads).items()}
    yield ExportedFile.from_tensors(HEADS_FILE, arrays)
    yield ExportedFile.from_content("embed.py", RECIPE)


def sentence_transformers_files(heads: ModalityHeads) -> Iterator[ExportedFile]:
    """A folder for each modality."""
    for modality in sorted(heads.weights):
        yield ExportedFile.from_json(
            f"{modality}/config_sentence_transformers.json", _MODULES_CONFIG
        )
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
                yield ExportedFile.from_json(f"{modality}/{path}/config.json", {})
        yield ExportedFile.from_json(f"{modality}/modules.json", modules)


def _dense(folder: str, layer: Affine) -> Iterator[ExportedFile]:
    out_features, in_features = layer.weight.shape
    config = {
        "in_features": in_features,
        "out_features": out_features,
        "bias": layer.bias is not None,
        "activation_function": _RELU if layer.relu else _IDENTITY,
    }
    yield ExportedFile.from_json(f"{folder}/config.json", config)
    tensors = {"linear.weight": layer.weight}
    if layer.bias is not None:
        tensors["linear.bias"] = layer.bias
    yield ExportedFile.from_tensors(f"{folder}/model.safetensors", tensors)


def mlflow_files(heads: ModalityHeads) -> Iterator[ExportedFile]:
    """A folder for each modality. Call `check_onnx` before."""
    for modality in sorted(heads.weights):
        head = exported_head(heads, modality)
        yield ExportedFile.from_content(
            f"{modality}/{_MLFLOW_MODEL}", onnx_model(head, modality).SerializeToString()
        )
        # YAML, of which JSON is a part.
        yield ExportedFile.from_json(f"{modality}/MLmodel", _mlflow_description(head))
        requirements = f"mlflow\nonnx=={version('onnx')}\nonnxruntime\n"
        yield ExportedFile.from_content(f"{modality}/requirements.txt", requirements)
        environment = {"python": _python(), "dependencies": ["-r requirements.txt"]}
        yield ExportedFile.from_json(f"{modality}/python_env.yaml", environment)


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
        "signature": {"inputs": _signature(head.width), "outputs": _signature(len(head.bias_E))},
    }


def _signature(width: int) -> str:
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
    for name, text in card_files(manifest, matrix, format_, with_moments=moments is not None):
        yield ExportedFile.from_content(name, text)
    yield ExportedFile.from_content("manifest.json", manifest.model_dump_json(indent=2) + "\n")
    with torch.inference_mode():
        yield ExportedFile.from_content("selftest.safetensors", save_selftest(heads, manifest.spec))
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
