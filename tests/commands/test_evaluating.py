"""The scorer of the demo models: right models pass, and each kind of wrong one fails, whatever is wrong with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

pytest.importorskip("espeakng_loader")
pytest.importorskip("soxr")

from engine.commands import evaluating
from engine.commands.evaluating import Evaluation
from models import phrasebook

COUNT = 12
BOOK = {text: sentence for sentence in phrasebook.sentences() for text in sentence.texts.values()}


@dataclass
class Answer:
    ok: bool = True
    outcome: str = "ok"
    code: str = ""
    error: str = ""
    transcript: str | None = None
    repaired: str | None = None
    translation: str | None = None
    language: str = ""
    audio: Any = None
    sample_rate: int = 16000
    stages: list = field(default_factory=list)


class Perfect:
    """A client of models that know what is wanted: they are told. ``spoil`` changes an answer before it is given."""

    def __init__(self, spoil: Callable[[str, Answer], None] = lambda pipeline, answer: None) -> None:
        self.spoil = spoil
        self.wanted: list[str] = []
        self.seen: list[str] = []

    @contextmanager
    def session(self, pipeline: str, source: str = "", target: str = "") -> Iterator[Any]:
        yield _Session(self, pipeline, source, target)


class _Session:
    def __init__(self, client: Perfect, pipeline: str, source: str, target: str) -> None:
        self.client, self.pipeline, self.source, self.target = client, pipeline, source, target
        self.put: list[Any] = []

    def submit(self, put: Any) -> None:
        self.put.append(put)

    def outcomes(self, timeout_s: float) -> Iterator[Answer]:
        for _, wanted in zip(self.put, self.client.wanted, strict=True):
            self.client.seen.append(wanted)
            answer = Answer()
            if self.pipeline == "hear":
                answer.transcript, answer.language = wanted, self._spoken(wanted)
            elif self.pipeline == "mend":
                answer.repaired = wanted
            elif self.pipeline == "translate":
                answer.translation = wanted
            else:
                seconds = 1.4 if self.pipeline == "slowly" else 1.0
                answer.audio = (9000 * np.sin(2 * np.pi * 200 * np.arange(int(16000 * seconds)) / 16000)).astype(
                    np.int16
                )
            self.client.spoil(self.pipeline, answer)
            yield answer

    def _spoken(self, wanted: str) -> str:
        if self.source != "auto" or wanted not in BOOK:
            return self.source
        return next(language for language, text in BOOK[wanted].texts.items() if text == wanted)


def score(client: Perfect) -> Any:
    evaluation = Evaluation(client, COUNT, 3, lambda line: None)
    through = evaluation.through

    def telling(pipeline: str, said: Any, what: str, **languages: str) -> list[Any]:
        client.wanted = [one.wanted for one in said]
        return through(pipeline, said, what, **languages)

    evaluation.through = telling  # type: ignore[method-assign]
    return evaluation.run()


def test_models_that_do_what_is_wanted_reach_every_aim() -> None:
    client = Perfect()
    report = score(client)
    assert report.exit_code == 0, report.table()
    assert all(result.holds for result in report.results if result.goal is not None)


def test_what_decides_was_held_out() -> None:
    """Only the scores without an aim use sentences that models were taught."""
    evaluation = Evaluation(Perfect(), COUNT, 3, lambda line: None)
    assert evaluation._new and all(sentence.held_out for sentence in evaluation._new)
    assert not any(sentence.held_out for sentence in evaluation._known)
    report = score(Perfect())
    judged = {result.metric for result in report.results if result.goal is not None and result.goal.fatal}
    assert not any("known" in metric for metric in judged)
    parts = ("asr_wer_en_new", "asr_language_zh", "asr_words_in_silence", "repair_restored_de", "repair_unchanged",
             "nmt_exact_de_es", "tts_wer_es", "tts_stretch_en", "tts_pitch_zh")  # fmt: skip
    assert all(any(metric.startswith(part) for metric in judged) for part in parts)


def _set(pipeline: str, **fields: Any) -> Callable[[str, Answer], None]:
    def spoil(used: str, answer: Answer) -> None:
        if used == pipeline:
            for name, value in fields.items():
                setattr(answer, name, value)

    return spoil


SILENT = np.zeros(16000, np.int16)


@pytest.mark.parametrize(
    ("spoil", "metric"),
    [
        (_set("hear", transcript=""), "asr_wer_en_new_sentences"),
        (_set("hear", transcript=None), "asr_wer_zh_new_sentences"),
        (_set("hear", transcript="Good morning."), "asr_words_in_silence"),
        (_set("hear", language="fr"), "asr_language_de"),
        (_set("mend", repaired=None), "repair_restored"),
        (_set("mend", repaired="Good morning."), "repair_unchanged"),
        (_set("translate", translation=None), "nmt_exact_en_de"),
        (_set("slowly", audio=SILENT), "tts_pitch_en"),
        (_set("slowly", audio=SILENT[:8000]), "tts_stretch_en"),
        (_set("speak", audio=None), "tts_works"),
        (_set("speak", audio=SILENT[:0]), "tts_works"),
        (_set("speak", ok=False, outcome="error", code="failed"), "tts_works"),
        (_set("mend", stages=[{"stage": "repair", "state": "skipped", "reason": "absent"}]), "repair_works"),
    ],
)
def test_each_kind_of_wrong_answer_fails(spoil: Callable[[str, Answer], None], metric: str) -> None:
    report = score(Perfect(spoil))
    assert report.exit_code == 1
    assert not next(result for result in report.results if result.metric == metric).holds


def test_a_folder_without_models_is_told_as_such(tmp_path: Any) -> None:
    with pytest.raises(evaluating.DragomanError, match=r"there is no .*asr"):
        evaluating.config(tmp_path)
