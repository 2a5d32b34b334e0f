"""bench card: what models of real size take on a GPU, through a node, beside what the node asks for.

Each model is written first (``models synthesize KIND --shape NAME``) and lives twice, in a node of its own: loaded, run
on the longest input, unloaded by an operator's order. The first life asks for what the model's files say, the second
for what the first one measured. A sampler in this process reads the driver meanwhile; it must be the only other user of
the card, since everything beyond what was in use before the node is put down to the model.

``_waiting`` and ``_waiting_users`` are promises, not speeds: once a model has left, and its worker's next process waits
without a lease, nothing of either is on the card, and the driver lists none of the node's processes there.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import command
from bench.model_run import longest
from bench.models import CLOSE, DONE, MB, WRONG, add_arguments, written
from bench.report import ZERO, Report
from engine import ctl, devices
from engine.config import Config, DeadlinesSection, DeviceSection, NodeSection, StageSection
from engine.node import Node
from ipc.errors import DragomanError
from models import shapes

SAMPLE_EVERY_S = 0.002
SETTLED = 25  # samples for what is in use while nothing happens: the middle one counts
PATIENCE_S = 600.0  # for a load, and for a run
LEAVES_S = 60.0
LOOK_S = 0.02
STAGE = "stage"


class Card:
    """One GPU's memory, as its driver tells it, and the most of it that was in use while somebody watched."""

    def __init__(self, device: str) -> None:
        """Raises DragomanError when there is no such GPU, or its driver does not tell how much is in use."""
        found = {one.name: one for one in devices.discover() if one.kind == "cuda"}
        if device not in found:
            names = ", ".join(found) or "no NVIDIA driver found"
            raise DragomanError(f"there is no GPU {device} here ({names})", "see: run_node.py doctor")
        if found[device].memory_source not in ("nvml", "mig"):
            raise DragomanError(f"{device}'s driver does not tell how much memory is in use", "measure on another GPU")
        self.device = found[device]
        self.most_bytes = 0
        self._nvml = devices.open_nvml()
        self._handle = self._nvml.nvmlDeviceGetHandleByUUID(self.device.uuid)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Card:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._nvml.nvmlShutdown()

    def used(self) -> int:
        """Bytes in use."""
        return int(self._nvml.nvmlDeviceGetMemoryInfo(self._handle).used)

    def settled(self) -> int:
        """Bytes in use while nothing happens."""
        return int(statistics.median(self._paused() for _ in range(SETTLED)))

    def users(self) -> set[int]:
        """Processes that the driver lists on the card."""
        return {row.pid for row in self._nvml.nvmlDeviceGetComputeRunningProcesses(self._handle)}

    def _paused(self) -> int:
        time.sleep(SAMPLE_EVERY_S)
        return self.used()

    def _watch(self) -> None:
        while not self._stop.wait(SAMPLE_EVERY_S):
            self.most_bytes = max(self.most_bytes, self.used())


@dataclass(frozen=True)
class Life:
    """One life of a model. Bytes beyond what was in use before its node."""

    asked_bytes: int
    source: str  # of what was asked for: "files", "measured"
    loaded_bytes: int
    peak_bytes: int
    load_s: float
    run_s: float
    waiting_bytes: int  # in use while its next worker is there, without a lease
    waiting_users: int  # processes of the node that the driver lists then
    back_s: float  # from the order to unload until the node and the driver showed nothing of it
    outcome: str


def life(
    config: Config,
    card: Card,
    said: Any,
    source: str = "en",
    target: str = "en",
    modules: Mapping[str, str] | None = None,
) -> Life:
    """One node with one stage, on ``card``.

    ``said``: samples at 16 kHz, or a text. ``modules``: of the node, for tests.
    Raises DragomanError when the model does not load, the utterance fails, or its memory does not come back.
    """
    before = card.settled()
    card.most_bytes = 0
    with Node(config, modules=modules) as node:
        row = _loaded(node)
        load_s = row["load_ms"] / 1000
        loaded = card.settled() - before
        asked = node.stats()["estimates"][0]
        begun = time.monotonic()
        with node.client() as client, client.session(source, target, "one") as session:
            session.submit(said, budget_s=PATIENCE_S)
            outcomes = list(session.outcomes(timeout_s=PATIENCE_S + LEAVES_S))
        run_s = time.monotonic() - begun
        if len(outcomes) != 1 or outcomes[0].outcome != "ok":
            raise DragomanError(f"the run ended with {outcomes[:1]}", "see what the node has said above")
        peak = card.most_bytes - before
        _report_in(node)
        back_s = _unload(node)
        ours = _waiting(node)
        waiting, users = card.settled() - before, len(ours & card.users())
    return Life(
        asked["estimate_bytes"],
        asked["source"],
        loaded,
        peak,
        load_s,
        run_s,
        waiting,
        users,
        back_s,
        _told(outcomes[0]),
    )


def config_for(kind: str, model: str, device: str, estimates: Path, args: argparse.Namespace) -> Config:
    """A node of this one stage."""
    limits = {"max_utterance_s": args.audio_s, "max_text_chars": args.chars}
    return Config(
        node=NodeSection(**{name: value for name, value in limits.items() if value}),
        stages={STAGE: StageSection(kind=kind, model=model, devices=(device,))},
        pipelines={"one": (STAGE,)},
        devices=DeviceSection(use=(device,), estimates_file=str(estimates)),
        deadlines=DeadlinesSection(budget_max_s=PATIENCE_S),
    )


