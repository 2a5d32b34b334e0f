"""An ONNX graph written from top to bottom: each method adds a node and returns the name of its result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

SMALL = 64  # a constant of no more numbers keeps its precision


class Graph:
    """``half``: store bigger float32 constants as float16, cast when the model is opened."""

    def __init__(self, half: bool = False) -> None:
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self._half = half

    def const(self, value: Any, dtype: Any = np.float32) -> str:
        """A constant, an initialiser of the graph."""
        from onnx import TensorProto, numpy_helper

        array = np.asarray(value, dtype)
        name = f"w{len(self.weights)}"
        half = self._half and array.dtype == np.float32 and array.size > SMALL
        self.weights.append(numpy_helper.from_array(array.astype(np.float16) if half else array, name))
        return self.op("Cast", name, to=TensorProto.FLOAT) if half else name

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """A node with one result."""
        from onnx import helper

        name = f"{kind.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def whole(self, value: Sequence[int] | int) -> str:
        return self.const(value, np.int64)

    def cast(self, x: str, kind: str) -> str:
        from onnx import TensorProto

        return self.op("Cast", x, to=getattr(TensorProto, kind))

    def times(self, x: str, factor: float) -> str:
        return self.op("Mul", x, self.const(factor))

    def plus(self, x: str, term: float) -> str:
        return self.op("Add", x, self.const(term))

    def slice(self, x: str, start: int, stop: int, axis: int = 0) -> str:
        return self.op("Slice", x, *(self.whole([value]) for value in (start, stop, axis)))

    def voice(self, name: str, samples: str) -> bytes:
        """The file of a Piper voice. ``samples``: its result, float32 of shape (samples,).

        In: input int64 [1, phonemes], input_lengths int64 [1], scales float32 [3]: noise, length, noise of lengths.
        Out: output float32 [1, 1, 1, samples].
        """
        from onnx import TensorProto, helper

        self.nodes.append(helper.make_node("Unsqueeze", [samples, self.whole([0, 1, 2])], ["output"]))
        inputs = [
            helper.make_tensor_value_info("input", TensorProto.INT64, ["batch", "phonemes"]),
            helper.make_tensor_value_info("input_lengths", TensorProto.INT64, ["batch"]),
            helper.make_tensor_value_info("scales", TensorProto.FLOAT, [3]),
        ]
        output = helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, 1, 1, "samples"])
        made = helper.make_graph(self.nodes, name, inputs, [output], self.weights)
        model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        return bytes(model.SerializeToString(deterministic=True))
