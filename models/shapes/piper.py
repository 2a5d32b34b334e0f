"""A Piper voice of medium quality: VITS as ONNX, float32.

Numbers from Piper's published training settings for "medium" (hidden width 192, filter width 768, two heads, six
layers, four flows of four layers, a HiFi-GAN of 256 channels that upsamples by 8, 8 and 4, residual blocks of type 2);
size of en_US-lessac-medium.onnx. What decides the memory of a run is done as the published graph does it: attention
with relative positions over all phonemes, the matrix of frames by phonemes, the vocoder over all samples at once.

What is not done as there: the spline of the duration flows (a few numbers a phoneme). Every phoneme id lasts three
frames of 256 samples at length scale 1, some 29 ids a second, as in real speech with the pauses between phonemes.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np

from models.clockwork import tts
from models.onnx_graph import Graph
from models.shapes import Plan, Wrote, filling

SYMBOLS, WIDTH, FILTER, HEADS, LAYERS = 256, 192, 768, 2, 6
HEAD = WIDTH // HEADS
REACH = 4  # relative positions to each side
FLOWS, FLOW_LAYERS, FLOW_KERNEL = 4, 4, 5
UPSAMPLE, UPSAMPLE_KERNELS, CHANNELS = (8, 8, 4), (16, 16, 8), 256
BLOCKS = ((3, (1, 2)), (5, (2, 6)), (7, (3, 12)))  # kernel, dilations
DURATION_FLOWS, SEPARABLE_LAYERS, SPLINE = 3, 3, 29
FRAMES_A_SYMBOL = 3
LANGUAGE = "en"


def plan(name: str) -> Plan:
    """The plan of "piper-medium". The file is small enough to be made in memory."""
    del name
    graph = Voice().file()
    config = {**tts.config(LANGUAGE), "num_symbols": SYMBOLS}
    config["audio"] = {**config["audio"], "quality": "medium"}
    described = json.dumps(config, ensure_ascii=False, indent=1) + "\n"

    def write(out: Path, wrote: Wrote) -> Path:
        out.mkdir(parents=True, exist_ok=True)
        with (out / f"{LANGUAGE}.onnx").open("wb") as file:
            for begin in range(0, len(graph), filling.PIECE_BYTES):
                wrote(file.write(graph[begin : begin + filling.PIECE_BYTES]))
        (out / f"{LANGUAGE}.onnx.json").write_text(described, encoding="utf-8")
        return out

    return Plan(len(graph), len(graph) + len(described.encode()), write)


class Voice(Graph):
    """The network. Signals are [1, channels, time]; ``self.count``: phonemes, int64 [1]."""

    def __init__(self) -> None:
        super().__init__()
        self._block = np.frombuffer(filling.block("float32"), np.float32)
        self.count = self.op("Gather", self.op("Shape", "input"), self.whole([1]), axis=0)

    def file(self) -> bytes:
        """The whole graph: text, durations, frames, sound."""
        encoded = self._text()
        statistics = self.conv(encoded, WIDTH, 2 * WIDTH)
        path = self._path(self._durations(encoded))
        mean, spread = (self._stretch(path, self.cut(statistics, half)) for half in (0, 1))
        noise = self.op("Mul", self.op("RandomNormalLike", mean), self.op("Exp", spread))
        z = self.op("Add", mean, self.op("Mul", noise, self._scale(0)))
        for _ in range(FLOWS):
            z = self._flow(z)
        return self.voice("shape_of_piper_medium", self.op("Squeeze", self._vocoder(z), self.whole([0, 1])))

    def weight(self, *shape: int) -> str:
        return self.const(np.resize(self._block, shape))

    def conv(self, x: str, inputs: int, outputs: int, kernel: int = 1, dilation: int = 1, groups: int = 1) -> str:
        """A convolution that keeps the length."""
        pads = [dilation * (kernel - 1) // 2] * 2
        weight, bias = self.weight(outputs, inputs // groups, kernel), self.const(np.zeros(outputs))
        return self.op("Conv", x, weight, bias, dilations=[dilation], pads=pads, group=groups)

    def norm(self, x: str) -> str:
        """Over the channels."""
        x = self.op("Transpose", x, perm=[0, 2, 1])
        x = self.op("LayerNormalization", x, self.const(np.ones(WIDTH)), self.const(np.zeros(WIDTH)), axis=-1)
        return self.op("Transpose", x, perm=[0, 2, 1])

    def cut(self, x: str, half: int, width: int = WIDTH) -> str:
        """The first or second ``width`` channels."""
        return self.slice(x, half * width, (half + 1) * width, axis=1)

    def shape(self, *sizes: int | str) -> str:
        """A shape of known sizes and int64 [1] results."""
        return self.op("Concat", *(self.whole([s]) if isinstance(s, int) else s for s in sizes), axis=0)

    def _scale(self, number: int) -> str:
        return self.op("Gather", "scales", self.whole(number), axis=0)

    # ---------------------------------------------------------------- text

    def _text(self) -> str:
        x = self.times(self.op("Gather", self.weight(SYMBOLS, WIDTH), "input", axis=0), math.sqrt(WIDTH))
        x = self.op("Transpose", x, perm=[0, 2, 1])
        for _ in range(LAYERS):
            x = self.norm(self.op("Add", x, self._attention(x)))
            hidden = self.op("Relu", self.conv(x, WIDTH, FILTER, kernel=3))
            x = self.norm(self.op("Add", x, self.conv(hidden, FILTER, WIDTH, kernel=3)))
        return x

    def _attention(self, x: str) -> str:
        query, key, value = (self._heads(self.conv(x, WIDTH, WIDTH)) for _ in range(3))
        query = self.times(query, HEAD**-0.5)
        scores = self.op("MatMul", query, self.op("Transpose", key, perm=[0, 1, 3, 2]))
        near = self.op("Transpose", self._relative(), perm=[0, 2, 1])
        scores = self.op("Add", scores, self._to_absolute(self.op("MatMul", query, near)))
        weights = self.op("Softmax", scores, axis=-1)
        found = self.op("MatMul", weights, value)
        found = self.op("Add", found, self.op("MatMul", self._to_relative(weights), self._relative()))
        found = self.op("Transpose", found, perm=[0, 1, 3, 2])
        return self.conv(self.op("Reshape", found, self.shape(1, WIDTH, self.count)), WIDTH, WIDTH)

    def _heads(self, x: str) -> str:
        """[1, heads, time, head]."""
        x = self.op("Reshape", x, self.shape(1, HEADS, HEAD, self.count))
        return self.op("Transpose", x, perm=[0, 1, 3, 2])

    def _relative(self) -> str:
        """What is learnt of 9 relative positions, zeros for all others: [1, 2 x time - 1, head]."""
        beyond = self.op("Sub", self.count, self.whole([REACH + 1]))
        more = self.op("Max", beyond, self.whole([0]))
        less = self.op("Max", self.op("Neg", beyond), self.whole([0]))
        padded = self.op("Pad", self.weight(1, 2 * REACH + 1, HEAD), self.shape(0, more, 0, 0, more, 0))
        last = self.op("Add", less, self._less_one(self._twice()))
        return self.op("Slice", padded, less, last, self.whole([1]))

    def _twice(self) -> str:
        return self.op("Add", self.count, self.count)

    def _less_one(self, number: str) -> str:
        return self.op("Sub", number, self.whole([1]))

    def _to_absolute(self, x: str) -> str:
        """[1, heads, time, 2 x time - 1] by distance to [1, heads, time, time] by place."""
        x = self.op("Pad", x, self.whole([0, 0, 0, 0, 0, 0, 0, 1]))
        x = self.op("Reshape", x, self.whole([1, HEADS, -1]))
        x = self.op("Pad", x, self.shape(0, 0, 0, 0, 0, self._less_one(self.count)))
        x = self.op("Reshape", x, self.shape(1, HEADS, -1, self._less_one(self._twice())))
        x = self.op("Slice", x, self.whole([0]), self.count, self.whole([2]))
        return self.op("Slice", x, self._less_one(self.count), self.whole([1 << 40]), self.whole([3]))

    def _to_relative(self, x: str) -> str:
        """The other way."""
        x = self.op("Pad", x, self.shape(0, 0, 0, 0, 0, 0, 0, self._less_one(self.count)))
        x = self.op("Reshape", x, self.whole([1, HEADS, -1]))
        x = self.op("Pad", x, self.shape(0, 0, self.count, 0, 0, 0))
        x = self.op("Reshape", x, self.shape(1, HEADS, self.count, self._twice()))
        return self.slice(x, 1, 1 << 40, axis=3)

    # ---------------------------------------------------------------- durations

    def _durations(self, encoded: str) -> str:
        """Frames of each phoneme, [1, 1, time]: whatever the flows say, ``FRAMES_A_SYMBOL`` at length scale 1."""
        condition = self.conv(self._separable(self.conv(encoded, WIDTH, WIDTH)), WIDTH, WIDTH)
        z = self.op("RandomNormalLike", self.slice(encoded, 0, 1, axis=1))
        z = self.op("Mul", z, self._scale(2))
        for _ in range(DURATION_FLOWS):
            inner = self._separable(self.op("Add", self.conv(z, 1, WIDTH), condition))
            z = self.op("Tanh", self.op("Add", z, self.slice(self.conv(inner, WIDTH, SPLINE), 0, 1, axis=1)))
        logarithm = self.plus(self.times(z, 1e-3), math.log(FRAMES_A_SYMBOL - 0.2))
        return self.op("Ceil", self.op("Mul", self.op("Exp", logarithm), self._scale(1)))

    def _separable(self, x: str) -> str:
        for layer in range(SEPARABLE_LAYERS):
            y = self.norm(self.conv(x, WIDTH, WIDTH, kernel=3, dilation=3**layer, groups=WIDTH))
            x = self.op("Add", x, self.norm(self.conv(self.op("Relu", y), WIDTH, WIDTH)))
        return x

    def _path(self, durations: str) -> str:
        """Which phoneme each frame belongs to: ones in float32 [frames, time]."""
        ends = self.op("CumSum", self.op("Squeeze", durations, self.whole([0, 1])), self.whole(0))
        total = self.op("Max", self.cast(self.slice(ends, -1, 1 << 40), "INT64"), self.whole([1]))
        frames = self.op("Range", self.whole(0), self.op("Squeeze", total), self.whole(1))
        frames = self.op("Unsqueeze", self.cast(frames, "FLOAT"), self.whole([0]))
        before = self.cast(self.op("Less", frames, self.op("Unsqueeze", ends, self.whole([1]))), "FLOAT")
        earlier = self.slice(self.op("Pad", before, self.whole([1, 0, 0, 0])), 0, -1)
        return self.op("Transpose", self.op("Sub", before, earlier), perm=[1, 0])

    def _stretch(self, path: str, x: str) -> str:
        """[1, channels, time] to [1, channels, frames]."""
        return self.op("Transpose", self.op("MatMul", path, self.op("Transpose", x, perm=[0, 2, 1])), perm=[0, 2, 1])

    # ---------------------------------------------------------------- frames and sound

    def _flow(self, z: str) -> str:
        half = WIDTH // 2
        z = self.op("Gather", z, self.whole(list(range(WIDTH))[::-1]), axis=1)
        kept, changed = self.cut(z, 0, half), self.cut(z, 1, half)
        x, sums = self.conv(kept, half, WIDTH), []
        for layer in range(FLOW_LAYERS):
            inner = self.conv(x, WIDTH, 2 * WIDTH, FLOW_KERNEL)
            inner = self.op("Mul", self.op("Tanh", self.cut(inner, 0)), self.op("Sigmoid", self.cut(inner, 1)))
            if layer == FLOW_LAYERS - 1:
                sums.append(self.conv(inner, WIDTH, WIDTH))
                break
            both = self.conv(inner, WIDTH, 2 * WIDTH)
            x = self.op("Add", x, self.cut(both, 0))
            sums.append(self.cut(both, 1))
        mean = self.conv(self.op("Sum", *sums), WIDTH, half)
        return self.op("Concat", kept, self.op("Sub", changed, mean), axis=1)

    def _vocoder(self, z: str) -> str:
        x, channels = self.conv(z, WIDTH, CHANNELS, kernel=7), CHANNELS
        for factor, kernel in zip(UPSAMPLE, UPSAMPLE_KERNELS, strict=True):
            weight, bias = self.weight(channels, channels // 2, kernel), self.const(np.zeros(channels // 2))
            channels //= 2
            x = self.op("LeakyRelu", x, alpha=0.1)
            pads = [(kernel - factor) // 2] * 2
            x = self.op("ConvTranspose", x, weight, bias, strides=[factor], pads=pads)
            made = [self._residual(x, channels, *block) for block in BLOCKS]
            x = self.times(self.op("Add", self.op("Add", made[0], made[1]), made[2]), 1 / len(made))
        return self.op("Tanh", self.conv(self.op("LeakyRelu", x, alpha=0.01), channels, 1, kernel=7))

    def _residual(self, x: str, channels: int, kernel: int, dilations: tuple[int, ...]) -> str:
        for dilation in dilations:
            x = self.op("Add", x, self.conv(self.op("LeakyRelu", x, alpha=0.1), channels, channels, kernel, dilation))
        return x
