"""Several utterances in one run of a Whisper model: each of one window, each in its own language.

What faster-whisper does with an utterance of one window, done for many at once: one encoder pass and one decoding, with
the same prompt and the same limits, so that an utterance gives the same text alone and in company. (The library's own
batches are of one language, and without time stamps.)

Time stamps say whether the window was enough: where the model would go on in a next one, the utterance has to be done
by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

WINDOW_S = 30
NO_SPEECH, LOG_PROB = 0.6, -1.0  # the library's: probably silence, unless the text is this sure
FIRST_STAMP = 50  # latest first time stamp, in steps of 0.02 s: the library's 1 s


@dataclass(frozen=True)
class Heard:
    """What was said in one window. ``sureness``: mean log-probability of a token; None when nothing was said."""

    text: str
    language: str
    sureness: float | None


class Windows:
    """A loaded ``faster_whisper.WhisperModel`` for several windows at once.

    ``beam_size``, ``temperature``, ``initial_prompt`` and ``hotwords`` as ``WhisperModel.transcribe`` has them.
    """

    def __init__(
        self, model: Any, *, beam_size: int, temperature: float, initial_prompt: str | None, hotwords: str | None
    ) -> None:
        self._model = model
        self._temperature, self._beam_size = temperature, beam_size
        self._initial_prompt, self._hotwords = initial_prompt, hotwords
        self._tokenizers: dict[str, Any] = {}

    def transcribe(self, audios: Sequence[np.ndarray], languages: Sequence[str | None]) -> list[Heard | None]:
        """What was said in each; None where one window was not enough.

        ``audios``: float32 of shape (samples,) at 16 kHz, up to ``WINDOW_S`` and not empty. ``languages``: codes that
        the model knows; None: to be found out. Raises what the library raises.
        """
        from faster_whisper.audio import pad_or_trim

        features = [self._model.feature_extractor(audio)[..., :-1] for audio in audios]
        frames = [one.shape[-1] for one in features]
        encoded = self._model.encode(np.stack([pad_or_trim(one) for one in features]))
        known = self._find_languages(encoded, languages)
        tokenizers = [self._tokenizer(language) for language in known]
        results = self._model.model.generate(
            encoded,
            [self._prompt(tokenizer) for tokenizer in tokenizers],
            max_length=self._model.max_length,
            return_scores=True,
            return_no_speech_prob=True,
            suppress_tokens=self._suppressed(tokenizers[0]),
            max_initial_timestamp_index=FIRST_STAMP,
            **self._search(),
        )
        return [
            self._heard(result, language, tokenizer, count)
            for result, language, tokenizer, count in zip(results, known, tokenizers, frames, strict=True)
        ]

    def _find_languages(self, encoded: Any, languages: Sequence[str | None]) -> list[str]:
        if None not in languages:
            return [language or "" for language in languages]
        if not self._model.model.is_multilingual:
            return [language or "en" for language in languages]
        found = [likeliest[0][0].strip("<|>") for likeliest in self._model.model.detect_language(encoded)]
        return [language or guess for language, guess in zip(languages, found, strict=True)]

    def _tokenizer(self, language: str) -> Any:
        from faster_whisper.tokenizer import Tokenizer

        if language not in self._tokenizers:
            model = self._model
            self._tokenizers[language] = Tokenizer(
                model.hf_tokenizer, model.model.is_multilingual, task="transcribe", language=language
            )
        return self._tokenizers[language]

    def _prompt(self, tokenizer: Any) -> list[int]:
        before = tokenizer.encode(" " + self._initial_prompt.strip()) if self._initial_prompt else []
        prompt: list[int] = self._model.get_prompt(tokenizer, before, hotwords=self._hotwords)
        return prompt

    @staticmethod
    def _suppressed(tokenizer: Any) -> list[int]:
        """Tokens that are no speech."""
        special = (
            tokenizer.transcribe, tokenizer.translate, tokenizer.sot, tokenizer.sot_prev, tokenizer.sot_lm,
            tokenizer.no_speech,
        )  # fmt: skip
        return sorted({*tokenizer.non_speech_tokens, *special})

    def _search(self) -> dict[str, Any]:
        if self._temperature > 0:
            return {"num_hypotheses": 5, "beam_size": 1, "sampling_topk": 0, "sampling_temperature": self._temperature}
        return {"beam_size": self._beam_size}

    def _heard(self, result: Any, language: str, tokenizer: Any, frames: int) -> Heard | None:
        tokens: list[int] = result.sequences_ids[0]
        sureness = result.scores[0] * len(tokens) / (len(tokens) + 1)
        if result.no_speech_prob > NO_SPEECH and sureness <= LOG_PROB:
            return Heard("", language, None)
        kept = said(tokens, tokenizer.timestamp_begin, frames // self._model.input_stride)
        if kept is None:
            return None
        text = tokenizer.decode(kept).strip()
        return Heard(text, language, sureness if text else None)


def said(tokens: Sequence[int], first_stamp: int, steps: int) -> Sequence[int] | None:
    """The tokens that hold for a window; None when the model wants another one from its last sentence's end on.

    ``first_stamp``: the token of time 0, those of later steps follow it; ``steps``: of the audio in this window. By the
    library's rule (Whisper's own): two stamps in a row stand between sentences, what comes after the last two is not
    finished, and one stamp at the very end says that there is nothing after it.
    """
    stamps = [token >= first_stamp for token in tokens]
    between = [n for n in range(1, len(tokens)) if stamps[n - 1] and stamps[n]]
    if not between or stamps[-2:] == [False, True]:
        return tokens
    return None if tokens[between[-1] - 1] - first_stamp < steps else tokens[: between[-1]]
