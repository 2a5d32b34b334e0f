"""The voices' network and vocoder written as an ONNX graph.

Everything is arithmetic: the noise is a hash of the sample's number, so the same text gives the same samples. Piper's
noise scales are accepted and have no effect. Weights are stored as float16.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor, nn

from models import onnx_graph
from models.train.tts_data import LANGUAGES, LASTING
from models.train.tts_net import HIGHEST_GAIN, LOWEST_GAIN, PITCH_SPREAD, Net, Stack
from models.train.tts_vocoder import (
    BINS,
    HARMONIC_BANDS,
    HIGHEST_HZ,
    HOP,
    NOISE_BANDS,
    RATE_HZ,
    SIZE,
    WINDOW,
    hann,
    interpolation,
    minimum_phase,
)


class Graph(onnx_graph.Graph):
    """With the network's own layers; their weights are stored as float16."""

    def __init__(self) -> None:
        super().__init__(half=True)

    def conv(self, x: str, layer: nn.Conv1d) -> str:
        bias = self.const(_numpy(layer.bias))
        pads = [int(layer.padding[0])] * 2
        return self.op("Conv", x, self.const(_numpy(layer.weight)), bias, dilations=list(layer.dilation), pads=pads)

    def stack(self, x: str, stack: Stack) -> str:
        for wide, narrow in zip(stack.wide, stack.narrow, strict=True):
            x = self.op("Add", x, self.conv(self.op("Relu", self.conv(x, wide)), narrow))
        return x


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.detach().numpy()


def export(net: Net, language: str) -> bytes:
    """One voice as an ONNX file; of the scales only that of the length is used."""
    graph = Graph()
    encoded, lengths = _graph_symbols(graph, net, LANGUAGES.index(language))
    pitch, gains, frames = _graph_frames(graph, net, encoded, lengths, LANGUAGES.index(language))
    return graph.voice(f"demo_{language}", _graph_vocoder(graph, pitch, gains, frames))


def _graph_symbols(graph: Graph, net: Net, voice: int) -> tuple[str, str]:
    """(what the network makes of the symbols [1, CHANNELS, symbols], their lengths in frames float [symbols])."""
    row = graph.op("Gather", "input", graph.whole(0), axis=0)
    ids = graph.op("Slice", row, graph.whole([0]), graph.op("Slice", "input_lengths", *map(graph.whole, ([0], [1]))))
    ids = graph.op("Compress", ids, graph.cast(ids, "BOOL"), axis=0)  # without the padding, which is 0
    table = _numpy(net.symbols.weight) + _numpy(net.voices.weight)[voice]
    x = graph.op("Transpose", graph.op("Gather", graph.const(table), ids), perm=[1, 0])
    encoded = graph.stack(graph.op("Unsqueeze", x, graph.whole([0])), net.read)
    roots = graph.op("Squeeze", graph.conv(encoded, net.length), graph.whole([0, 1]))
    roots = graph.op("Relu", roots)
    lengths = graph.op("Mul", graph.op("Mul", roots, roots), graph.op("Gather", graph.const(LASTING), ids))
    return encoded, graph.op("Mul", lengths, graph.op("Gather", "scales", graph.whole(1)))


