"""SentencePiece models from a list of pieces: unigram, nothing normalised, a space before the text."""

from __future__ import annotations

from collections.abc import Iterable

SPACE = "\u2581"  # SentencePiece's sign for a blank


def model(pieces: Iterable[tuple[str, float]], byte_fallback: bool = False) -> bytes:
    """The file's bytes. ``pieces``: each with its score, the sum of which is made as large as can be.

    ``byte_fallback``: pieces like ``<0x41>`` stand for bytes, and for text that no other piece covers.
    """
    from sentencepiece import sentencepiece_model_pb2 as proto

    kind = proto.ModelProto.SentencePiece
    made = proto.ModelProto()
    for piece in ("<unk>", "<s>", "</s>"):
        made.pieces.add(piece=piece, score=0, type=kind.UNKNOWN if piece == "<unk>" else kind.CONTROL)
    for piece, score in pieces:
        is_byte = byte_fallback and piece.startswith("<0x") and piece.endswith(">")
        made.pieces.add(piece=piece, score=score, type=kind.BYTE if is_byte else kind.NORMAL)
    made.trainer_spec.model_type = proto.TrainerSpec.UNIGRAM
    made.trainer_spec.vocab_size = len(made.pieces)
    made.trainer_spec.byte_fallback = byte_fallback
    made.normalizer_spec.name = "identity"
    made.normalizer_spec.add_dummy_prefix = True
    made.normalizer_spec.remove_extra_whitespaces = False
    made.normalizer_spec.escape_whitespaces = True
    data: bytes = made.SerializeToString(deterministic=True)
    return data
