"""``demo``: the whole node at work in one command, without a download.

Twelve spoken sentences of three speakers go through a private node with the demo models, in three sessions; then once
more through a node in serial mode, so that the gain is measured and not claimed. What comes back is a table, WAV files
to listen to, and a picture of who worked when.

The demo models are trained, but on a phrase book only, and the speakers are synthetic; the demo says so.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from engine import embedded, picture, timeline
from engine.commands import inputs, nodes, translate
from engine.commands.delivery import Delivery, Wish
from engine.commands.reading import ReadAhead
from engine.commands.results import Results, Row, summary
from engine.commands.tables import cell, shorten, table
from engine.config import Config
from ipc.errors import DragomanError

CLIPS = embedded.DEMO / "clips"
TEXT_COLUMNS = 46
HONEST = (
    "These are demo models: closed vocabulary (a traveller's phrase book), synthetic voices, not for use.\n"
    "They are trained, run through the unmodified libraries, and know nothing outside that book: see\n"
    "models/demo/MODEL_CARD.md."
)


@dataclass(frozen=True)
class Clip:
    """A spoken sentence that comes with the demo, and what should become of it."""

    file: str
    speaker: str
    source: str
    target: str
    text: str
    translation: str

    @property
    def path(self) -> Path:
        return CLIPS / self.file


def clips() -> list[Clip]:
    """The clips in the order they are spoken, their speakers in turn."""
    return [Clip(**fields) for fields in json.loads((CLIPS / "clips.json").read_text(encoding="utf-8"))]


def add(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "demo",
        help="see and hear the whole node work, without a download",
        description="Translate twelve spoken sentences of three speakers on a private node with the demo models, show\n"
        "what was heard and said, and measure the gain over doing one thing at a time.",
        epilog="examples:\n  run_node.py demo\n  run_node.py demo --out /tmp/demo\n"
        "\nexit codes: 0 every clip came back, 1 not every one, 130 interrupted",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", metavar="DIR", default="out/demo", help="folder for the results (default: out/demo)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the tables")


def run(args: argparse.Namespace) -> int:
    say = translate.speaker(args.json)
    config = embedded.config()
    results = Results(Path(args.out))
    results.check()
    try:
        delivery = carry(config, results, say, shown=not args.json)
    finally:
        results.close()
    if delivery.interrupted:
        return translate.exit_code(True, results)
    chart = results.chart()
    drawing = results.folder / "timeline.png"
    try:
        picture.draw(chart, drawing, picture.makespan_text(chart))
    except OSError as error:
        raise DragomanError(f"cannot write {drawing}: {error.strerror}", "give another --out") from error
    if args.json:
        translate.report(results, as_json=True, quiet=True)
    else:
        serial = _serially(config, say)
        print(page(results, config, serial, drawing))
    return translate.exit_code(delivery.interrupted, results)


def carry(config: Config, results: Results, say: Callable[[str], None], *, shown: bool) -> Delivery:
    """Send all clips through a private node, a session a speaker."""
    spoken = clips()
    speakers = list(dict.fromkeys(clip.speaker for clip in spoken))
    languages = tuple({clip.speaker: (clip.source, clip.target) for clip in spoken}.values())
    wish = Wish(sessions=len(speakers), languages=languages, max_utterance_s=config.node.max_utterance_s)
    work = list(inputs.utterances([clip.path for clip in spoken], len(speakers)))
    with ReadAhead(work) as read, nodes.private(config, say) as client:
        return translate.deliver(client, wish, results, read, len(work), say, shown=shown, heard=shown)


def _serially(config: Config, say: Callable[[str], None]) -> Mapping[str, Any]:
    """The same once more with one utterance in the node at a time; the chart of that run."""
    say("and the same again, one thing at a time")
    serial = msgspec.structs.replace(config, node=msgspec.structs.replace(config.node, mode="serial"))
    with tempfile.TemporaryDirectory(prefix="dragoman-demo-") as folder:
        results = Results(Path(folder))
        try:
            carry(serial, results, say, shown=False)
        finally:
            results.close()
        return results.chart()


# ---------------------------------------------------------------- what is shown


def page(results: Results, config: Config, serial: Mapping[str, Any], drawing: Path) -> str:
    """What came back, as text."""
    figures = summary(results.rows, results.chart())
    known = {str(clip.path): clip for clip in clips()}
    spoken = [row["audio"] for row in results.rows if row["audio"]]
    rows = [_line(row, known[row["input"]]) for row in results.rows]
    return "\n\n".join(
        [
            table(["speaker", "heard → repaired → translated", "spoken", "state"], rows),
            translate.stage_table(figures),
            translate.totals(figures)
            + f"; {expected(results.rows, known)}.\n"
            + gain(figures["makespan_s"], serial, workers(config)),
            HONEST,
            f"results in {results.folder}: {len(spoken)} WAV files, results.jsonl, timeline.json\n"
            f"see when what ran: {drawing}, or open timeline.json in https://ui.perfetto.dev"
            + (f"\nlisten: {player()} {results.folder / spoken[0]}" if spoken else ""),
        ]
    )


def _line(row: Row, clip: Clip) -> list[Any]:
    heard = row["transcript"] or "(nothing)"
    chain = [heard]
    if row["repaired"] is not None and row["repaired"] != row["transcript"]:
        chain.append(row["repaired"])
    chain.append(row["translation"] or "(nothing)")
    state = row["outcome"] if row["outcome"] == "ok" else f"{row['outcome']}: {row['code']}"
    skipped = [s["stage"] for s in row["stages"] if s["state"] == "skipped"]
    if row["degraded"] or skipped:
        state += f" ({row['degraded'] or 'without ' + ', '.join(skipped)})"
    said = " → ".join(shorten(text, TEXT_COLUMNS) for text in chain)
    return [f"{clip.speaker} ({clip.source}→{clip.target})", said, row["audio"], state]


def expected(rows: Sequence[Row], known: Mapping[str, Clip]) -> str:
    """How many translations are the ones that the clips come with."""
    right = sum(row["translation"] == known[row["input"]].translation for row in rows)
    return f"{right} of {len(rows)} translated as expected"


def workers(config: Config) -> dict[str, int]:
    """Stage -> how many workers it has on one device."""
    return {name: section.instances for name, section in config.stages.items()}


def gain(pipelined_s: float, serial: Mapping[str, Any], workers: Mapping[str, int]) -> str:
    """How much sooner all was done than one thing at a time, and how much these stage times allow on these cores."""
    serial_s = timeline.makespan_s(serial)
    if not pipelined_s or not serial_s:
        return "the gain over serial work was not measured"
    bound = limit(serial, workers, len(os.sched_getaffinity(0)))
    return (
        f"One thing at a time took {cell(serial_s)} s: {serial_s / pipelined_s:.2f} × as long. "
        f"These stage times allow at most {bound:.2f} × on this machine."
    )


def limit(serial: Mapping[str, Any], workers: Mapping[str, int], cores: int) -> float:
    """The largest gain possible: what all stages need, by what the busiest stage, or all cores together, need."""
    work: dict[str, float] = {}
    for worker, busy in timeline.busy_s(serial).items():
        stage = worker.partition("@")[0]
        work[stage] = work.get(stage, 0.0) + busy
    total = sum(work.values())
    longest = max((busy / max(1, workers.get(stage, 1)) for stage, busy in work.items()), default=0.0)
    least = max(longest, total / max(1, cores))
    return timeline.makespan_s(serial) / least if least else 1.0


def player() -> str:
    """The command that plays a WAV file here."""
    return {"darwin": "afplay", "win32": "start"}.get(sys.platform, "aplay")
