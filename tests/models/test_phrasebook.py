"""The phrase book: a parallel corpus without ambiguities, a fixed held-out part, and damage that can be mended."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from models import phrasebook
from models.phrasebook import LANGUAGES

BOOK = phrasebook.sentences()


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_sentence_is_another_one_in_every_language(language: str) -> None:
    texts = [sentence.texts[language] for sentence in BOOK]
    assert len(set(texts)) == len(texts) > 600
    assert all("{" not in text and "  " not in text and text == text.strip() for text in texts)
    assert all(text[-1] in ".?。？" for text in texts)


def test_what_is_held_out_never_changes_and_its_words_are_all_known() -> None:
    kept = [sentence for sentence in BOOK if sentence.held_out]
    assert 0.1 < len(kept) / len(BOOK) < 0.2
    assert [s.texts["en"] for s in kept] == [s.texts["en"] for s in phrasebook.sentences() if s.held_out]
    for language in LANGUAGES:
        new = words_of(kept, language) - words_of([s for s in BOOK if not s.held_out], language)
        assert not new, f"{language}: {new} occur in held-out sentences only"


def test_nothing_held_out_is_taught_in_any_language_and_each_template_holds_some_out() -> None:
    kept = [sentence for sentence in BOOK if sentence.held_out]
    taught = {text for sentence in phrasebook.taught() for text in sentence.texts.values()}
    assert len(phrasebook.taught()) + len(kept) == len(BOOK)
    assert not taught & {text for sentence in kept for text in sentence.texts.values()}
    for template in phrasebook.TEMPLATES:
        made = list(phrasebook._expand(template))
        assert len(made) == 1 or 0 < sum(s.held_out for s in made) < 0.25 * len(made), template["en"]


def test_training_takes_its_sentences_from_nowhere_else() -> None:
    """The vocabularies are of the whole book; what is taught is not."""
    folder = Path(phrasebook.__file__).parent / "train"
    for module, name in (("asr", "asr.py"), ("nmt", "nmt.py"), ("repair", "repair.py"), ("tts", "tts_data.py")):
        source = (folder / name).read_text(encoding="utf-8")
        assert source.count("phrasebook.taught()") == 1 and "held_out" not in source.replace("held-out", ""), module


def words_of(sentences: list[phrasebook.Sentence], language: str) -> set[str]:
    return {phrasebook._bare(w) for s in sentences for w in phrasebook.words(s.texts[language], language)}


def test_german_articles_bend() -> None:
    by_english = {sentence.texts["en"]: sentence.texts["de"] for sentence in BOOK}
    assert by_english["Where is the station?"] == "Wo ist der Bahnhof?"
    assert by_english["I am looking for the station."] == "Ich suche den Bahnhof."
    assert by_english["My sister is waiting in front of the station."] == "Meine Schwester wartet vor dem Bahnhof."


@pytest.mark.parametrize("language", LANGUAGES)
def test_damage_never_makes_two_sentences_one(language: str) -> None:
    chance = random.Random(3)
    whole: dict[str, str] = {}
    changed = 0
    for sentence in BOOK:
        text = sentence.texts[language]
        for _ in range(25):
            damaged = phrasebook.damage(text, language, chance)
            assert whole.setdefault(damaged, text) == text, f"{damaged!r} may have been either"
            changed += damaged != text
    assert changed > 15 * len(BOOK)


def test_every_kind_of_damage_happens() -> None:
    chance = random.Random(1)
    text = "The train to Berlin leaves at eight o'clock."
    found = {phrasebook.damage(text, "en", chance) for _ in range(500)}
    assert "the train to berlin leaves at eight o'clock" in found
    assert "The train to Berlin leaves at ate o'clock." in found
    assert "The train to Berlin leaves eight o'clock." in found
    assert any("train train" in damaged for damaged in found)
