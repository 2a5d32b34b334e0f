"""``demo``: the whole node at work in one command, without a download.

It makes a few sounds, starts a private node with the embedded models, sends the sounds through in three sessions and
shows what came back. The embedded models are clockwork: real files for the real libraries, but the recogniser says the
same sentence to any sound. What the demo shows is the machine, not the language skill, and it says so.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from engine import embedded, media
from engine.commands import inputs, nodes, translate
from engine.commands.delivery import Wish
from engine.commands.reading import ReadAhead
from engine.commands.results import Results, Row, summary
from engine.commands.tables import cell, shorten, table

SPEAKERS = (("en", "de"), ("fr", "es"), ("zh", "en"))
CLIPS_PER_SPEAKER = 3
SILENT_CLIP = 7  # one clip is silence: nothing is heard in it, and that is a result too
HONEST = (
    "These are clockwork models: the recogniser says one fixed sentence per language wherever there is sound, the\n"
    "translator knows 14 words, and the voice speaks in tones. Repair copies its text (it only turns _ into a blank).\n"
    "Real models: see the README."
)


def add(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "demo",
        help="see the whole node work, without a download",
        description="Make a few sounds, translate them in three sessions on a private node with the embedded models,\n"
        "and show what came back.",
        epilog="examples:\n  run_node.py demo\n  run_node.py demo --out /tmp/demo\n"
        "\nexit codes: 0 every clip came back, 1 not every one, 130 interrupted",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", metavar="DIR", default="out/demo", help="folder for the results (default: out/demo)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the tables")


def run(args: argparse.Namespace) -> int:
    say = translate.speaker(args.json)
    say("making the embedded models and a few sounds")
    config = embedded.config()
    results = Results(Path(args.out))
    wish = Wish(sessions=len(SPEAKERS), languages=SPEAKERS, max_utterance_s=config.node.max_utterance_s)
    results.check()
    try:
        with tempfile.TemporaryDirectory(prefix="dragoman-demo-") as folder:
            work = list(inputs.utterances(make_clips(Path(folder)), len(SPEAKERS)))
            with ReadAhead(work) as read, nodes.private(config, say) as client:
                shown = not args.json
                delivery = translate.deliver(client, wish, results, read, len(work), say, shown=shown, heard=shown)
    finally:
        results.close()
    if args.json:
        translate.report(results, as_json=True, quiet=True)
    else:
        print(page(results))
    return translate.exit_code(delivery.interrupted, results)


def make_clips(folder: Path) -> list[Path]:
    """A few short sounds as WAV files, the same every time; one of them is silence."""
    paths = []
    for number in range(len(SPEAKERS) * CLIPS_PER_SPEAKER):
        silent = number == SILENT_CLIP
        path = folder / f"{'silence' if silent else 'tune'}-{number}.wav"
        samples = np.zeros(media.RATE_HZ, np.float32) if silent else tune(number)
        media.write_wav(path, samples, media.RATE_HZ)
        paths.append(path)
    return paths


def tune(number: int) -> np.ndarray:
    """Four notes of a pentatonic scale: float32, mono, 16 kHz, about two seconds."""
    scale = 330.0 * 2 ** (np.array([0, 2, 4, 7, 9, 12]) / 12)
    notes = np.random.default_rng(number).choice(scale, 4)
    length = np.random.default_rng(number).integers(6_000, 10_000)
    t = np.arange(length) / media.RATE_HZ
    fade = np.minimum(1.0, np.minimum(t, t[::-1]) / 0.02)
    return np.concatenate([0.4 * fade * np.sin(2 * np.pi * note * t) for note in notes]).astype(np.float32)


def page(results: Results) -> str:
    """What came back, as text."""
    figures = summary(results.rows, results.chart())
    spoken = [row["audio"] for row in results.rows if row["audio"]]
    return "\n\n".join(
        [
            table(
                ["session", "#", "clip", "heard", "repaired", "translated", "spoken", "state"],
                list(map(_line, results.rows)),
            ),
            translate.stage_table(figures),
            translate.totals(figures) + ".\n" + _gain(figures),
            HONEST,
            f"results in {results.folder}: {len(spoken)} WAV files, results.jsonl, timeline.json\n"
            "see when what ran: open timeline.json in https://ui.perfetto.dev"
            + (f"\nlisten: {player()} {results.folder / spoken[0]}" if spoken else ""),
        ]
    )


def _line(row: Row) -> list[Any]:
    texts = [shorten(row[name], 24) if row[name] else row[name] for name in ("transcript", "repaired", "translation")]
    heard = "(nothing)" if row["transcript"] == "" else texts[0]
    state = row["outcome"] if row["outcome"] == "ok" else f"{row['outcome']}: {row['code']}"
    skipped = [s["stage"] for s in row["stages"] if s["state"] == "skipped"]
    if row["degraded"] or skipped:
        state += f" ({row['degraded'] or 'without ' + ', '.join(skipped)})"
    return [row["session"], row["utterance_index"], Path(row["input"]).stem, heard, *texts[1:], row["audio"], state]


def _gain(figures: dict[str, Any]) -> str:
    """All stage times by the makespan: how many stages were at work on average (not a measured speed-up)."""
    return (
        f"All stages together worked {cell(figures['work_s'])} s in that time: "
        f"stage time / makespan = {cell(figures['work_over_makespan'])}."
    )


def player() -> str:
    """The command that plays a WAV file here."""
    return {"darwin": "afplay", "win32": "start"}.get(sys.platform, "aplay")