def _graph_frames(graph: Graph, net: Net, encoded: str, lengths: str, voice: int) -> tuple[str, str, str]:
    """(pitch in Hz [frames], log gains [frames, bands], the number of frames)."""
    ends = graph.op("CumSum", lengths, graph.whole(0))
    starts = graph.cast(graph.op("Round", graph.op("Sub", ends, lengths)), "INT64")
    last = graph.cast(graph.op("Round", graph.slice(ends, -1, 1 << 40)), "INT64")
    last = graph.op("Max", last, graph.whole([1]))
    frames = graph.op("Squeeze", last)
    at = graph.op("Range", graph.whole(0), frames, graph.whole(1))

    bounds = graph.op("Concat", starts, last, axis=0)
    ones = graph.op("Expand", graph.whole([1]), graph.op("Shape", bounds))
    nothing = graph.op("Expand", graph.whole([0]), graph.op("Add", last, graph.whole([1])))
    begun = graph.op("ScatterElements", nothing, bounds, ones, axis=0, reduction="add")
    counted = graph.op("CumSum", graph.slice(begun, 0, -1), graph.whole(0))
    owner = graph.op("Sub", counted, graph.whole(1))
    begin = graph.op("Gather", bounds, owner)
    size = graph.cast(graph.op("Sub", graph.op("Gather", bounds, counted), begin), "FLOAT")
    within = graph.plus(graph.cast(graph.op("Sub", at, begin), "FLOAT"), 0.5)
    relative = graph.op("Div", within, graph.op("Max", size, graph.const(1.0)))
    angle = graph.times(relative, np.pi)
    features = [relative, graph.op("Sin", angle), graph.op("Cos", graph.times(angle, 2.0))]
    place = graph.op("Concat", *(graph.op("Unsqueeze", one, graph.whole([1])) for one in features), axis=1)
    place = graph.op("MatMul", place, graph.const(_numpy(net.place.weight).T))
    place = graph.op("Add", place, graph.const(_numpy(net.place.bias)))
    place = graph.op("Unsqueeze", graph.op("Transpose", place, perm=[1, 0]), graph.whole([0]))
    x = graph.op("Add", graph.op("Gather", encoded, owner, axis=2), place)
    out = graph.conv(graph.stack(x, net.speak), net.frame)
    out = graph.op("Transpose", graph.op("Squeeze", out, graph.whole([0])), perm=[1, 0])
    tone = graph.op("Clip", graph.slice(out, 0, 1, 1), graph.const(-4.0), graph.const(4.0))
    tone = graph.plus(graph.times(tone, PITCH_SPREAD), float(net.mean[voice]))
    gains = graph.op("Clip", graph.slice(out, 1, 1 << 40, 1), graph.const(LOWEST_GAIN), graph.const(HIGHEST_GAIN))
    return graph.op("Squeeze", graph.op("Exp", tone), graph.whole([1])), gains, frames


