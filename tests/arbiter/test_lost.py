"""Leases of a device that is lost, and of a holder that cannot be killed: counted, shown, never granted upon."""

from __future__ import annotations

from engine.arbiter.events import Alarm, DeviceLost
from engine.arbiter.room import Limits
from engine.arbiter.words import GIB
from ipc.messages import Denied, Gone, Granted, LeaseWait, Quarantine
from tests.arbiter.test_leases import GPU, Bench

OTHER = "cuda:1"
ASR, NMT = "asr@cuda:0/0", "nmt@cuda:0/0"


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
