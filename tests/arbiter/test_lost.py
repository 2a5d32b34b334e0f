"""Leases of a device that is lost, and of a holder that cannot be killed: counted, shown, never granted upon."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from engine.arbiter.events import Alarm, DeviceLost, Tick
from engine.arbiter.words import GIB
from engine.limits import Limits
from ipc.messages import Denied, Gone, Granted, LeaseWait, Quarantine
from tests.arbiter.test_leases import GPU, Bench

OTHER = "cuda:1"
ASR, NMT = "asr@cuda:0/0", "nmt@cuda:0/0"
ROLES = [f"{stage}@{device}/0" for stage in ("asr", "nmt") for device in (GPU, OTHER)]


def device_of(role: str) -> str:
    return role.partition("@")[2].partition("/")[0]


def two() -> Bench:
    bench = Bench(Limits(GPU, 24 * GIB, safety_margin=0.0), Limits(OTHER, 24 * GIB, safety_margin=0.0))
    bench.read(24 * GIB)
    bench.read(24 * GIB, device=OTHER)
    return bench


def states(bench: Bench) -> dict[str, str]:
    return {row["worker"].partition("#")[0]: row["state"] for row in bench.book.snapshot(bench.now)["leases"]}


def test_a_lost_device_keeps_its_bytes_gives_none_and_leaves_the_others_alone() -> None:
    bench = two()
    bench.load(ASR, 8 * GIB, 16 * GIB)
    (loading,) = bench.ask(NMT, 4 * GIB)
    (waiting,) = bench.ask("tts@cuda:0/0", GIB)
    assert isinstance(loading, Granted) and isinstance(waiting, LeaseWait)
    actions = bench.book.handle(DeviceLost(GPU, "GPU is lost"), bench.now)
    alarm, denied = actions[0], actions[1].message
    assert alarm == Alarm(Quarantine(GPU, "GPU is lost"))
    assert isinstance(denied, Denied) and denied.reason == "cuda:0 is quarantined: GPU is lost"
    assert states(bench) == {ASR: "lost", NMT: "lost"}
    assert bench.row()["lost_bytes"] == 12 * GIB
    assert bench.book.rooms() == {GPU: 0, OTHER: 24 * GIB}  # nobody is called back to it
    (refused,) = bench.ask("tts@cuda:0/0", GIB)
    assert isinstance(refused, Denied) and "quarantined" in refused.reason
    (granted,) = bench.ask("asr@cuda:1/0", 20 * GIB, device=OTHER)
    assert isinstance(granted, Granted)


def test_it_stays_so_whatever_comes_after() -> None:
    bench = two()
    bench.load(ASR, 8 * GIB, 16 * GIB)
    bench.feed(DeviceLost(GPU, "GPU is lost"))
    assert bench.book.handle(DeviceLost(GPU, "GPU is lost"), bench.now) == []
    bench.feed(Gone("asr@cuda:0/0", 1, final=True))
    bench.later(60.0)
    bench.read(24 * GIB)  # it is there again, and nobody's
    assert states(bench) == {ASR: "lost"}
    bench.arbiter_dies()
    assert bench.book.alarms() == [Quarantine(GPU, "GPU is lost")]
    (refused,) = bench.ask(NMT, GIB)
    assert isinstance(refused, Denied)
    assert bench.book.snapshot(bench.now)["quarantined"] == {GPU: "GPU is lost"}


def test_a_holder_that_cannot_be_killed_keeps_its_bytes_until_it_has_ended() -> None:
    bench = two()
    bench.load(ASR, 8 * GIB, 16 * GIB)
    bench.feed(Gone(ASR, 1, "killed", final=True, stuck=True))
    assert states(bench) == {ASR: "lost"} and bench.row()["grantable_bytes"] == 16 * GIB
    bench.feed(Gone(ASR, 1, "killed", final=True, stuck=True))  # said again to each new arbiter
    bench.later(60.0)
    bench.read(16 * GIB)
    assert states(bench) == {ASR: "lost"}
    bench.arbiter_dies()
    bench.feed(Gone(ASR, 1, "it has ended after all"))
    assert states(bench) == {ASR: "draining"}
    bench.later(0.1)
    bench.read(24 * GIB)
    assert states(bench) == {} and bench.row()["grantable_bytes"] == 24 * GIB


def test_a_loader_that_cannot_be_killed_keeps_all_it_was_granted_and_not_the_turn() -> None:
    bench = two()
    bench.ask(ASR, 8 * GIB)
    bench.feed(Gone(ASR, 1, "killed", final=True, stuck=True))
    bench.read(22 * GIB)  # it had come so far
    assert bench.row()["grantable_bytes"] == 16 * GIB
    (granted,) = bench.ask(NMT, 16 * GIB)
    assert isinstance(granted, Granted)


def test_memory_that_another_program_gives_back_is_not_taken_from_the_lost() -> None:
    bench = two()
    bench.load(ASR, 8 * GIB, 16 * GIB)
    bench.read(10 * GIB)  # another program
    bench.feed(Gone(ASR, 1, "killed", final=True, stuck=True))
    bench.later(5.0)
    bench.read(16 * GIB)
    row = bench.row()
    assert (row["foreign_bytes"], row["lost_bytes"], row["grantable_bytes"]) == (0, 8 * GIB, 16 * GIB)


def test_a_lost_gpu_without_memory_of_its_own_takes_only_its_own_leases() -> None:
    bench = Bench(Limits("cpu", 24 * GIB, safety_margin=0.0), books={GPU: "cpu"})
    bench.read(24 * GIB, device="cpu")
    for worker, device in ((ASR, GPU), ("nmt@cpu/0", "cpu")):
        (granted,) = bench.ask(worker, 4 * GIB, device=device)
        bench.settle(worker, granted.lease)
        bench.later(0.1)
        bench.read(24 * GIB, device="cpu")
    bench.feed(DeviceLost(GPU, "GPU is lost"))
    assert states(bench) == {ASR: "lost", "nmt@cpu/0": "held"}
    (granted,) = bench.ask("tts@cpu/0", 4 * GIB, device="cpu")
    (refused,) = bench.ask("tts@cuda:0/0", GIB)
    assert isinstance(granted, Granted) and isinstance(refused, Denied)
    bench.feed(Gone(ASR, 1, "killed", final=True))
    bench.feed(Gone("nmt@cpu/0", 1, "killed"))
    assert states(bench)[ASR] == "lost" and states(bench)["nmt@cpu/0"] == "draining"


class AnyLosses(RuleBasedStateMachine):
    """Whatever is lost in whatever order: nothing is granted there, and nothing lost is granted to another."""

    def __init__(self) -> None:
        super().__init__()
        self.bench = two()
        self.lives = dict.fromkeys(ROLES, 1)
        self.stuck: set[str] = set()
        self.lost: set[str] = set()

    def hear(self, messages: list[Any], device: str) -> None:
        assert device not in self.lost or not any(isinstance(one, Granted) for one in messages)

    @rule(role=st.sampled_from(ROLES), gib=st.integers(1, 20))
    def ask(self, role: str, gib: int) -> None:
        device = device_of(role)
        if role not in self.stuck:
            self.hear(self.bench.ask(role, gib * GIB, device=device, incarnation=self.lives[role]), device)

    @rule(role=st.sampled_from(ROLES), ok=st.booleans())
    def settle(self, role: str, ok: bool) -> None:
        for row in self.rows():
            if row["worker"] == f"{role}#{self.lives[role]}" and row["state"] == "granted":
                self.bench.settle(role, row["lease"], ok=ok, incarnation=self.lives[role])

    @rule(role=st.sampled_from(ROLES), stuck=st.booleans())
    def die(self, role: str, stuck: bool) -> None:
        self.hear(self.bench.feed(Gone(role, self.lives[role], stuck=stuck)), device_of(role))
        if stuck:
            self.stuck.add(role)
        else:
            self.stuck.discard(role)
            self.lives[role] += 1

    @rule(device=st.sampled_from([GPU, OTHER]))
    def lose(self, device: str) -> None:
        self.bench.feed(DeviceLost(device, "GPU is lost"))
        self.lost.add(device)

    @rule(device=st.sampled_from([GPU, OTHER]), free=st.integers(0, 24))
    def read(self, device: str, free: int) -> None:
        self.bench.later(0.01)
        self.hear(self.bench.read(free * GIB, device=device), device)

    @rule(seconds=st.sampled_from([0.1, 3.0, 30.0]))
    def wait(self, seconds: float) -> None:
        self.bench.later(seconds)
        self.bench.feed(Tick())

    @rule()
    def arbiter_dies(self) -> None:
        self.bench.arbiter_dies()

    def rows(self) -> list[dict[str, Any]]:
        return self.bench.book.snapshot(self.bench.now)["leases"]

    @invariant()
    def what_is_lost_stays_counted(self) -> None:
        for device in (GPU, OTHER):
            rows = [row for row in self.rows() if row["device"] == device]
            lost = sum(max(row["nbytes"], row["held_bytes"]) for row in rows if row["state"] == "lost")
            seen = self.bench.row(device)
            assert seen["lost_bytes"] == lost and seen["grantable_bytes"] <= 24 * GIB - lost
            assert device not in self.lost or all(row["state"] == "lost" for row in rows)
        alive = {row["worker"] for row in self.rows() if row["state"] in ("granted", "held")}
        assert not alive & {f"{role}#{self.lives[role]}" for role in self.stuck}


TestAnyLosses = AnyLosses.TestCase
TestAnyLosses.settings = settings(max_examples=60, stateful_step_count=40)