def _graph_vocoder(graph: Graph, pitch: str, gains: str, frames: str) -> str:
    """Samples [frames x HOP]; the same arithmetic as ``pulses`` and ``Vocoder``."""
    cosine, sine = _graph_waves(graph)
    window = graph.const(hann(WINDOW) / 2)
    harmonic, breath = graph.slice(gains, 0, HARMONIC_BANDS, 1), graph.slice(gains, HARMONIC_BANDS, 1 << 40, 1)
    spread = interpolation(HARMONIC_BANDS)
    strength = graph.op("Exp", graph.op("MatMul", harmonic, graph.const(spread)))
    turn = graph.op("MatMul", harmonic, graph.const(minimum_phase(spread)))
    gain_re, gain_im = (graph.op("Mul", strength, graph.op(kind, turn)) for kind in ("Cos", "Sin"))
    air = graph.op("Exp", graph.op("MatMul", breath, graph.const(interpolation(NOISE_BANDS))))

    source = _graph_windows(graph, _graph_pulses(graph, pitch), window)
    noise = _graph_windows(graph, _graph_noise(graph, frames), window)
    first, last = graph.whole([HOP // 2]), graph.whole([HOP // 2 + WINDOW])
    cosine_in, sine_in = (graph.op("Slice", wave, first, last) for wave in (cosine, sine))
    source_re, source_im = (graph.op("MatMul", source, wave) for wave in (cosine_in, sine_in))  # im: with the sign -1
    noise_re, noise_im = (graph.op("MatMul", noise, wave) for wave in (cosine_in, sine_in))

    def products(kind: str, *pairs: tuple[str, str]) -> str:
        return graph.op(kind, *(graph.op("Mul", *pair) for pair in pairs))

    # (a - ib)(c + id) = (ac + bd) - i(bc - ad)
    real = graph.op("Add", products("Add", (source_re, gain_re), (source_im, gain_im)), graph.op("Mul", noise_re, air))
    imag = graph.op("Add", products("Sub", (source_im, gain_re), (source_re, gain_im)), graph.op("Mul", noise_im, air))
    weight = np.full(BINS, 2.0 / SIZE)
    weight[[0, -1]] = 1.0 / SIZE
    share = graph.const(weight)
    back = (graph.op("Transpose", wave, perm=[1, 0]) for wave in (cosine, sine))
    real, imag = graph.op("Mul", real, share), graph.op("Mul", imag, share)
    cut = graph.op("Add", *(graph.op("MatMul", part, wave) for part, wave in zip((real, imag), back, strict=True)))
    return _graph_overlap(graph, cut)


def _graph_waves(graph: Graph) -> tuple[str, str]:
    """Cosines and sines [SIZE, BINS] of the Fourier transform; computed once, when the model is opened."""
    time = graph.op("Unsqueeze", graph.op("Range", *map(graph.whole, (0, SIZE, 1))), graph.whole([1]))
    bins = graph.op("Unsqueeze", graph.op("Range", *map(graph.whole, (0, BINS, 1))), graph.whole([0]))
    turns = graph.cast(graph.op("Mod", graph.op("Mul", time, bins), graph.whole(SIZE)), "FLOAT")
    angle = graph.times(turns, 2 * np.pi / SIZE)
    return graph.op("Cos", angle), graph.op("Sin", angle)


def _graph_pulses(graph: Graph, pitch: str) -> str:
    """[frames + 3, HOP]: see ``pulses``. The phase is summed in float64, so long texts stay exact."""
    padded = graph.op("Pad", pitch, graph.whole([2, 2]), mode="edge")
    padded = graph.op("Unsqueeze", padded, graph.whole([1]))
    weight = np.arange(HOP, dtype=np.float32)[None] / HOP
    before = graph.op("Mul", graph.slice(padded, 0, -1), graph.const(1 - weight))
    each = graph.op("Add", before, graph.op("Mul", graph.slice(padded, 1, 1 << 40), graph.const(weight)))
    flat = graph.op("Reshape", each, graph.whole([-1]))
    phase = graph.op("CumSum", graph.cast(graph.times(flat, 1 / RATE_HZ), "DOUBLE"), graph.whole(0))
    phase = graph.cast(graph.op("Sub", phase, graph.op("Round", phase)), "FLOAT")
    odd = graph.plus(graph.times(graph.op("Floor", graph.op("Div", graph.const(HIGHEST_HZ), flat)), 2.0), 1.0)
    angle = graph.times(phase, np.pi)
    below = graph.op("Sin", angle)
    tiny = graph.op("Less", graph.op("Abs", below), graph.const(1e-4))
    safe = graph.op("Where", tiny, graph.const(1.0), below)
    ratio = graph.op("Div", graph.op("Sin", graph.op("Mul", odd, angle)), safe)
    made = graph.plus(graph.times(graph.op("Where", tiny, odd, ratio), 0.5), -0.5)
    return graph.op("Reshape", made, graph.whole([-1, HOP]))


def _graph_noise(graph: Graph, frames: str) -> str:
    """[frames + 3, HOP], even noise of unit power: three rounds of a hash of the sample's number."""
    count = graph.op("Mul", graph.op("Add", frames, graph.whole(3)), graph.whole(HOP))
    x = graph.op("Range", graph.whole(1), graph.op("Add", count, graph.whole(1)), graph.whole(1))
    for factor in (506_952_113, 1_664_525, 1_013_904_223):
        x = graph.op("Mod", graph.op("Mul", x, graph.whole(factor)), graph.whole(1 << 32))
        high = graph.op("Div", x, graph.whole(1 << 16))
        x = graph.op("Mul", graph.op("Add", x, high), graph.op("Add", high, graph.whole(1)))
        x = graph.op("Mod", x, graph.whole((1 << 31) - 1))
    made = graph.times(graph.cast(x, "FLOAT"), 12**0.5 / ((1 << 31) - 1))
    return graph.op("Reshape", graph.plus(made, -(12**0.5) / 2), graph.whole([-1, HOP]))


def _graph_windows(graph: Graph, blocks: str, window: str) -> str:
    """[frames, WINDOW] of [frames + 3, HOP]: each window is four neighbouring blocks."""
    cut = [graph.slice(blocks, at, at - 3 if at < 3 else 1 << 40) for at in range(4)]
    return graph.op("Mul", graph.op("Concat", *cut, axis=1), window)


def _graph_overlap(graph: Graph, cut: str) -> str:
    """The sum [frames x HOP] of overlapping [frames, SIZE]: each block of HOP samples moved to its place."""
    parts = []
    for at in range(SIZE // HOP):
        block = graph.slice(cut, at * HOP, (at + 1) * HOP, 1)
        parts.append(graph.op("Pad", block, graph.whole([at, 0, SIZE // HOP - 1 - at, 0])))
    whole = graph.slice(graph.op("Sum", *parts), 2, -3)
    return graph.op("Reshape", whole, graph.whole([-1]))
