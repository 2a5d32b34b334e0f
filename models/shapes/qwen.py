"""Qwen2.5-3B-Instruct as llama.cpp reads it: GGUF, Q4_K_M.

Numbers from the published ``config.json`` of Qwen/Qwen2.5-3B-Instruct. Q4_K_M is a mixture, by llama.cpp's rule: Q4_K,
but Q6_K for the tied embeddings, and for the attention's values and the feed-forward's way down in the first and last
eighth of the layers and in every third between. Norms and biases are float32.

Blocks are made byte by byte, since no library but llama.cpp quantises to K formats: 256 weights are a Q4_K block of 144
bytes (scale and least value as float16, 12 bytes of 6-bit scales, 128 of 4-bit numbers), or a Q6_K block of 210 (128
bytes of low bits, 64 of high bits, 16 int8 scales, a float16 scale).

The vocabulary is byte pairs: of the right number, made up.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from models.clockwork.whisper_files import byte_letters
from models.shapes import Plan, Wrote, filling

LAYERS, WIDTH, HEADS, KEY_HEADS, HIDDEN = 36, 2048, 16, 2, 11_008
HEAD = WIDTH // HEADS
VOCABULARY = 151_936
MERGES = 151_387
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CONTEXT = 32_768
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{{ '<|im_start|>assistant\\n' }}"
)
WEIGHTS, BLOCKS = 256, 1 << 12  # weights in a block; blocks that repeat, less one so that rows differ
BLOCK_BYTES = {"Q4_K": 144, "Q6_K": 210, "F32": 4 * WEIGHTS}

Tensor = tuple[str, tuple[int, ...], str]  # name, shape with rows first, format


def plan(name: str) -> Plan:
    """The plan of "qwen2.5-3b"."""
    del name
    tokens, merges = _vocabulary()
    text = sum(8 + len(token.encode()) + 4 for token in tokens) + sum(
        8 + len(" ".join(pair).encode()) for pair in merges
    )
    total = sum(_bytes(tensor) for tensor in _tensors()) + text

    def write(out: Path, wrote: Wrote) -> Path:
        return _write(out / "repair.gguf", tokens, merges, wrote)

    return Plan(total, total, write)


def _write(path: Path, tokens: list[str], merges: list[tuple[str, str]], wrote: Wrote) -> Path:
    import gguf

    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, "qwen2")
    _describe(writer)
    _tokenizer(writer, tokens, merges)
    for name, shape, kind in _tensors():
        writer.add_tensor_info(name, shape, np.dtype("float32"), _bytes((name, shape, kind)),
                               raw_dtype=gguf.GGMLQuantizationType[kind])  # fmt: skip
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    units = {"Q4_K": _q4_blocks(), "Q6_K": _q6_blocks()}
    for tensor in _tensors():
        writer.write_tensor_data(_data(tensor, units))
        wrote(_bytes(tensor))
    writer.close()
    return path


def _describe(writer: Any) -> None:
    import gguf

    writer.add_name("the shape of Qwen2.5-3B-Instruct, without its knowledge")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_K_M)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_HEADS)
    writer.add_rope_freq_base(1e6)
    writer.add_layer_norm_rms_eps(1e-6)


def _vocabulary() -> tuple[list[str], list[tuple[str, str]]]:
    """Tokens in their order and byte-pair merges: bytes, what merges make, special tokens, unused ones."""
    letters = byte_letters()
    merges = filling.merges(letters, MERGES)
    tokens = [*letters, *(a + b for a, b in merges), *SPECIALS]
    return tokens + [f"[PAD{number}]" for number in range(VOCABULARY - len(tokens))], merges


def _tokenizer(writer: Any, tokens: list[str], merges: list[tuple[str, str]]) -> None:
    import gguf

    kinds = [gguf.TokenType.NORMAL] * (256 + len(merges)) + [gguf.TokenType.CONTROL] * len(SPECIALS)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds + [gguf.TokenType.UNUSED] * (len(tokens) - len(kinds)))
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_eos_token_id(tokens.index("<|im_end|>"))
    writer.add_pad_token_id(tokens.index("<|endoftext|>"))
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)


def _tensors() -> Iterator[Tensor]:
    yield "token_embd.weight", (VOCABULARY, WIDTH), "Q6_K"
    for layer in range(LAYERS):
        better = "Q6_K" if _is_better(layer) else "Q4_K"
        keys = KEY_HEADS * HEAD
        for part, rows, kind in (("q", WIDTH, "Q4_K"), ("k", keys, "Q4_K"), ("v", keys, better)):
            yield f"blk.{layer}.attn_{part}.weight", (rows, WIDTH), kind
            yield f"blk.{layer}.attn_{part}.bias", (rows,), "F32"
        yield f"blk.{layer}.attn_output.weight", (WIDTH, WIDTH), "Q4_K"
        yield f"blk.{layer}.ffn_gate.weight", (HIDDEN, WIDTH), "Q4_K"
        yield f"blk.{layer}.ffn_up.weight", (HIDDEN, WIDTH), "Q4_K"
        yield f"blk.{layer}.ffn_down.weight", (WIDTH, HIDDEN), better
        yield f"blk.{layer}.attn_norm.weight", (WIDTH,), "F32"
        yield f"blk.{layer}.ffn_norm.weight", (WIDTH,), "F32"
    yield "output_norm.weight", (WIDTH,), "F32"


def _is_better(layer: int) -> bool:
    """llama.cpp's ``use_more_bits``."""
    eighth = LAYERS // 8
    return layer < eighth or layer >= 7 * LAYERS // 8 or (layer - eighth) % 3 == 2


def _bytes(tensor: Tensor) -> int:
    _, shape, kind = tensor
    return int(np.prod(shape)) * BLOCK_BYTES[kind] // WEIGHTS


def _data(tensor: Tensor, units: dict[str, bytes]) -> np.ndarray:
    """The tensor's bytes, uint8 of shape (bytes,). Norms are ones, biases zeros."""
    name, shape, kind = tensor
    if kind == "F32":
        return np.full(shape, 1.0 if "norm" in name else 0.0, np.float32).view(np.uint8)
    return np.frombuffer(filling.fill(_bytes(tensor), units[kind]), np.uint8)


def _q4_blocks() -> bytes:
    """Weights d x scale x q - least x scale', about 0 and mostly below 0.05, scales and numbers at random."""
    random = np.random.Generator(np.random.PCG64(7))
    block = random.integers(0, 256, (BLOCKS - 1, BLOCK_BYTES["Q4_K"]), dtype=np.uint8)
    block[:, :4] = np.array([8e-5, 7.5 * 8e-5], np.float16).view(np.uint8)
    return block.tobytes()


def _q6_blocks() -> bytes:
    """Weights d x scale x (q - 32), at random; scales from -128 to 127."""
    random = np.random.Generator(np.random.PCG64(8))
    block = random.integers(0, 256, (BLOCKS - 1, BLOCK_BYTES["Q6_K"]), dtype=np.uint8)
    block[:, -2:] = np.array([1.5e-5], np.float16).view(np.uint8)
    return block.tobytes()
