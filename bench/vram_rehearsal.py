"""A rehearsal: a real node with simulated stages on GPUs of the stand-in driver, as a scenario file says.

The file is TOML; ``Scenario`` and its parts are its keys. Whatever it says of ``devices`` and ``deadlines`` goes into
the node's configuration as it stands. The figures are the driver's and the client's own.
"""

from __future__ import annotations

import contextlib
import math
import os
import queue
import sys
import threading
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, get_args

import msgspec

from bench.command import cut_short
from bench.drive import arrived, progress
from bench.report import ZERO, Goal, Report
from bench.standin_driver import Driver, Gpu
from bench.vram_events import REFUSED, SHORT, Event, Events, Gib, Seconds, complaint
from bench.vram_grants import Grants, Sample
from bench.vram_shortages import Shortages
from engine.arbiter.events import Waits
from engine.config_rules import nearest
from engine.corrections_file import OFF
from engine.limits import Limits
from engine.node import Node
from ipc.errors import DragomanError
from stages.simulated import mark_samples, read_mark

GIB = 2**30
SAMPLE_S = 0.05
REPORT_S = 5.0  # the longest wait for the arbiter's report, which comes once a second
NEXT_GRANT_S = 1.5  # at most, from a death of the arbiter on
PATIENCE_S = 120.0  # without any outcome
OUTPUT_BYTES = 64_000
SAMPLES = 16_000  # of each utterance, at 16 kHz

Milliseconds = Annotated[float, msgspec.Meta(ge=0, le=3_600_000)]
Count = Annotated[int, msgspec.Meta(ge=1)]


class ScenarioError(DragomanError):
    """This cannot be rehearsed as it stands (exit code 2)."""


class Stage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """[[stages]]: one stage, in the order of the pipeline."""

    name: str
    weights_gib: Gib  # taken while it loads
    run_gib: Gib = 0.0  # ... and from its first run on, for each utterance of its largest batch
    sleep_ms: Milliseconds = 10.0  # time of a run
    load_ms: Milliseconds = 100.0
    max_batch: Count = 1
    devices: tuple[str, ...] = ("auto",)
    estimate_gib: Gib | None = None  # what the node believes that it takes; absent: what it takes
    pinned: bool = False


