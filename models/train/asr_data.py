"""What the recogniser learns from: phrase-book sentences in many voices, as log-mel features and token ids.

Features are faster-whisper's own (its extractor makes them), since it computes them again when the model runs. Tokens
are pieces of text: a word with the space before it, a mark, a Chinese character.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from models import espeak, phrasebook, speech
from models.clockwork.whisper_files import MELS, Vocabulary

FRAME_S = 0.01  # of a feature frame; the encoder has a position for two of them
PAUSE_S = (0.05, 0.35)  # after each sentence
RESIZED = 0.6  # share of voices of another size than espeak's: the variants alone are too few to tell all others from
_PIECES = re.compile(r" ?[¿¡]| ?[\w']+|[^\w\s]")


class Pieces(Vocabulary):
    """Whisper's vocabulary with these pieces, which bring their own spaces."""

    def spell(self, word: str) -> str:
        from models.clockwork.whisper_files import byte_letters

        letters = byte_letters()
        return "".join(letters[byte] for byte in word.encode())


def split(text: str, language: str) -> list[str]:
    """The pieces of a sentence as Whisper writes it: with a space in front, where the language has spaces."""
    return list(text) if language == "zh" else _PIECES.findall(f" {text}")


def vocabulary() -> Pieces:
    """Every piece of the phrase book."""
    found: dict[str, None] = {}
    for sentence in phrasebook.sentences():
        for language, text in sentence.texts.items():
            found.update(dict.fromkeys(split(text, language)))
    return Pieces(list(found), phrasebook.LANGUAGES)


@dataclass(frozen=True)
class Clip:
    """Features float16 of shape (80, frames), what is said as token ids, the phonemes, the language ("": nothing)."""

    features: np.ndarray
    tokens: list[int]
    phonemes: list[int]
    language: str


class Phonemes:
    """IPA symbols of espeak-ng as numbers from 1; 0 is CTC's blank."""

    def __init__(self) -> None:
        self.ids: dict[str, int] = {}

    def of(self, text: str, voice: espeak.Voice) -> list[int]:
        """The phonemes of a text, stress marks and spaces left out."""
        heard = espeak.phonemes(text, voice)
        symbols = [symbol for symbol in heard if symbol.isalpha() or symbol in "ɚɑː˥˩˧˨˦0123456789"]
        return [self.ids.setdefault(symbol, len(self.ids) + 1) for symbol in symbols]


class Studio:
    """Records clips."""

    def __init__(self, words: Pieces, seed: int) -> None:
        from faster_whisper.feature_extractor import FeatureExtractor

        self.words = words
        self.phonemes = Phonemes()
        self.chance = np.random.default_rng(seed)
        self._extract = FeatureExtractor()

    def record(self, sentences: Sequence[phrasebook.Sentence], voices: int, variants: tuple[str, ...]) -> list[Clip]:
        """Each sentence in each language in ``voices`` voices, disturbed; some clips hold two sentences."""
        clips = []
        work = [(s, language) for s in sentences for language in phrasebook.LANGUAGES for _ in range(voices)]
        for sentence, language in tqdm(work, desc="recording", unit="clip"):
            texts = [sentence.texts[language]]
            if self.chance.random() < 0.1:
                texts.append(sentences[int(self.chance.integers(len(sentences)))].texts[language])
            clips.append(self.clip(texts, speech.random_voice(language, variants, self.chance, RESIZED), language))
        return clips

    def clip(self, texts: Sequence[str], voice: espeak.Voice, language: str) -> Clip:
        """The sentences spoken one after another."""
        parts: list[np.ndarray] = []
        for text in texts:
            parts += [
                speech.speak(text, voice),
                np.zeros(int(self.chance.uniform(*PAUSE_S) * speech.RATE_HZ), np.float32),
            ]
        lead = np.zeros(int(self.chance.uniform(0, 0.15) * speech.RATE_HZ), np.float32)
        sound = speech.disturb(np.concatenate([lead, *parts]), self.chance)
        tokens = [self.words.word(piece) for text in texts for piece in split(text, language)]
        phonemes = [number for text in texts for number in self.phonemes.of(text, voice)]
        return Clip(self.features(sound), tokens, phonemes, language)

    def silence(self) -> Clip:
        """Noise, or nothing at all."""
        count = int(self.chance.uniform(0.3, 5.0) * speech.RATE_HZ)
        kind = self.chance.integers(4)
        if kind == 0:
            sound = np.zeros(count, np.float32)
        else:
            sound = speech.noise(count, self.chance) * np.float32(10 ** (-self.chance.uniform(5, 70) / 20))
            if kind == 3:  # a hum
                hertz = self.chance.uniform(50, 1000)
                sound += np.float32(0.2) * np.sin(2 * np.pi * hertz * np.arange(count) / speech.RATE_HZ).astype(
                    np.float32
                )
        return Clip(self.features(sound), [], [], "")

    def features(self, sound: np.ndarray) -> np.ndarray:
        """Log-mel features, float16 of shape (80, frames)."""
        made = self._extract(np.asarray(sound, np.float32))
        assert made.shape[0] == MELS
        return made.astype(np.float16)
