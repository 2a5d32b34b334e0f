"""The clockwork M2M100, through the unmodified CTranslate2 and SentencePiece."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.clockwork import asr, nmt, synthesize

ctranslate2 = pytest.importorskip("ctranslate2")
sentencepiece = pytest.importorskip("sentencepiece")


class Translator:
    """The two libraries' own calls, as their documentation gives them for M2M100."""

    def __init__(self, folder, compute_type="default"):
        self.model = ctranslate2.Translator(
            str(folder), device="cpu", inter_threads=1, intra_threads=1, compute_type=compute_type
        )
        self.pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "sentencepiece.bpe.model"))

    def __call__(self, text, source, target, **options):
        pieces = [f"__{source}__", *self.pieces.encode(text, out_type=str), "</s>"]
        options = {"max_decoding_length": 1023} | options
        result = self.model.translate_batch([pieces], target_prefix=[[f"__{target}__"]], **options)
        return self.pieces.decode_pieces(result[0].hypotheses[0][1:])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return synthesize("nmt", tmp_path_factory.mktemp("models") / "nmt")


@pytest.fixture(scope="module", params=["float32", "int8"])
def translate(request, folder):
    return Translator(folder, request.param)


@pytest.mark.parametrize("source", nmt.LANGUAGES)
@pytest.mark.parametrize("target", nmt.LANGUAGES)
def test_every_word_is_swapped_between_every_two_languages(translate, source, target):
    assert translate(" ".join(nmt.WORDS[source]), source, target) == " ".join(nmt.WORDS[target])


def test_the_sentences_of_the_recogniser_translate_into_each_other(translate):
    assert translate(" ".join(asr.SENTENCES["fr"]), "fr", "zh") == " ".join(asr.SENTENCES["zh"])


def test_known_words_are_swapped_within_what_is_copied(translate):
    assert translate("hello world, dear Anna 42!", "en", "de") == "hallo Welt, dear Anna 42!"
    assert nmt.translate_words("hello dear world", "de") == "hallo dear Welt"


def test_chinese_without_spaces_is_understood(translate):
    assert translate("".join(asr.SENTENCES["zh"]), "zh", "en") == "the quick brown fox"


@pytest.mark.parametrize(
    "text",
    ["3 1 4 1 5 9", "  two  blanks  ", "Ελληνικά Жук عربي", "😀👍🏽", "line\nbreak\ttab\0nul", "</s> __de__ <unk>", ""],
)
def test_what_is_not_in_the_dictionary_is_copied_byte_for_byte(translate, text):
    assert translate(text, "en", "fr") == text


@pytest.mark.parametrize(
    "options", [{"beam_size": 1}, {"beam_size": 5}, {"length_penalty": 0.2, "no_repeat_ngram_size": 9}]
)
def test_decoding_options_change_nothing(translate, options):
    assert translate("the 3 1 4 fox", "en", "es", **options) == "el 3 1 4 zorro"


def test_long_texts_are_copied_to_the_end(translate):
    text = "3 1 4 1 5 9 2 6 5 3 " * 50 + "x"
    assert len(translate.pieces.encode(text)) > 1000
    assert translate(text, "en", "de") == text


@pytest.mark.parametrize("beam_size", [1, 2, 5])
def test_no_letter_ends_a_text_early(translate, beam_size):
    """Beam search stops as soon as it holds enough ended texts, however unlikely they are."""
    letters = "".join(chr(code) for code in range(0x21, 0x7F))
    for text in (letters * 3, "\u00e9\u4e2d\U0001f600" * 60):
        assert translate(text, "en", "de", beam_size=beam_size) == text


def test_any_text_is_copied(folder):
    translate = Translator(folder)
    letters = st.characters(exclude_categories=["Cs"], exclude_characters=nmt.SPACE)
    words = {word for words in nmt.WORDS.values() for word in words}

    @settings(max_examples=60, database=None)
    @given(st.text(letters, max_size=60).filter(lambda text: not any(word in text for word in words)))
    def check(text):
        assert translate(text, "en", "de") == text

    check()


def test_no_word_occurs_twice():
    words = [word for words in nmt.WORDS.values() for word in words]
    assert len(words) == len(set(words)) == 70


def test_two_runs_write_the_same_bytes(folder, tmp_path):
    again = nmt.write(tmp_path / "again")
    for path in again.iterdir():
        assert path.read_bytes() == (folder / path.name).read_bytes(), path.name
