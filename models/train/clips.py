"""Records the clips of the demo: three speakers, four sentences each, as FLAC, and ``clips.json`` beside them.

The voices and most of the sentences are ones that the recogniser was not trained on. ``clips.json`` lists file,
speaker, languages, and what the node should make of it: ``text`` (heard and repaired) and ``translation``.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from models import phrasebook, speech
from models.espeak import Voice
from models.train import program

SPEAKERS = (
    ("anna", "en", "es", Voice("en-us", "f4", 160, 55, 55)),
    ("bruno", "de", "en", Voice("de", "m7", 155, 40, 50)),
    ("chen", "zh", "en", Voice("cmn", "Annie", 150, 50, 50)),
)
CLIPS_EACH = 4
NOISE_DB = 25.0


def record(out: Path, seed: int = 1, quick: bool = False) -> Path:
    """Write the clips and their list into the folder ``out``; returns it. It is always quick."""
    chance = np.random.default_rng(seed)
    held_out = [sentence for sentence in phrasebook.sentences() if sentence.held_out]
    greetings = [sentence for sentence in phrasebook.sentences() if sentence.texts["en"] == "Good morning."]
    listed = []
    out.mkdir(parents=True, exist_ok=True)
    chosen = chance.permutation(len(held_out))
    for number in range(CLIPS_EACH * len(SPEAKERS)):
        turn, at = divmod(number, len(SPEAKERS))
        name, source, target, voice = SPEAKERS[at]
        sentence = greetings[0] if turn == 0 else held_out[chosen[number]]
        file = f"{number:02d}-{name}.flac"
        write_flac(out / file, spoken(sentence.texts[source], voice, chance))
        listed.append({
            "file": file, "speaker": name, "source": source, "target": target,
            "text": sentence.texts[source], "translation": sentence.texts[target],
        })  # fmt: skip
    text = json.dumps(listed, ensure_ascii=False, indent=1)
    (out / "clips.json").write_text(text + "\n", encoding="utf-8")
    return out


def spoken(text: str, voice: Voice, chance: np.random.Generator) -> np.ndarray:
    """The sentence in a quiet room, int16 at 16 kHz."""
    voiced = speech.speak(text, voice)
    rest = np.zeros(speech.RATE_HZ // 8, np.float32)
    sound = speech.echo(np.concatenate([rest, voiced, rest]), 0.15, chance)
    sound = sound + speech.noise(len(sound), chance) * speech.level(sound) * 10 ** (-NOISE_DB / 20)
    return np.asarray(0.7 * 32767 * sound / np.abs(sound).max(), np.int16)


def write_flac(path: Path, samples: np.ndarray) -> None:
    """Mono int16 at 16 kHz."""
    import av

    with av.open(str(path), "w") as file:
        stream = file.add_stream("flac", rate=speech.RATE_HZ, layout="mono", format="s16")
        frame = av.AudioFrame.from_ndarray(samples[None, :], format="s16", layout="mono")
        frame.sample_rate = speech.RATE_HZ
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            file.mux(packet)


if __name__ == "__main__":
    program.run(record, __doc__, "clips")