def main(argv: Sequence[str]) -> int:
    args = _arguments(argv)
    report = Report("card")
    with Card(args.device) as card:
        print(f"{args.device}: {card.device.label}", file=sys.stderr, flush=True)
        for name in args.shape or shapes.SHAPES:
            with tempfile.TemporaryDirectory(dir=args.folder, prefix="shape-") as home:
                _weigh(report, name, Path(home), card, args)
    report.show(args.json)
    return report.exit_code


def _weigh(report: Report, name: str, home: Path, card: Card, args: argparse.Namespace) -> None:
    print(f"{name}: writing", file=sys.stderr, flush=True)
    kind = shapes.SHAPES[name].kind
    config = config_for(kind, str(written(name, home / name)), args.device, home / "estimates.json", args)
    item = longest(kind, {}, config.node.max_utterance_s, args.chars or 0)
    lives = []
    for which in ("first", "second"):
        print(f"{name}: {which} life", file=sys.stderr, flush=True)
        said = item.audio if item.text is None else item.text
        lives.append(life(config, card, said, item.source, item.target))
        one = lives[-1]
        sizes = ", ".join(
            f"{what} {nbytes / MB:,.0f} MB"
            for what, nbytes in (
                ("asked", one.asked_bytes),
                ("loaded", one.loaded_bytes),
                ("peak", one.peak_bytes),
                ("left", one.waiting_bytes),
            )
        )
        print(f"{name}: {one.outcome}; {sizes}", file=sys.stderr, flush=True)
    add(report, name.replace("-", "_").replace(".", "_"), *lives)


def add(report: Report, name: str, first: Life, second: Life) -> None:
    """The figures of a model's two lives."""
    peak = max(first.peak_bytes, second.peak_bytes)
    report.add(f"{name}_asked_first", first.asked_bytes / MB, "MB")
    report.add(f"{name}_asked_measured", second.asked_bytes / MB, "MB")
    report.add(f"{name}_loaded", first.loaded_bytes / MB, "MB")
    report.add(f"{name}_peak", peak / MB, "MB")
    report.add(f"{name}_first_over_peak", first.asked_bytes / peak, "ratio")
    report.add(f"{name}_measured_over_peak", second.asked_bytes / peak, "ratio", CLOSE)
    report.add(f"{name}_waiting", max(first.waiting_bytes, second.waiting_bytes) / MB, "MB", ZERO)
    report.add(f"{name}_waiting_users", first.waiting_users + second.waiting_users, "processes", ZERO)
    report.add(f"{name}_back", max(first.back_s, second.back_s), "s")
    report.add(f"{name}_load", min(first.load_s, second.load_s), "s")
    report.add(f"{name}_run", min(first.run_s, second.run_s), "s")


def _loaded(node: Node) -> dict[str, Any]:
    """The worker's row, once its model is loaded."""
    ctl.ask(node.ctl_endpoint, "load", target=STAGE)
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        stats = node.stats()
        (row,) = stats["workers"].values() if len(stats["workers"]) == 1 else ({},)
        if row.get("state") == "loaded" and stats["estimates"][0]["last_measured_bytes"]:
            return dict(row)
        time.sleep(LOOK_S)
    raise DragomanError(f"the model has not loaded within {PATIENCE_S:g} s", "see what the node has said above")


def _report_in(node: Node) -> None:
    """Until the node has seen the peak of a run too: processes report once a second."""
    heard = node.stats()["estimates"][0]["peak_bytes"]
    until = time.monotonic() + 3.0
    while time.monotonic() < until and node.stats()["estimates"][0]["peak_bytes"] == heard:
        time.sleep(LOOK_S)


def _unload(node: Node) -> float:
    """Seconds from the order until the node and the driver show nothing of the model any more."""
    begun = time.monotonic()
    ctl.ask(node.ctl_endpoint, "unload", target=STAGE)
    while time.monotonic() < begun + LEAVES_S:
        stats = node.stats()
        if not stats["leases"] and not stats["operators"]["pending"]:
            return time.monotonic() - begun
        time.sleep(LOOK_S)
    raise DragomanError(f"the model has not left within {LEAVES_S:g} s", "see what the node has said above")


def _waiting(node: Node) -> set[int]:
    """The node's processes, once the worker's next one is there, and waits without its model."""
    until = time.monotonic() + LEAVES_S
    while time.monotonic() < until:
        rows = node.stats()["processes"]
        if [row["phase"] for row in rows if row["role"].startswith(f"{STAGE}@")] == ["empty"]:
            return {row["pid"] for row in rows}
        time.sleep(LOOK_S)
    raise DragomanError(f"no worker has begun anew within {LEAVES_S:g} s", "see what the node has said above")


def _told(outcome: Any) -> str:
    if outcome.audio is not None:
        return f"{len(outcome.audio) / outcome.sample_rate:.1f} s of audio"
    return f"{sum(map(len, outcome.texts.values()))} characters {outcome.degraded}".strip()


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = command.parser("card", __doc__, done=DONE, wrong=WRONG)
    parser.add_argument("--device", default="cuda:0", metavar="NAME", help="the GPU, as the node calls it (cuda:0)")
    add_arguments(parser)
    return parser.parse_args(argv)
