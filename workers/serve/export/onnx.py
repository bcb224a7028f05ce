"""Heads as ONNX models, one for each modality: `features` (B × F) in, `embeddings` (B × E) out."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from workers.model.heads import ModalityHeads
from workers.serve.errors import NotInstalled, Unprocessable
from workers.serve.export.archive import ExportedFile
from workers.serve.export.heads import ExportedHead, exported_head
from workers.serve.versions.loading import Float32Array

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

INPUT, OUTPUT = "features", "embeddings"
# Operators of 2023, which every present runtime has; the format of the file is that of the same year.
_OPSET, _IR_VERSION = 18, 8
# Of protobuf, less what is around the numbers.
_LARGEST = (2 << 30) - (1 << 20)
# As torch.nn.functional.normalize divides, and Conditioning decides what lies on the mean.
_SHORTEST, _ON_THE_MEAN = 1e-12, 1e-6


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
    if head.mean_F is not None:
        rows = graph.unit(graph.node("MatMul", graph.centred(rows), "map"))
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
    if head.mean_F is not None and head.map_FF is not None:
        found |= {
            "mean": head.mean_F,
            "map": head.map_FF,
            "mean_length": np.array(np.linalg.norm(head.mean_F), np.float32),
            "on_the_mean": np.array(_ON_THE_MEAN, np.float32),
            "zero": np.array(0, np.float32),
        }
    if head.random_FK is not None:
        found |= {"lift": head.random_FK, "lift_weight": head.lifted_EK.T}
    return found
