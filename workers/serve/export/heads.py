"""The head of one modality for other programs: plain arrays, affine layers that compute the same, and ONNX.

An ONNX model takes `features` (B × F) and returns `embeddings` (B × E).

Shapes: B rows, F width of the raw feature, K random features of its lift, E width of the embeddings. All arrays are
float32.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from workers.model.heads import ModalityHeads
from workers.serve.errors import NotInstalled, Unprocessable
from workers.serve.export.archive import ExportedFile
from workers.serve.versions.loading import Float32Array

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

INPUT, OUTPUT = "features", "embeddings"
# Operators of 2023, which every present runtime has; the format of the file is that of the same year.
_OPSET, _IR_VERSION = 18, 8
# Protobuf's limit, less what is around the numbers.
_LARGEST = (2 << 30) - (1 << 20)
# As torch.nn.functional.normalize divides, and Conditioning decides what lies on the mean.
_SHORTEST, _ON_THE_MEAN = 1e-12, 1e-6


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
        yield ExportedFile.of(f"{modality}.onnx", model.SerializeToString())


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
