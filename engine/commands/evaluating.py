"""``models evaluate``: what the demo models can do, on sentences and voices that none of them was trained on.

The test data is made on the spot: held-out combinations of the phrase book, spoken by espeak-ng in held-out voices,
through rooms and lines. The models are run by a node of the command's own, each in the process that it always has, so
what is scored is what a user gets.
"""

from __future__ import annotations

import importlib.util
import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.report import Goal, Report
from engine import media
from engine.bar import bar
from engine.commands import inputs, nodes
from engine.config import Config, StageSection
from ipc.errors import DragomanError
from models import espeak, phrasebook, scores, speech

WER_AIM = Goal(at_most=0.05, fatal=True)
LANGUAGE_AIM = Goal(at_least=0.95, fatal=True)
SILENCE_AIM = Goal(at_most=0.0, fatal=True)
RESTORED_AIM = Goal(at_least=0.90, fatal=True)
UNCHANGED_AIM = Goal(at_least=0.98, fatal=True)
EXACT_AIM = Goal(at_least=0.95, fatal=True)
VOICE_AIM = Goal(at_most=0.20, fatal=True)
STRETCH = 1.4
STRETCH_AIM = Goal(at_least=0.9 * STRETCH, at_most=1.1 * STRETCH, fatal=True)
PITCH_AIM = Goal(at_least=0.95, at_most=1.05, fatal=True)
WORKS = Goal(at_least=1, at_most=1, fatal=True)
PIPELINES: dict[str, tuple[str, ...]] = {
    "hear": ("asr",),
    "mend": ("repair",),
    "translate": ("nmt",),
    "speak": ("tts",),
    "slowly": ("slow",),
}
FEW = 50  # utterances a score, below which a verdict says little


@dataclass(frozen=True)
class Said:
    """One thing put in (samples, or a text), what should come out, and the voice that says it."""

    put: Any
    wanted: str
    voice: str = ""