class Outsider(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """[[outsiders]]: ``at_s`` after the first utterance others begin to hold ``gib`` of a GPU, or what is free."""

    gpu: int
    at_s: Seconds
    gib: Gib


class Scenario(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file."""

    stages: tuple[Stage, ...]
    utterances: Count = 50
    gap_s: Seconds = 0.0  # between two utterances
    context_gib: Gib = 0.3  # of each process on a GPU
    lag_s: Seconds = 0.1  # how long memory that was given back is shown as used
    outsiders: tuple[Outsider, ...] = ()
    events: tuple[Event, ...] = ()
    devices: dict[str, Any] = {}
    deadlines: dict[str, float] = {}

    def needs(self) -> dict[str, int]:
        """Stage -> bytes it really takes at most."""
        return {
            one.name: int((self.context_gib + one.weights_gib + one.run_gib * one.max_batch) * GIB)
            for one in self.stages
        }


def read(path: Path, gpus: int) -> Scenario:
    """Raises ScenarioError with one line when it cannot be read or makes no sense."""
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
        if unknown := next(strange_keys(tree, Scenario), ""):
            raise ScenarioError(f"{path}: {unknown}", "docs/vram.md says what each is")
        scenario = msgspec.convert(tree, Scenario)
    except OSError as error:
        raise ScenarioError(f"{path}: {error.strerror}", "name a scenario file; docs/examples has one") from error
    except (tomllib.TOMLDecodeError, msgspec.ValidationError, UnicodeDecodeError) as error:
        what, _, where = str(error).partition(" - at `$.")
        if where == "deadlines[...]`":
            where = f"deadlines.{next(name for name, value in tree['deadlines'].items() if not _is_number(value))}"
        text = f"{where.rstrip('`')}: {what}" if where else what
        raise ScenarioError(f"{path}: {text}", "docs/vram.md lists what a scenario may say") from error
    beyond = [one for one in scenario.outsiders if not 0 <= one.gpu < gpus]
    if beyond:
        raise ScenarioError(f"{path}: an outsider is on GPU {beyond[0].gpu}, and there are {gpus}", "count from 0")
    names = [stage.name for stage in scenario.stages]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ScenarioError(f"{path}: there are two stages {twice[0]!r}", "give each a name of its own")
    if not scenario.stages:
        raise ScenarioError(f"{path}: there is nothing to do", "give it at least one stage")
    for event in scenario.events:
        if words := complaint(event, names, gpus):
            raise ScenarioError(f"{path}: {words}", "docs/vram.md lists what a scenario may say")
    return scenario


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def strange_keys(tree: Mapping[str, Any], struct: type[msgspec.Struct], where: str = "") -> Iterator[str]:
    """A line for each key that this table, or one inside it, does not have."""
    known = {field.name: field.type for field in msgspec.structs.fields(struct)}
    for name, value in tree.items():
        if name not in known:
            yield f"{where}{name} is unknown; {nearest(name, known)}there are {', '.join(known)}"
        inner = next(iter(get_args(known.get(name))), None)
        if isinstance(inner, type) and issubclass(inner, msgspec.Struct) and isinstance(value, list):
            for number, one in enumerate(value):
                if isinstance(one, Mapping):
                    yield from strange_keys(one, inner, f"{where}{name}[{number}].")


def config(scenario: Scenario) -> dict[str, Any]:
    """The node's configuration."""
    needs, last = scenario.needs(), len(scenario.stages) - 1
    stages: dict[str, Any] = {}
    for number, one in enumerate(scenario.stages):
        options: dict[str, Any] = {
            "vram_bytes": int(one.weights_gib * GIB), "vram_run_bytes": int(one.run_gib * GIB),
            "sleep_ms": one.sleep_ms, "load_ms": one.load_ms, "mark": number in (0, last),
        }  # fmt: skip
        if number == 0:
            options["accepts"] = "audio"
        if number == last:
            options |= {"emits": "audio", "output_bytes": OUTPUT_BYTES}
        estimate = needs[one.name] if one.estimate_gib is None else int(one.estimate_gib * GIB)
        stages[one.name] = {
            "kind": "simulated", "devices": list(one.devices), "max_batch": one.max_batch, "pinned": one.pinned,
            "estimate_bytes": estimate, "options": options,
        }  # fmt: skip
    return {
        "stages": stages,
        "pipelines": {"full": [one.name for one in scenario.stages]},
        "devices": {"estimates_file": OFF, **scenario.devices},  # what is measured of no real model is nobody else's
        "deadlines": scenario.deadlines,
    }


def limits(scenario: Scenario, totals: tuple[int, ...]) -> list[Limits]:
    """What the scenario lets the node use of each GPU."""
    most, share = scenario.devices.get("max_bytes", {}), scenario.devices.get("share", False)
    names = [f"cuda:{gpu}" for gpu in range(len(totals))]
    return [
        Limits(name, total, most.get(name, 0), ceiling_is_own=share) for name, total in zip(names, totals, strict=True)
    ]


class Rehearsal:
    """One run: submits and takes outcomes, while a thread of its own plays the outsiders and looks at the node.

    Another one looks at the driver, from before the node starts: ``watching``.
    """

    def __init__(self, scenario: Scenario, driver: Driver, totals: tuple[int, ...]) -> None:
        self.scenario = scenario
        self.outcomes: list[Any] = []
        self.took_s: list[float] = []
        self.mixed_up = 0
        self.used: list[int] = []  # samples, over all GPUs
        self.packed: list[int] = []
        self.grants = Grants(limits(scenario, totals), scenario.deadlines.get("unreadable_s", Waits.unreadable_s))
        self.shortages = Shortages(totals)
        self._short = [0] * len(totals)  # allocations that have failed
        self.events = Events(scenario.events, driver, int(scenario.context_gib * GIB))
        self._driver, self._totals = driver, totals
        self._seen: queue.SimpleQueue[tuple[int, Sample, int]] = queue.SimpleQueue()  # and not given to the grants yet
        self._foreign = [0] * len(totals)
        self.absent = sorted(scenario.outsiders, key=lambda one: one.at_s)  # that have not come
        self._sent_at: dict[int, float] = {}  # index -> when it was to be submitted

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Look at the driver meanwhile."""
        over = threading.Event()
        thread = threading.Thread(target=self._sample, args=(over,), name="driver")
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _sample(self, over: threading.Event) -> None:
        while not over.wait(SAMPLE_S):
            for gpu, foreign in enumerate(self._foreign):
                lagging = self._driver.lagging(gpu)  # first: who dies in between is counted once at most
                sample = Sample(time.monotonic(), self._driver.holders(gpu), lagging, foreign)
                short = self._driver.get(gpu, "out_of_memory")
                self._seen.put((gpu, sample, short - self._short[gpu]))
                self._short[gpu] = short

    def run(self, node: Node) -> float:
        """Returns how long it took. Raises DragomanError when nothing comes any more."""
        self._play_outsiders(0.0)  # who is there from the start is there before the first utterance
        with node.client() as client, client.session() as session:
            begun = time.monotonic()
            over = threading.Event()
            watch = threading.Thread(target=self._watch, args=(node, begun, over), name="watch")
            watch.start()
            try:
                self._drive(session, begun)
            finally:
                over.set()
                watch.join()
                self.events.end()
        took_s = time.monotonic() - begun
        self._judge_the_rest(node)
        return took_s

    def _drive(self, session: Any, begun: float) -> None:
        """The client's side. An utterance that the node has no room for waits here, where outcomes are heard."""
        count, sent, heard_at = self.scenario.utterances, 0, begun
        with progress(count, "rehearsal") as bar:
            while len(self.outcomes) < count:
                now = time.monotonic()
                while sent < count and now - begun >= sent * self.scenario.gap_s:
                    self._sent_at.setdefault(sent, time.monotonic())
                    if session.outstanding >= session.core.share:
                        break
                    sent += 1
                    session.submit(mark_samples(sent, SAMPLES))
                for outcome in arrived(session):
                    heard_at = time.monotonic()
                    self._note(outcome)
                    bar.update()
                if now - heard_at > PATIENCE_S:
                    raise DragomanError(f"no outcome for {PATIENCE_S:g} s; {count - len(self.outcomes)} are missing")
                time.sleep(0.002)

    def _watch(self, node: Node, begun: float, over: threading.Event) -> None:
        """Play the outsiders and events, and look at what the node has granted, whatever the client does."""
        while True:
            self._play_outsiders(time.monotonic() - begun)
            self.events.play(node, time.monotonic() - begun)
            self._look(node)
            if over.wait(SAMPLE_S):
                return

    def _note(self, outcome: Any) -> None:
        self.outcomes.append(outcome)
        self.took_s.append(time.monotonic() - self._sent_at[outcome.index])
        if outcome.outcome == "ok":
            self.mixed_up += read_mark(outcome.audio) != read_mark(mark_samples(outcome.index + 1, SAMPLES))

    def _play_outsiders(self, since_s: float) -> None:
        while self.absent and self.absent[0].at_s <= since_s:
            one = self.absent.pop(0)
            wanted = int(one.gib * GIB)
            while True:  # as much as is free, while others take and give back
                wanted = min(wanted, self._totals[one.gpu] - self._driver.truth(one.gpu))
                with contextlib.suppress(MemoryError):
                    self._driver.set_foreign(one.gpu, max(0, wanted))
                    break
            self._foreign[one.gpu] = max(0, wanted)

    def _look(self, node: Node) -> None:
        self.used.append(sum(self._driver.truth(gpu) - self._driver.lagging(gpu) for gpu in range(len(self._totals))))
        self.packed.append(max(self._packing(), self.used[-1]))  # what lies there is a packing too
        self._judge(node)

    def _judge(self, node: Node) -> float:
        """Judge what the node has granted, as far as its arbiter has reported it; returns when that was."""
        arbiter = node.stats().get("arbiter", {})
        reported_at = time.monotonic() - arbiter.get("age_ms", math.inf) / 1000
        while not self._seen.empty():
            gpu, sample, failed = self._seen.get()
            self.grants.sample(gpu, sample)
            if failed:
                self.shortages.add(gpu, sample, failed)
        self.grants.judge(arbiter)
        self.shortages.judge([*arbiter.get("leases", ()), *arbiter.get("over", ())], reported_at)
        return reported_at

    def _judge_the_rest(self, node: Node) -> None:
        """What was granted up to now; an arbiter that is away says nothing of it."""
        now, grants = time.monotonic(), self.grants
        while (self._judge(node) < now or grants.judged < grants.granted) and time.monotonic() < now + REPORT_S:
            time.sleep(SAMPLE_S)

    def _packing(self) -> int:
        """Of each GPU, the models that may lie there, the largest first, as far as they fit beside the outsiders."""
        packed, needs = 0, self.scenario.needs()
        for gpu, total in enumerate(self._totals):
            room = total - self._foreign[gpu]
            for one in sorted(self.scenario.stages, key=lambda one: -needs[one.name]):
                if needs[one.name] <= room and ("auto" in one.devices or f"cuda:{gpu}" in one.devices):
                    room -= needs[one.name]
                    packed += needs[one.name]
        return packed


@contextlib.contextmanager
def environment(values: dict[str, str]) -> Iterator[None]:
    """This process's environment, for what it starts meanwhile."""
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update({name: value for name, value in values.items() if name != "CUDA_VISIBLE_DEVICES"})
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextlib.contextmanager
def started(configuration: dict[str, Any], path: Path, modules: Mapping[str, str] | None) -> Iterator[Node]:
    """The node. What it finds wrong with its configuration, or too large, the scenario has said."""
    node = Node(configuration, modules=modules)
    try:
        node.start()
    except DragomanError as error:
        raise ScenarioError(f"{path}: {error.text.removeprefix('configuration: ')}", error.mend) from error
    try:
        yield node
    finally:
        node.close()


def rehearse(totals: tuple[int, ...], path: Path, modules: Mapping[str, str] | None = None) -> Report:
    """Raises ScenarioError when the scenario is wrong, so that the node does not even start.

    ``modules``: of the node, instead of its own.
    """
    scenario = read(path, len(totals))
    context = int(scenario.context_gib * GIB)
    gpus = [Gpu(total_bytes=total, context_bytes=context) for total in totals]
    with Driver(gpus, lag_s=scenario.lag_s) as driver, environment(driver.environ(os.environ)):
        rehearsal = Rehearsal(scenario, driver, totals)
        with rehearsal.watching(), started(config(scenario), path, modules) as node:
            try:
                took_s = rehearsal.run(node)
            except KeyboardInterrupt:
                raise cut_short(f"{len(rehearsal.outcomes)} utterances had their outcome") from None
            stats = node.stats()
        return summary(rehearsal, driver, stats, totals, took_s)


def summary(
    rehearsal: Rehearsal, driver: Driver, stats: dict[str, Any], totals: tuple[int, ...], took_s: float
) -> Report:
    report = Report("vram")
    numbers = range(len(totals))
    every, snatched = sum(driver.get(gpu, "out_of_memory") for gpu in numbers), rehearsal.shortages.snatched
    ooms = every - snatched
    allocations = sum(driver.get(gpu, "allocations") for gpu in numbers)
    wrong = [one for one in rehearsal.outcomes if one.outcome != "ok"]
    report.add("utterances", len(rehearsal.outcomes), "")
    report.add("oom", ooms, "allocations", ZERO)
    report.add("oom_rate", ooms / max(1, every + allocations), "ratio", Goal(at_most=0.05, fatal=True))
    report.add("snatched", snatched, "allocations")
    report.add("failed", len(wrong), "utterances", ZERO)
    report.add("mixed_up", rehearsal.mixed_up, "utterances", ZERO)
    for promise in ("overcommitted", "above_ceiling"):
        report.add(promise, rehearsal.grants.counts[promise], "grants", ZERO)
    add_events(report, rehearsal.events, rehearsal.absent)
    report.add("granted", rehearsal.grants.granted, "grants")
    report.add("unjudged", rehearsal.grants.granted - rehearsal.grants.judged, "grants", ZERO)
    used, packed = sum(rehearsal.used), sum(rehearsal.packed)
    report.add("vram_used_over_packing", used / max(1, packed), "ratio")
    report.add("vram_used", used / len(rehearsal.used) / GIB, "GiB")
    for gpu in numbers:
        report.add(f"vram_peak_{gpu}", driver.get(gpu, "peak_bytes") / GIB, "GiB")
    report.add("throughput", len(rehearsal.outcomes) / took_s, "1/s")
    report.add("outcome_s", sum(rehearsal.took_s) / len(rehearsal.took_s), "s")
    report.add("parked", stats["scheduler"].get("parked", 0), "models")
    return report


def add_events(report: Report, events: Events, absent: Sequence[Outsider]) -> None:
    """What came of them; nothing where there were none. ``absent``: outsiders that never came."""
    for what, several in (
        ("did not come", absent),
        ("did not happen", events.missing),
        ("was refused", events.refused),
    ):
        for one in several:
            said = one if isinstance(one, str) else msgspec.json.encode(one).decode()
            print(f"{what}: {said}", file=sys.stderr)
    if events.total:
        report.add("events", events.total, "")
    if events.total or absent:
        report.add("not_happened", len(events.missing) + len(absent), "events", ZERO)
    if not events.total:
        return
    report.add("refused_orders", len(events.refused), "orders", ZERO)
    if events.next_grants or events.endless:
        report.add("never_granted", events.endless, "requests", ZERO)
        report.add("next_grant_s", max(events.next_grants, default=-1.0), "s", Goal(0.0, NEXT_GRANT_S, fatal=True))
    if events.programs:
        report.add("programs", len(events.programs), "")
        report.add("programs_refused", events.ended_with(REFUSED), "programs")
        report.add("programs_short", events.ended_with(SHORT), "programs", ZERO)
