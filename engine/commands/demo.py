"""``demo``: the whole node at work in one command, without a download.

Twelve spoken sentences of three speakers go through a private node with the demo models, in three sessions. What comes
back is a table, WAV files to listen to, and a picture of who worked when. Then a few times more, in turns with a node
in serial mode, so that the gain is measured and not claimed.

The demo models are trained, but on a phrase book only, and the speakers are synthetic; the demo says so.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from engine import devices, embedded, picture, timeline
from engine.bar import bar
from engine.client import Client
from engine.commands import FAILED, OK, inputs, nodes, translate
from engine.commands.delivery import Delivery, Wish
from engine.commands.reading import ReadAhead
from engine.commands.results import Results, Row, all_ok, summary
from engine.commands.tables import cell, shorten, table
from engine.config import Config
from ipc.errors import DragomanError

CLIPS = embedded.DEMO / "clips"
TEXT_COLUMNS = 46
ROUNDS = 5  # of each mode: one run is less than a second, at the mercy of whatever else the machine does
NOISY = 1.5  # the best round over the worst, above which the figure is not to be trusted
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
    """The clips in the order they are spoken, their speakers in turn. Raises DragomanError."""
    path = CLIPS / "clips.json"
    try:
        return [Clip(**fields) for fields in json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError) as error:
        raise DragomanError(f"cannot read {path}: {error}", embedded.RESTORE) from error


def spoken_by(row: Row) -> Clip:
    """The clip that a result is of."""
    return next(clip for clip in clips() if str(clip.path) == row["input"])


def add(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "demo",
        help="see and hear the whole node work, without a download",
        description="Translate twelve spoken sentences of three speakers on a private node with the demo models, show\n"
        "what was heard and said, and measure the gain over doing one thing at a time.",
        epilog="examples:\n  run_node.py demo\n  run_node.py demo --out /tmp/demo\n"
        "\nexit codes: 0 every clip came back as expected, 1 not every one, 130 interrupted",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", metavar="DIR", default="out/demo", help="folder for the results (default: out/demo)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the tables")


@dataclass(frozen=True)
class Gain:
    """What working on several things at once was worth: medians over the rounds of each mode, run for run alike.

    ``bound``: the gain that these stage times allow on this machine.
    """

    rounds: int
    pipelined_s: float
    serial_s: float
    bound: float
    least: float  # gain of a single round
    most: float

    @property
    def factor(self) -> float:
        return self.serial_s / self.pipelined_s

    @property
    def is_noisy(self) -> bool:
        """Whether the rounds tell more of what else the machine did than of the node."""
        return self.most > NOISY * self.least or self.factor > self.bound


def run(args: argparse.Namespace) -> int:
    say = translate.speaker(args.json)
    config = embedded.config()
    embedded.check(config)
    results = Results(Path(args.out))
    results.check()
    shown = not args.json
    with ExitStack() as node:
        client = node.enter_context(nodes.private(config, say))
        try:
            delivery = carry(client, config, results, say, shown=shown)
        finally:
            results.close()
        if delivery.interrupted:
            return translate.exit_code(True, results)
        drawing = draw(results)
        if shown:
            print(page(results, drawing), flush=True)
        gain = measure(client, node.close, config, say, shown=shown)
    print(json_page(results, gain) if args.json else gain_text(gain))
    code = translate.exit_code(gain is None, results)
    return code or (OK if as_expected(results.rows) == len(clips()) else FAILED)


def draw(results: Results) -> Path:
    """The picture of the run, beside its results. Raises DragomanError."""
    drawing = results.folder / "timeline.png"
    speakers = {row["session"]: spoken_by(row).speaker for row in results.rows}
    try:
        picture.draw(results.chart(), drawing, picture.makespan_text(results.chart()), speakers)
    except OSError as error:
        raise DragomanError(f"cannot write {drawing}: {error.strerror}", "give another --out") from error
    return drawing


def measure(
    client: Any, close: Callable[[], None], config: Config, say: Callable[[str], None], *, shown: bool
) -> Gain | None:
    """ROUNDS rounds in each mode; None: interrupted. ``close`` ends the node that there is.

    In turns, so that whatever else the machine does hits both; but one node after the other where they use a GPU, which
    has one user at a time.
    """
    serial = msgspec.structs.replace(config, node=msgspec.structs.replace(config.node, mode="serial"))
    pipelined: list[Mapping[str, Any]] = []
    one_by_one: list[Mapping[str, Any]] = []
    apart = uses_gpus(config)
    say(f"measuring the gain over serial work: {ROUNDS} rounds, and {ROUNDS} of a second node, in serial mode")
    try:
        with ExitStack() as second, bar(range(2 * ROUNDS), "measuring the gain", unit="round", shown=shown) as rounds:
            other = None if apart else second.enter_context(nodes.private(serial, lambda line: None))
            for number in rounds:
                is_first = number < ROUNDS if apart else number % 2 == 0
                if not is_first and other is None:
                    close()
                    other = second.enter_context(nodes.private(serial, lambda line: None))
                chart = _round(client, config) if is_first else _round(other, serial)
                if chart is None:
                    return None
                (pipelined if is_first else one_by_one).append(chart)
    except KeyboardInterrupt:
        return None
    return gained(pipelined, one_by_one, workers(config), len(os.sched_getaffinity(0)))


def uses_gpus(config: Config) -> bool:
    """Whether a node of this configuration would take a GPU for itself."""
    return any(one.kind == "cuda" and not one.silent for one in devices.look(config.devices.use))


def carry(client: Any, config: Config, results: Results, say: Callable[[str], None], *, shown: bool) -> Delivery:
    """Send all clips through the node, a session a speaker."""
    spoken = clips()
    speakers = list(dict.fromkeys(clip.speaker for clip in spoken))
    languages = tuple({clip.speaker: (clip.source, clip.target) for clip in spoken}.values())
    wish = Wish(sessions=len(speakers), languages=languages, max_utterance_s=config.node.max_utterance_s)
    work = list(inputs.utterances([clip.path for clip in spoken], len(speakers)))
    with ReadAhead(work) as read:
        return translate.deliver(client, wish, results, read, len(work), say, shown=shown, heard=shown)


def _round(client: Any, config: Config) -> Mapping[str, Any] | None:
    """The chart of one more run; None when interrupted."""
    with tempfile.TemporaryDirectory(prefix="dragoman-demo-") as folder:
        results = Results(Path(folder))
        try:
            with Client(client.endpoint) as fresh:  # whose sessions have no names in use
                if carry(fresh, config, results, lambda line: None, shown=False).interrupted:
                    return None
        finally:
            results.close()
        if not all_ok(results.rows):
            raise DragomanError("a round of the measurement failed, so nothing was measured", "see the node's log")
        return results.chart()


def gained(
    pipelined: Sequence[Mapping[str, Any]], serial: Sequence[Mapping[str, Any]], workers: Mapping[str, int], cores: int
) -> Gain:
    """The gain between the charts of two modes, round by round."""
    gains = [timeline.makespan_s(b) / timeline.makespan_s(a) for a, b in zip(pipelined, serial, strict=True)]
    return Gain(
        rounds=len(serial),
        pipelined_s=float(np.median([timeline.makespan_s(chart) for chart in pipelined])),
        serial_s=float(np.median([timeline.makespan_s(chart) for chart in serial])),
        bound=float(np.median([limit(chart, workers, cores) for chart in serial])),
        least=min(gains),
        most=max(gains),
    )


# ---------------------------------------------------------------- what is shown


def page(results: Results, drawing: Path) -> str:
    """What came back, as text."""
    figures = summary(results.rows, results.chart())
    spoken = [row["audio"] for row in results.rows if row["audio"]]
    return "\n\n".join(
        [
            table(["speaker", "heard → repaired → translated", "spoken", "state"], list(map(_line, results.rows))),
            translate.stage_table(figures),
            f"{translate.totals(figures)}; {as_expected(results.rows)} of {len(results.rows)} translated as expected.",
            HONEST,
            f"results in {results.folder}: {len(spoken)} WAV files, results.jsonl, timeline.json\n"
            f"see when what ran: {drawing}, or open timeline.json in https://ui.perfetto.dev"
            + (f"\nlisten: {player()} {results.folder / spoken[0]}" if spoken else ""),
        ]
    )


def gain_text(gain: Gain | None) -> str:
    """What it was worth to work on several things at once."""
    if gain is None:
        return "\nthe gain over serial work was not measured: interrupted"
    told = (
        f"\n{gain.rounds} times more in each mode, the middle ones: {cell(gain.serial_s)} s one thing at a time, "
        f"{cell(gain.pipelined_s)} s like this: {gain.factor:.2f} × as fast. These stage times allow "
        f"at most {gain.bound:.2f} × on this machine."
    )
    if gain.is_noisy:
        told += (
            f"\nDo not trust this figure: single rounds gave {gain.least:.2f} to {gain.most:.2f} ×, "
            "so the machine was busy with other things too."
        )
    return told


def json_page(results: Results, gain: Gain | None) -> str:
    """The same for programs."""
    found = {"ok": all_ok(results.rows), "out": str(results.folder), **summary(results.rows, results.chart())}
    found |= {"as_expected": as_expected(results.rows), "results": results.rows}
    if gain is not None:
        found |= {
            "rounds": gain.rounds,
            "pipelined_s": gain.pipelined_s,
            "serial_s": gain.serial_s,
            "speedup_over_serial": gain.factor,
            "speedup_bound": gain.bound,
            "speedup_noisy": gain.is_noisy,
        }
    return json.dumps(found)


def _line(row: Row) -> list[Any]:
    clip = spoken_by(row)
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


def as_expected(rows: Sequence[Row]) -> int:
    """How many translations are the ones that the clips come with."""
    return sum(row["translation"] == spoken_by(row).translation for row in rows)


def workers(config: Config) -> dict[str, int]:
    """Stage -> how many workers it has at most on one device."""
    return {name: max(section.instances, section.max_instances) for name, section in config.stages.items()}


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
