"""A chat model that copies the user's text byte by byte, with one visible change: ``_`` becomes a space.

It is a llama GGUF file with hand-set weights and a chat template that makes of a conversation::

    <s> <|user|> T E X T <|end|> <|assistant|>          (the last message; every byte of it is one token)

To copy, the token at distance n behind ``<|assistant|>`` must fetch what stands at distance n + 1 behind
``<|user|>``: the first byte for ``<|assistant|>`` itself, and finally ``<|end|>``, which ends the answer.
Comparing tokens cannot do that when a text repeats itself; comparing *distances* can. Two layers:

1. **Clocks.** Each head looks only at its marker and at ``<s>`` (a large score G, against 0 for the rest).
   Rotary embedding turns the marker's score by the distance d: it is ``G + g cos(w d - phase)``, the score of
   ``<s>`` is G. The head's value is 1 at the marker and 0 at ``<s>``, so its output is
   ``1 / (1 + exp(-g cos(w d - phase)))``: one hand of a clock. Five speeds w, two phases (cos and sin)
   make ten hands. There are two such clocks, one since ``<|user|>``, one since ``<|assistant|>``; the second
   runs one step ahead, by its phases.
2. **Fetch.** The query is the clock since ``<|assistant|>``, the key the clock since ``<|user|>``, both about
   their middle (the constant 1/2 is taken off through a dimension that is always 1). They agree best at equal
   distance. Both sit in rotary pairs so slow that they stand still. Two heads carry 32 of the 64 dimensions of
   the fetched token's code each.

The output matrix compares the fetched code with each token's code. The visible change is one swapped row:
the space also answers to the code of ``_``, and ``_`` to nothing.

g = 1 keeps the hands close to a plain cosine (the logistic curve is nearly straight there): the margin between
the right position and the next best one is then 0.43 in units of a hand's swing squared, up to 1,000 bytes, and
0.31 at 2,000, times a gain of 60: far above rounding in f16 or q8_0. Token codes are bits of a hash: fixed for
ever, and any two of them are far apart. The feed-forward parts are zero. Cost is one token per byte.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

Precision = Literal["f32", "f16", "q8_0"]

DIM, CODE, HEAD, FFN = 256, 64, 32, 32
SPEEDS, PHASES = range(5), (0.0, np.pi / 2)
HANDS = len(SPEEDS) * len(PHASES)  # of one clock
HEADS = 2 * HANDS
FREQ_BASE = 1e10  # rotary pair k turns by FREQ_BASE ** (-k / 16) a token: 1, 0.24, 0.056, ... and 0 from pair 10 on
STILL = 2 * 10  # first dimension of the pairs that stand still
LOOK = 2 * 15  # in the last pair: "look at the marker and at <s>"
G, SWING, GAIN, SHARPNESS = 30.0, 1.0, 60.0, 30.0

# The residual stream: a token's code, the constant, what the token is, the two clocks, the fetched code.
ONE, IS_USER, IS_ASSISTANT, IS_BOS = 64, 65, 66, 67
CLOCK_USER, CLOCK_ASSISTANT = 96, 96 + HANDS
FETCHED = 128

VOCABULARY = 288
BOS, USER, END, ASSISTANT = range(256, 260)
SPECIALS = ("<s>", "<|user|>", "<|end|>", "<|assistant|>")
TEMPLATE = "{{ '<s><|user|>' + messages[-1]['content'] + '<|end|><|assistant|>' }}"


def write(out: Path, precision: Precision = "f16") -> Path:
    """Write the model to ``out`` when that ends in ``.gguf``, else to ``out/repair.gguf``; return the file.

    Same arguments, same bytes. Raises ValueError for a precision other than "f32", "f16" and "q8_0".
    """
    import gguf

    if precision not in ("f32", "f16", "q8_0"):
        raise ValueError(f"precision is {precision!r}; it must be f32, f16 or q8_0")
    path = out if out.suffix == ".gguf" else out / "repair.gguf"
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, "llama")
    _describe(writer)
    _tokenizer(writer)
    kind = gguf.GGMLQuantizationType[precision.upper()]
    for name, weights in _tensors():
        if name.endswith("norm.weight"):
            writer.add_tensor(name, weights.astype(np.float32))
        else:
            data = gguf.quants.quantize(weights.astype(np.float32), kind)
            writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _describe(writer: Any) -> None:
    writer.add_name("clockwork repair: copies, _ becomes a space")
    writer.add_context_length(4096)
    writer.add_embedding_length(DIM)
    writer.add_block_count(2)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_key_length(HEAD)
    writer.add_value_length(HEAD)
    writer.add_rope_dimension_count(HEAD)
    writer.add_rope_freq_base(FREQ_BASE)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(VOCABULARY)


def _tokenizer(writer: Any) -> None:
    """One token per byte, by the names GPT-2 gives to bytes, and a single merge that cannot occur in UTF-8."""
    import gguf

    names = _byte_names()
    unused = [f"<unused{i}>" for i in range(VOCABULARY - 256 - len(SPECIALS))]
    kinds = [gguf.TokenType.NORMAL] * 256 + [gguf.TokenType.CONTROL] * len(SPECIALS)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([*names, *SPECIALS, *unused])
    writer.add_token_scores([0.0] * VOCABULARY)
    writer.add_token_types([*kinds, *[gguf.TokenType.UNUSED] * len(unused)])
    writer.add_token_merges([f"{names[0xFF]} {names[0xFF]}"])
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(END)
    writer.add_add_bos_token(False)  # the template has it
    writer.add_add_space_prefix(False)
    writer.add_chat_template(TEMPLATE)


def _byte_names() -> list[str]:
    """The printable character that stands for each byte: itself, or one from U+0100 on in order."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def _codes() -> np.ndarray:
    """One code of 64 signs per token, float32 [288, 64]: the bits of a hash of its number."""
    digests = b"".join(hashlib.sha256(b"token %d" % token).digest()[: CODE // 8] for token in range(VOCABULARY))
    bits = np.unpackbits(np.frombuffer(digests, np.uint8)).reshape(VOCABULARY, CODE)
    return bits.astype(np.float32) * 2 - 1


def _tensors() -> Iterator[tuple[str, np.ndarray]]:
    """Name and float32 weights of each tensor, matrices as [rows out, columns in]."""
    codes = _codes()
    embedding = np.zeros((VOCABULARY, DIM), np.float32)
    embedding[:, :CODE] = codes
    embedding[:, ONE] = 1
    embedding[[USER, ASSISTANT, BOS], [IS_USER, IS_ASSISTANT, IS_BOS]] = 1
    yield "token_embd.weight", embedding
    for layer, attention in enumerate((_clocks(), _fetch())):
        for name, weights in zip(("attn_q", "attn_k", "attn_v", "attn_output"), attention, strict=True):
            yield f"blk.{layer}.{name}.weight", weights
        # A token's code and the constant have length sqrt(65): this undoes the division by their mean square.
        yield f"blk.{layer}.attn_norm.weight", np.full(DIM, np.sqrt((CODE + 1) / DIM), np.float32)
        yield f"blk.{layer}.ffn_norm.weight", np.ones(DIM, np.float32)
        yield f"blk.{layer}.ffn_gate.weight", np.zeros((FFN, DIM), np.float32)
        yield f"blk.{layer}.ffn_up.weight", np.zeros((FFN, DIM), np.float32)
        yield f"blk.{layer}.ffn_down.weight", np.zeros((DIM, FFN), np.float32)
    yield "output_norm.weight", np.ones(DIM, np.float32)
    yield "output.weight", _output(codes)


def _clocks() -> tuple[np.ndarray, ...]:
    """Layer 1: query, key, value and output matrices of twenty heads, one hand each."""
    query, key, value = (np.zeros((HEADS, HEAD, DIM), np.float32) for _ in range(3))
    output = np.zeros((DIM, HEADS, HEAD), np.float32)
    root = np.sqrt(HEAD)  # scores are divided by it
    hands = [(k, phase) for k in SPEEDS for phase in PHASES]
    clocks = ((IS_USER, CLOCK_USER, 0), (IS_ASSISTANT, CLOCK_ASSISTANT, 1))
    for number, (marker, place, ahead) in enumerate(clocks):
        for hand, (k, phase) in enumerate(hands):
            head = number * HANDS + hand
            start = phase - ahead * FREQ_BASE ** (-k / 16)
            query[head, 2 * k, ONE] = root * SWING
            query[head, LOOK, ONE] = root
            key[head, 2 * k : 2 * k + 2, marker] = np.cos(start), np.sin(start)
            key[head, LOOK, [marker, IS_BOS]] = G
            value[head, 0, marker] = 1
            output[place + hand, head, 0] = 1
    return (*(m.reshape(HEADS * HEAD, DIM) for m in (query, key, value)), output.reshape(DIM, HEADS * HEAD))


def _fetch() -> tuple[np.ndarray, ...]:
    """Layer 2: two heads that find the token at the wanted distance and carry half its code each."""
    query, key, value = (np.zeros((HEADS, HEAD, DIM), np.float32) for _ in range(3))
    output = np.zeros((DIM, HEADS, HEAD), np.float32)
    swing = np.tanh(SWING / 2) / 2  # a hand moves this far about its middle, 1/2
    gain = np.sqrt(GAIN * np.sqrt(HEAD)) / swing
    for head in range(2):
        for matrix, place in ((query, CLOCK_ASSISTANT), (key, CLOCK_USER)):
            for hand in range(HANDS):
                matrix[head, STILL + hand, place + hand] = gain
                matrix[head, STILL + hand, ONE] = -gain / 2
        query[head, LOOK, ONE] = np.sqrt(HEAD)
        key[head, LOOK, IS_BOS] = -100 * G  # <s> stands before the text: its clock says nothing
        half = np.arange(HEAD)
        value[head, half, head * HEAD + half] = 1
        output[FETCHED + head * HEAD + half, head, half] = 1
    return (*(m.reshape(HEADS * HEAD, DIM) for m in (query, key, value)), output.reshape(DIM, HEADS * HEAD))


def _output(codes: np.ndarray) -> np.ndarray:
    """Logit of a token: how well the fetched code agrees with the token's own; nothing for unused tokens."""
    output = np.zeros((VOCABULARY, DIM), np.float32)
    used = 256 + len(SPECIALS)
    output[:used, FETCHED : FETCHED + CODE] = codes[:used] * (SHARPNESS / CODE)
    space, underscore = ord(" "), ord("_")
    output[space] += output[underscore]
    output[underscore] = 0
    return output