class Evaluation:
    """``client`` of a node with PIPELINES. ``count``: utterances for each score; ``seed`` draws them."""

    def __init__(self, client: Any, count: int, seed: int, say: Callable[[str], None]) -> None:
        self._client = client
        self._say = say
        self._count = count
        self._seed = seed
        self._chance = np.random.default_rng(seed)
        self._failed = False
        book = phrasebook.sentences()
        self._new = [sentence for sentence in book if sentence.held_out]
        self._known = [sentence for sentence in book if not sentence.held_out]
        self.report = Report("models")

    def run(self) -> Report:
        """Every model in turn; what fails has no score, and the others stand. Each has chance of its own."""
        for number, (name, score) in enumerate(
            (("asr", self.asr), ("repair", self.repair), ("nmt", self.nmt), ("tts", self.tts))
        ):
            self._chance = np.random.default_rng((self._seed, number))
            self._failed = False
            with self._part(name):
                score()
            self.report.add(f"{name}_works", not self._failed, "", WORKS)
        return self.report

    @contextmanager
    def _part(self, name: str) -> Iterator[None]:
        """What cannot be scored in here is said, and the rest goes on."""
        try:
            yield
        except DragomanError as error:
            self._failed = True
            self._say(f"{name} cannot be scored: {error}")

    # ------------------------------------------------------------ the models

    def asr(self) -> None:
        voices: dict[str, list[tuple[int, int]]] = {}
        for language in phrasebook.LANGUAGES:
            for name, sentences, aim in (("new", self._new, WER_AIM), ("known", self._known, None)):
                said = [self._spoken(sentence, language) for sentence in self._some(sentences)]
                heard = self.through("hear", said, f"asr {language}, {name} sentences", source=language)
                wer = scores.error_rate(_pairs(said, heard, "transcript"), language)
                self.report.add(f"asr_wer_{language}_{name}_sentences", wer, "ratio", aim)
                for one, outcome in zip(said, heard, strict=True):
                    errors = scores.word_errors(one.wanted, outcome.transcript or "", language)
                    voices.setdefault(one.voice, []).append(errors)
            said = [self._spoken(sentence, language) for sentence in self._some(self._new)]
            told = self.through("hear", said, f"asr {language}, which language", source="auto")
            found = scores.share(outcome.language == language for outcome in told)
            self.report.add(f"asr_language_{language}", found, "ratio", LANGUAGE_AIM)
        for voice, tally in sorted(voices.items()):
            rate = sum(wrong for wrong, _ in tally) / sum(words for _, words in tally)
            self.report.add(f"asr_wer_voice_{voice}", rate, "ratio")
        heard_words = 0
        for source in (*phrasebook.LANGUAGES, "auto"):
            said = [Said(self._silence(), "") for _ in range(max(1, self._count // 4))]
            heard = self.through("hear", said, f"asr {source}, noise and silence", source=source)
            heard_words += sum(len(scores.spoken_words(outcome.transcript or "", source)) for outcome in heard)
        self.report.add("asr_words_in_silence", heard_words, "words", SILENCE_AIM)

    def repair(self) -> None:
        restored: list[bool] = []
        unchanged: list[bool] = []
        for language in phrasebook.LANGUAGES:
            chance = random.Random(int(self._chance.integers(2**31)))
            texts = [sentence.texts[language] for sentence in self._some(self._new, 2 * self._count)]
            said = [Said(phrasebook.damage(text, language, chance), text) for text in texts]
            said = [one for one in said if one.put != one.wanted]
            mended = self.through("mend", said, f"repair {language}, damaged", source=language)
            hits = [outcome.repaired == one.wanted for one, outcome in zip(said, mended, strict=True)]
            self.report.add(f"repair_restored_{language}", scores.share(hits), "ratio", RESTORED_AIM)
            restored += hits
            said = [Said(text, text) for text in texts]
            mended = self.through("mend", said, f"repair {language}, clean", source=language)
            unchanged += [outcome.repaired == one.wanted for one, outcome in zip(said, mended, strict=True)]
        self.report.add("repair_restored", scores.share(restored), "ratio", RESTORED_AIM)
        self.report.add("repair_unchanged", scores.share(unchanged), "ratio", UNCHANGED_AIM)

    def nmt(self) -> None:
        for source, target in itertools.permutations(phrasebook.LANGUAGES, 2):
            said = [Said(sentence.texts[source], sentence.texts[target]) for sentence in self._new]
            done = self.through("translate", said, f"nmt {source} to {target}", source=source, target=target)
            exact = scores.share(outcome.translation == one.wanted for one, outcome in zip(said, done, strict=True))
            self.report.add(f"nmt_exact_{source}_{target}", exact, "ratio", EXACT_AIM)

    def tts(self) -> None:
        for language in phrasebook.LANGUAGES:
            with self._part(f"tts {language}"):
                self._voice(language)

    def _voice(self, language: str) -> None:
        texts = [sentence.texts[language] for sentence in self._some(self._new)]
        said = [Said(text, text) for text in texts]
        normal = self.through("speak", said, f"tts {language}", source=language)
        slow = self.through("slowly", said, f"tts {language}, slowly", source=language)
        if any(o.audio is None or not len(o.audio) for o in (*normal, *slow)):
            raise DragomanError(f"tts {language}: a voice made no sound", "see the node's log")
        again = [Said(speech.resample(_float(o.audio), o.sample_rate), t) for o, t in zip(normal, texts, strict=True)]
        heard = self.through("hear", again, f"tts {language}, heard by asr", source=language)
        wer = scores.error_rate(_pairs(again, heard, "transcript"), language)
        self.report.add(f"tts_wer_{language}", wer, "ratio", VOICE_AIM)
        ratio = np.median([len(b.audio) / len(a.audio) for a, b in zip(normal, slow, strict=True)])
        self.report.add(f"tts_stretch_{language}", float(ratio), "ratio", STRETCH_AIM)
        pitches = [
            scores.pitch(b.audio, b.sample_rate) / scores.pitch(a.audio, a.sample_rate)
            for a, b in zip(normal, slow, strict=True)
        ]
        self.report.add(f"tts_pitch_{language}", _median(pitches), "ratio", PITCH_AIM)

    # ------------------------------------------------------------ test data

    def _some(self, sentences: Sequence[phrasebook.Sentence], count: int = 0) -> list[phrasebook.Sentence]:
        """Drawn anew whenever all have had their turn."""
        count = count or self._count
        rounds = -(-count // len(sentences))
        chosen = np.concatenate([self._chance.permutation(len(sentences)) for _ in range(rounds)])[:count]
        return [sentences[at] for at in chosen]

    def _spoken(self, sentence: phrasebook.Sentence, language: str) -> Said:
        text = sentence.texts[language]
        voice = speech.random_voice(language, speech.HELD_OUT, self._chance)
        return Said(speech.disturb(speech.speak(text, voice), self._chance), text, voice.variant)

    def _silence(self) -> np.ndarray:
        """Noise; one in five is digital silence."""
        count = int(self._chance.uniform(0.5, 4.0) * speech.RATE_HZ)
        if self._chance.random() < 0.2:
            return np.zeros(count, np.float32)
        loudness = 10 ** (-self._chance.uniform(10, 60) / 20)
        return np.asarray(speech.noise(count, self._chance) * loudness, np.float32).clip(-1, 1)

    # ------------------------------------------------------------ the node

    def through(self, pipeline: str, said: Sequence[Said], what: str, **languages: str) -> list[Any]:
        """The outcomes of everything, in order. Raises DragomanError when one is not ok, or its stage was left out."""
        with self._client.session(pipeline=pipeline, **languages) as session:
            outcomes = list(self._outcomes(session, said, what))
        for outcome in outcomes:
            if not outcome.ok:
                raise DragomanError(f"{what}: {outcome.outcome} {outcome.code} {outcome.error}", "see the node's log")
            if skipped := next((record for record in outcome.stages if record["state"] == "skipped"), None):
                raise DragomanError(f"{what}: {skipped['stage']} is missing: {skipped['reason']}", "see the node's log")
        return outcomes

    def _outcomes(self, session: Any, said: Sequence[Said], what: str) -> Iterator[Any]:
        for one in said:
            session.submit(one.put)
        yield from bar(session.outcomes(timeout_s=120.0), desc=what, total=len(said))


def evaluate(folder: Path, count: int, seed: int, say: Callable[[str], None]) -> Report:
    """Score the models in ``folder``. Raises DragomanError."""
    try:
        speech.speak("ready", espeak.Voice("en-us"))
    except ImportError as error:
        raise DragomanError(f"cannot make test speech: {error}", "pip install espeakng-loader") from error
    if count < FEW:
        say(f"with {count} utterances a score, one that fails moves it by {1 / count:.0%}: the verdicts say little")
    chosen = config(folder)
    for name, section in chosen.stages.items():
        if reason := _unusable(section.kind or name, section):
            say(f"{name}: {reason}")
    with nodes.private(chosen, say) as client:
        return Evaluation(client, count, seed, say).run()


def _unusable(kind: str, section: StageSection) -> str:
    """Why a model cannot be run here, as far as its files and the installed libraries tell; "" otherwise."""
    import stages
    from stages.base import StageError

    stage = stages.find(kind)
    if any(importlib.util.find_spec(module) is None for module in stage.declaration.requires):
        return f"its library is not installed; {stage.declaration.install_hint}"
    try:
        stage.describe(section.model, section.options)
    except StageError as error:
        return error.text.partition("; make ")[0]
    return ""


def recordings(folder: Path, heard: Path, source: str, say: Callable[[str], None]) -> Report:
    """What the recogniser in ``folder`` makes of the recordings in ``heard``. Raises DragomanError."""
    files = inputs.expand([str(heard)], takes_text=False)
    sounds: list[Said] = []
    for file in files:
        try:
            sounds.append(Said(media.read(file, 30.0).samples, "", file.name))
        except DragomanError as error:
            say(f"{file.name} is left out: {error.text}")
    with nodes.private(config(folder), say) as client:
        evaluation = Evaluation(client, len(sounds), 1, say)
        texts = [o.transcript or "" for o in evaluation.through("hear", sounds, "recordings", source=source)]
    for one, text in zip(sounds, texts, strict=True):
        say(f"{one.voice}: {text or '(nothing)'}")
    report = evaluation.report
    report.add("recordings", len(texts), "")
    report.add("recordings_heard_as_nothing", texts.count(""), "")
    for text, times in Counter(text for text in texts if text).most_common():
        report.add(f"recordings_heard_as: {text}", times, "")
    return report


def config(folder: Path) -> Config:
    """A node with each demo model as a pipeline of its own. Raises DragomanError when one is missing."""
    paths = {"asr": folder / "asr", "repair": folder / "repair.gguf", "nmt": folder / "nmt", "tts": folder / "tts"}
    missing = [str(path) for path in paths.values() if not path.exists()]
    if missing:
        hint = "models/demo has them in a checkout" if folder.is_dir() else "give the folder of the demo models"
        raise DragomanError(f"there is no {missing[0]}", f"{hint}; run_node.py models make-demo makes them")
    stages = {name: StageSection(model=str(path), required=False) for name, path in paths.items()}
    stages["slow"] = StageSection(
        kind="tts", model=str(paths["tts"]), options={"length_scale": STRETCH}, required=False
    )
    return Config(stages=stages, pipelines=PIPELINES)


def _pairs(said: Iterable[Said], outcomes: Iterable[Any], text: str) -> list[tuple[str, str]]:
    return [(one.wanted, getattr(outcome, text) or "") for one, outcome in zip(said, outcomes, strict=True)]


def _median(values: Sequence[float]) -> float:
    """NaN when a tenth of the values, or more, could not be measured."""
    known = [value for value in values if value == value]
    return float(np.median(known)) if len(known) > 0.9 * len(values) else float("nan")


def _float(samples: np.ndarray) -> np.ndarray:
    return samples.astype(np.float32) / 32768 if samples.dtype == np.int16 else samples
