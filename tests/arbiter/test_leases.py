"""What a user may expect of leases: nothing is promised twice, nobody waits for ever, and every refusal says why."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from engine.arbiter import kept, leases, words
from engine.arbiter.events import DeviceLost, FromWorker, Note, Sample, Send, Tell, Tick, Waits
from engine.arbiter.journal import HEADER_BYTES
from engine.arbiter.lease import MOVES, Lease, LeaseState, move
from engine.arbiter.leases import MOST_LEASES, OVER, OVER_S, Leases
from engine.arbiter.outlook import look
from engine.arbiter.room import DOUBT_S, Reading
from engine.arbiter.words import GIB
from engine.limits import Limits
from engine.supervisor.main import JOURNAL_BYTES
from ipc.errors import IllegalMove
from ipc.messages import Denied, Gone, Granted, LeaseRequest, LeaseWait, Orders, Release, Settled, Vacate

GPU = "cuda:0"
MIB = 2**20


class Bench:
    """A book over one or more devices, with a clock that only moves when told."""

    def __init__(self, *limits: Limits, waits: Waits | None = None, books: dict[str, str] | None = None) -> None:
        self._book_of = limits or (Limits(GPU, 24 * GIB),), waits or Waits(), books
        self.book = Leases(*self._book_of)
        self.now = 100.0
        self.told: list[Vacate] = []  # the scheduler
        self._ids = itertools.count(1)

    def feed(self, event) -> list:
        actions = self.book.handle(event, self.now)
        self.book.check()
        self.told += [action.message for action in actions if isinstance(action, Tell)]
        return [action.message for action in actions if isinstance(action, Send)]

    def read(self, free: int, total: int = 24 * GIB, device: str = GPU, taken_at: float | None = None) -> list:
        return self.feed(Reading(device, total, free, self.now if taken_at is None else taken_at))

    def ask(
        self, worker: str, nbytes: int, device: str = GPU, model: str = "", incarnation: int = 1, **more: Any
    ) -> list:
        message = LeaseRequest(next(self._ids), worker, device, nbytes, model, **more)
        return self.feed(FromWorker(f"{worker}#{incarnation}", message))

    def list(self, processes: dict[int, int] | None, unlisted: int = 0, total: int = 24 * GIB) -> list:
        """A reading with a list of processes; what others have that are not in it is ``unlisted``."""
        self.later(0.01)
        free = total - sum((processes or {}).values()) - unlisted
        return self.feed(Reading(GPU, total, free, self.now, processes))

    def settle(self, worker: str, lease: int, measured: int = -1, ok: bool = True, incarnation: int = 1) -> list:
        return self.feed(FromWorker(f"{worker}#{incarnation}", Settled(lease, measured, ok)))

    def arbiter_dies(self) -> None:
        """Another arbiter goes on from what this one has kept."""
        left = kept.encode(self.book.keep())
        self.book = Leases(*self._book_of)
        self.book.restore(kept.decode(left))
        self.book.check()
        assert kept.encode(self.book.keep()) == left

    def later(self, seconds: float) -> None:
        self.now += seconds

    def row(self, device: str = GPU) -> dict:
        return self.book.snapshot(self.now)["devices"][device]

    def states(self) -> list[str]:
        return [row["state"] for row in self.book.snapshot(self.now)["leases"]]

    def load(self, worker: str, nbytes: int, free_after: int, **kw) -> int:
        """A whole load: asked, granted, settled and read; returns the lease."""
        granted = self.ask(worker, nbytes, **kw)[0]  # others may hear that they wait for it now
        assert isinstance(granted, Granted), granted
        self.settle(worker, granted.lease, nbytes)
        self.later(0.1)
        self.read(free_after)
        return granted.lease


def test_24_gib_card_10_foreign_8_granted_but_not_yet_allocated_leaves_6_and_4_6_after_the_margin():
    bench = Bench(Limits(GPU, 24 * GIB, safety_margin=0.0))
    bench.read(14 * GIB)
    bench.ask("asr@cuda:0/0", 8 * GIB)
    assert bench.row()["grantable_bytes"] == 6 * GIB  # and not 14, as the driver alone would say

    bench = Bench(Limits(GPU, 24 * GIB, safety_margin=0.1))
    bench.read(14 * GIB)
    bench.ask("asr@cuda:0/0", 8 * GIB)
    assert bench.row()["grantable_bytes"] == pytest.approx(4.6 * GIB, abs=1)
    assert bench.row()["foreign_bytes"] == 10 * GIB


def test_what_the_loader_has_allocated_is_not_counted_twice():
    bench = Bench(Limits(GPU, 24 * GIB, safety_margin=0.0))
    bench.read(14 * GIB)
    bench.ask("asr@cuda:0/0", 8 * GIB)
    bench.later(0.1)
    bench.read(9 * GIB)  # 5 of its 8 are there
    assert bench.row() | {"grantable_bytes": 6 * GIB, "held_bytes": 5 * GIB, "foreign_bytes": 10 * GIB} == bench.row()


def test_growth_beyond_a_grant_is_foreign_until_its_holder_measured_it():
    bench = Bench(Limits(GPU, 24 * GIB, safety_margin=0.0))
    bench.read(24 * GIB)
    (granted,) = bench.ask("asr@cuda:0/0", 8 * GIB)
    bench.later(0.1)
    bench.read(14 * GIB)
    assert bench.row()["foreign_bytes"] == 2 * GIB
    bench.settle("asr@cuda:0/0", granted.lease, 10 * GIB)
    bench.later(0.1)
    bench.read(14 * GIB)
    assert (bench.row()["foreign_bytes"], bench.row()["held_bytes"]) == (0, 10 * GIB)


def two_held(bench: Bench) -> None:
    """asr and nmt, 8 GiB each, loaded."""
    bench.read(24 * GIB)
    bench.load("asr@cuda:0/0", 8 * GIB, 16 * GIB)
    bench.load("nmt@cuda:0/0", 8 * GIB, 8 * GIB)


def test_a_death_that_memory_tells_before_anybody_does_is_put_down_to_the_dead():
    bench = Bench(Limits(GPU, 24 * GIB, safety_margin=0.0, returns_at_once=True))
    two_held(bench)
    bench.later(0.1)
    bench.read(16 * GIB)  # nmt is dead, and nobody has said so
    bench.later(0.01)
    bench.feed(Gone("nmt@cuda:0/0", 1))
    bench.later(0.1)
    bench.read(16 * GIB)
    assert bench.row()["grantable_bytes"] == 16 * GIB, "the lease of asr, which lives, counts once"


def test_what_the_living_give_back_is_theirs_when_no_death_explains_it():
    bench = Bench(Limits(GPU, 24 * GIB, safety_margin=0.0))
    two_held(bench)
    for _ in range(3):
        bench.later(0.6)
        bench.read(10 * GIB)
    assert bench.row()["held_bytes"] == 14 * GIB


def test_what_a_death_takes_away_is_missing_for_its_own_time_however_long_something_else_has_been():
    bench = Bench(Limits(GPU, 24 * GIB, safety_margin=0.0))
    two_held(bench)
    bench.later(0.1)
    bench.read(9 * GIB)  # asr has given a little back
    bench.later(1.0)
    bench.read(17 * GIB)  # nmt is dead, and nobody has said so
    bench.later(0.01)
    bench.feed(Gone("nmt@cuda:0/0", 1))
    bench.later(0.1)
    bench.read(17 * GIB)
    assert bench.states() == ["held"], "and nothing of the dead is waited for"


def test_another_programs_growth_during_a_load_is_put_right_by_the_measurement():
    bench = Bench(Limits(GPU, 24 * GIB, safety_margin=0.0))
    bench.read(24 * GIB)
    (granted,) = bench.ask("asr@cuda:0/0", 8 * GIB)
    bench.later(0.1)
    bench.read(16 * GIB)
    bench.settle("asr@cuda:0/0", granted.lease, 5 * GIB)
    bench.later(0.1)
    bench.read(16 * GIB)
    assert (bench.row()["held_bytes"], bench.row()["foreign_bytes"]) == (5 * GIB, 3 * GIB)
    assert bench.row()["grantable_bytes"] == 13 * GIB  # 16 free, of which 3 are still promised


def test_one_load_at_a_time_per_device():
    bench = Bench(Limits(GPU, 24 * GIB), Limits("cuda:1", 24 * GIB))
    bench.read(24 * GIB)
    bench.read(24 * GIB, device="cuda:1")
    (first,) = bench.ask("asr@cuda:0/0", GIB)
    (wait,) = bench.ask("nmt@cuda:0/0", GIB)
    assert wait == LeaseWait("waiting for asr@cuda:0/0 to load on cuda:0", 2)
    assert isinstance(bench.ask("nmt@cuda:1/0", GIB, device="cuda:1")[0], Granted)  # the other device is free
    assert bench.settle("asr@cuda:0/0", first.lease, GIB) == []  # the reading is from before the load's end
    bench.later(0.01)
    (second,) = bench.read(23 * GIB)
    assert second.id == 2


def test_the_end_of_a_load_asks_for_a_fresh_reading():
    bench = Bench()
    bench.read(24 * GIB)
    (granted,) = bench.ask("asr@cuda:0/0", GIB)
    actions = bench.book.handle(FromWorker("asr@cuda:0/0#1", Settled(granted.lease)), bench.now)
    assert actions == [Sample(GPU)]


def test_a_failed_load_gives_its_turn_and_its_bytes_back():
    bench = Bench()
    bench.read(24 * GIB)
    (granted,) = bench.ask("asr@cuda:0/0", 20 * GIB)
    bench.ask("nmt@cuda:0/0", 10 * GIB)
    bench.settle("asr@cuda:0/0", granted.lease, ok=False)
    assert bench.states() == ["draining"]
    bench.feed(FromWorker("asr@cuda:0/0#1", Release(granted.lease)))  # says the same again
    bench.later(0.1)
    (answer,) = bench.read(24 * GIB)
    assert (answer.id, bench.states()) == (2, ["granted"])


def test_what_never_fits_is_denied_at_once_with_bytes_needed_and_there():
    bench = Bench(Limits(GPU, 24 * GIB))
    bench.read(24 * GIB)
    (denied,) = bench.ask("asr@cuda:0/0", 30 * GIB)
    assert denied.code == "no_vram"
    assert "needs 30.0 GiB" in denied.reason and "21.6 GiB" in denied.reason
    assert "\n" not in denied.reason


def test_a_ceiling_bounds_what_is_granted_below_what_the_card_has():
    bench = Bench(Limits(GPU, 24 * GIB, ceiling_bytes=8 * GIB, safety_margin=0.0))
    bench.read(24 * GIB)
    assert isinstance(bench.ask("asr@cuda:0/0", 9 * GIB)[0], Denied)
    bench.load("asr@cuda:0/0", 5 * GIB, 19 * GIB)
    (wait,) = bench.ask("nmt@cuda:0/0", 4 * GIB)
    assert isinstance(wait, LeaseWait)
    assert isinstance(bench.ask("tts@cuda:0/0", 3 * GIB)[0], Granted)


def test_a_reserve_larger_than_the_margin_is_kept():
    bench = Bench(Limits(GPU, 24 * GIB, reserve_bytes=6 * GIB))
    bench.read(24 * GIB)
    assert isinstance(bench.ask("asr@cuda:0/0", 18 * GIB + 1)[0], Denied)
    assert isinstance(bench.ask("asr@cuda:0/0", 18 * GIB)[0], Granted)


def test_an_unknown_device_is_denied():
    (denied,) = Bench().ask("asr@cuda:7/0", GIB, device="cuda:7")
    assert denied.code == "no_vram" and "cuda:7" in denied.reason


def test_a_request_waits_for_memory_in_words_and_is_denied_after_the_limit():
    bench = Bench(Limits(GPU, 24 * GIB, safety_margin=0.0))
    bench.read(4 * GIB)
    (wait,) = bench.ask("asr@cuda:0/0", 8 * GIB)
    assert wait.id == 1 and "needs 8.0 GiB" in wait.reason and "4.0 GiB can be granted" in wait.reason
    for _ in range(59):
        bench.later(1.0)
        assert bench.read(4 * GIB) == []  # the reason is the same: said once
    bench.later(1.5)
    (denied,) = bench.read(4 * GIB)
    assert (denied.id, denied.code) == (1, "no_vram")
    assert "needs 8.0 GiB" in denied.reason
    assert bench.book.snapshot(bench.now)["waiting"] == []


def test_a_changed_reason_is_said_again():
    bench = Bench(Limits(GPU, 24 * GIB, safety_margin=0.0))
    bench.read(24 * GIB)
    (first,) = bench.ask("asr@cuda:0/0", 20 * GIB)
    (turn,) = bench.ask("nmt@cuda:0/0", 8 * GIB)
    assert "to load" in turn.reason
    bench.settle("asr@cuda:0/0", first.lease, 20 * GIB)
    bench.later(0.1)
    (room,) = bench.read(4 * GIB)
    assert isinstance(room, LeaseWait) and "needs 8.0 GiB" in room.reason


def test_patience_does_not_run_while_somebody_else_loads():
    bench = Bench(Limits(GPU, 24 * GIB, safety_margin=0.0))
    bench.read(24 * GIB)
    (first,) = bench.ask("asr@cuda:0/0", 20 * GIB)
    bench.ask("nmt@cuda:0/0", 8 * GIB)
    for _ in range(200):  # a long load
        bench.later(1.0)
        assert bench.read(24 * GIB) == []
    bench.settle("asr@cuda:0/0", first.lease, 20 * GIB)
    bench.later(0.1)
    (room,) = bench.read(4 * GIB)
    assert isinstance(room, LeaseWait)


def test_a_smaller_request_passes_one_that_does_not_fit_until_that_one_has_waited_half_its_time():
    bench = Bench(Limits(GPU, 24 * GIB, safety_margin=0.0))
    bench.read(10 * GIB)
    bench.ask("repair@cuda:0/0", 12 * GIB)
    bench.load("nmt@cuda:0/0", GIB, 9 * GIB)  # passes
    bench.later(31.0)
    bench.read(9 * GIB)
    (behind,) = bench.ask("tts@cuda:0/0", GIB)
    assert isinstance(behind, LeaseWait) and "repair@cuda:0/0" in behind.reason
    bench.later(1.0)
    answer, _ = bench.read(14 * GIB)  # room for the elder first
    assert (answer.id, type(answer)) == (1, Granted)


@pytest.mark.parametrize(("elder", "wait_s"), [("repair@cuda:0/0", None), ("lease@7/1", 60.0)])
@pytest.mark.parametrize(("priority", "limit_s"), [("normal", 30.0), ("high", 60.0)])
def test_loads_one_right_after_the_other_pass_one_that_does_not_fit_for_half_its_time_and_no_longer(
    elder: str, wait_s: float | None, priority: str, limit_s: float
):
    bench = Bench(Limits(GPU, 24 * GIB, safety_margin=0.0, max_models=99))
    free = 10 * GIB
    bench.read(free)
    (waits,) = bench.ask(elder, 12 * GIB, wait_s=wait_s)
    assert isinstance(waits, LeaseWait)
    begun, now = bench.now, bench.ask("small0@cuda:0/0", MIB, priority=priority)[0]
    for number in itertools.count():
        assert isinstance(now, Granted) and bench.now < begun + limit_s + 10.0
        bench.ask(f"small{number + 1}@cuda:0/0", MIB, priority=priority)  # the next one is there before it has loaded
        bench.later(10.0)
        bench.settle(f"small{number}@cuda:0/0", now.lease, MIB)
        bench.later(0.01)
        free -= MIB
        now = next((one for one in bench.read(free) if isinstance(one, Granted)), None)
        if now is None:
            break
    assert bench.now >= begun + limit_s
    bench.later(1.0)
    granted = bench.read(13 * GIB)[0]
    assert isinstance(granted, Granted) and granted.nbytes == 12 * GIB


@pytest.mark.parametrize(("wait_s", "until"), [(None, 30.0), (60.0, 30.0), (20.0, 10.0), (600.0, 570.0)])
def test_smaller_requests_pass_a_program_that_lacks_room_but_not_in_the_last_of_its_patience(wait_s, until):
    bench = Bench(Limits(GPU, 24 * GIB, safety_margin=0.0))
    bench.read(10 * GIB)
    bench.ask("lease@7/1", 12 * GIB, wait_s=wait_s)
    bench.later(until - 1)
    bench.read(10 * GIB)
    bench.load("tts@cuda:0/0", GIB, 9 * GIB)
    assert isinstance(bench.ask("lease@8/1", GIB)[0], Granted)
    bench.later(1)
    bench.read(8 * GIB)
    for worker in ("nmt@cuda:0/0", "lease@9/1"):
        (wait,) = bench.ask(worker, GIB)
        assert isinstance(wait, LeaseWait) and "behind lease@7/1" in wait.reason
    bench.later(1)
    granted = bench.read(13 * GIB)  # what comes back while nobody passes it is its own
    assert isinstance(granted[0], Granted) and granted[0].nbytes == 12 * GIB


def test_programs_however_many_hold_a_request_of_the_node_back_for_half_its_patience_and_no_longer():
    bench = Bench(Limits(GPU, 24 * GIB, safety_margin=0.0))
    bench.read(10 * GIB)
    for number in range(100):  # one after another: there is always one that may not be passed
        bench.later(1.0)
        bench.read(10 * GIB)
        bench.ask(f"lease@{number}/1", 12 * GIB, wait_s=60.0)
    assert isinstance(bench.ask("nmt@cuda:0/0", GIB)[0], LeaseWait)
    for number in range(100, 129):
        bench.later(1.0)
        assert not any(isinstance(one, Granted) for one in bench.read(10 * GIB)), number
        bench.ask(f"lease@{number}/1", 12 * GIB, wait_s=60.0)
    assert bench.book.due_in(bench.now) == pytest.approx(1.0)
    bench.later(1.0)
    (granted,) = [one for one in bench.read(10 * GIB) if isinstance(one, Granted)]
    assert granted.nbytes == GIB


def test_a_program_that_would_wait_for_a_month_stops_the_node_for_half_a_minute_of_it():
    bench = Bench(Limits(GPU, 24 * GIB, safety_margin=0.0))
    month_s = 30 * 86_400.0
    bench.read(10 * GIB)
    bench.ask("lease@7/1", 12 * GIB, wait_s=month_s)
    for _ in range(29):
        bench.later(86_399.0)
        bench.read(10 * GIB)
        granted = bench.ask("nmt@cuda:0/0", GIB)[0]
        assert isinstance(granted, Granted)
        bench.feed(FromWorker("nmt@cuda:0/0#1", Release(granted.lease)))
        bench.later(1.0)
        bench.read(10 * GIB)
    bench.later(86_400.0 - 29.0)
    bench.read(10 * GIB)
    assert isinstance(bench.ask("nmt@cuda:0/0", GIB)[0], LeaseWait)
    bench.later(29.0)
    said = bench.read(10 * GIB)
    assert [type(one) for one in said] == [Denied, Granted], "its patience is over, and so is that"


def test_a_high_priority_goes_before_those_that_wait_and_a_low_one_behind_them():
    bench = Bench(Limits(GPU, 24 * GIB, safety_margin=0.0))
    bench.read(GIB)
    for worker, priority in (("tts@cuda:0/0", "low"), ("nmt@cuda:0/0", "normal"), ("asr@cuda:0/0", "high")):
        bench.ask(worker, 2 * GIB, priority=priority)
    order = []
    for _ in range(3):
        granted = next(one for one in bench.read(20 * GIB) if isinstance(one, Granted))
        order.append(granted.id)
        worker = {1: "tts", 2: "nmt", 3: "asr"}[granted.id] + "@cuda:0/0"
        bench.settle(worker, granted.lease, 0)
        bench.later(0.1)
    assert order == [3, 2, 1]


def test_age_is_worth_as_much_as_a_priority():
    bench = Bench(Limits(GPU, 24 * GIB, safety_margin=0.0))
    bench.read(GIB)
    bench.ask("tts@cuda:0/0", 2 * GIB, priority="low")
    bench.later(31.0)
    bench.read(GIB)
    bench.ask("nmt@cuda:0/0", 2 * GIB)
    assert next(one for one in bench.read(2 * GIB) if isinstance(one, Granted)).id == 1, "none is passed for ever"


def test_a_priority_nobody_knows_is_denied_with_those_there_are():
    (denied,) = Bench().ask("asr@cuda:0/0", GIB, priority="urgent")
    assert "urgent" in denied.reason and "high, normal, low" in denied.reason


def test_a_request_that_waits_is_explained_in_words_and_in_numbers_that_add_up():
    bench = Bench(Limits(GPU, 24 * GIB, ceiling_bytes=20 * GIB))
    bench.read(20 * GIB)  # 4 GiB are other programs'
    bench.load("asr@cuda:0/0", 6 * GIB, 14 * GIB)
    bench.ask("nmt@cuda:0/0", 15 * GIB)
    bench.ask("repair@cuda:0/0", 16 * GIB)
    bench.later(10.0)
    bench.read(14 * GIB)
    first, second = bench.book.snapshot(bench.now)["waiting"]
    assert (first["ahead"], second["ahead"], second["waited_s"], second["patience_s"]) == (0, 1, 10.0, 50.0)
    assert first["kind"] == "room" and "needs 15.0 GiB" in first["reason"]
    by_driver = first["free_bytes"] - first["promised_bytes"]
    by_book = first["usable_bytes"] - first["held_bytes"] - first["promised_bytes"] - first["foreign_bytes"]
    assert first["room_bytes"] == min(by_driver, by_book) - first["margin_bytes"] < first["needs_bytes"]
    bench.later(21.0)  # half of its patience is gone: nobody passes it now
    bench.read(14 * GIB)
    _, second = bench.book.snapshot(bench.now)["waiting"]
    assert second["kind"] == "elder" and "nmt@cuda:0/0" in second["reason"]


def test_who_has_the_memory_that_a_request_lacks_is_named_the_largest_first_and_three_at_most():
    bench = Bench(Limits(GPU, 24 * GIB, safety_margin=0.0))
    bench.read(20 * GIB)  # 4 GiB are other programs'
    bench.ask("lease@7/1", 8 * GIB, model="trainer")
    for number in range(3):
        bench.ask(f"lease@8/{number}", 2 * GIB, model="small")
    bench.load("asr@cuda:0/0", 3 * GIB, 17 * GIB)
    bench.ask("nmt@cuda:0/0", 15 * GIB)
    bench.ask("tts@cuda:0/0", 16 * GIB)
    first, _ = bench.book.snapshot(bench.now)["waiting"]
    most = "trainer (lease@7/1) 8.0 GiB, programs without a lease 4.0 GiB, asr@cuda:0/0 3.0 GiB"
    assert first["kind"] == "room" and first["reason"].endswith(f"; taken by {most} and 3 more")


def test_a_program_that_was_asked_to_leave_and_has_not_is_named_to_who_waits_and_in_the_refusal():
    bench = Bench(Limits(GPU, 24 * GIB, safety_margin=0.0), waits=Waits(unreadable_s=100.0))
    bench.read(24 * GIB)
    bench.ask("lease@7/1", 20 * GIB, model="sh", preemptible=True)
    bench.ask("lease@8/1", GIB, model="other", preemptible=True)
    bench.later(1.0)
    bench.read(3 * GIB)
    bench.ask("asr@cuda:0/0", 10 * GIB)

    def leaving() -> list[str]:
        return bench.book.snapshot(bench.now)["waiting"][0]["leaving"]

    assert leaving() == ["sh (lease@7/1)", "other (lease@8/1)"]
    bench.feed(Gone("lease@8/1", 1, "ended"))
    bench.later(Waits().grace_s)
    bench.read(4 * GIB)
    assert leaving() == ["sh (lease@7/1, overdue)"]
    bench.later(Waits().lease_wait_s)
    (denied,) = bench.read(4 * GIB)
    assert "needs 10.0 GiB" in denied.reason
    assert denied.reason.endswith("; asked to leave and still there: sh (lease@7/1, overdue)")


def test_what_a_worker_took_beyond_the_ceiling_it_asks_for_as_far_as_that_goes():
    bench = Bench(Limits(GPU, 24 * GIB, safety_margin=0.0, ceiling_bytes=8 * GIB))
    bench.list({})
    (granted,) = bench.ask("asr@cuda:0/0", 4 * GIB, pid=7)
    bench.settle("asr@cuda:0/0", granted.lease)
    bench.list({7: 12 * GIB})
    bench.feed(Gone("asr@cuda:0/0", 1, "ended"))
    bench.list({})
    (granted,) = bench.ask("asr@cuda:0/0", 4 * GIB, incarnation=2, pid=8)
    assert granted.nbytes == 8 * GIB


def test_nobody_has_had_less_than_nothing_before_it_asked():
    bench = Bench()
    bench.list({})
    bench.ask("asr@cuda:0/0", 4 * GIB, pid=7, base_bytes=-GIB)
    bench.list({7: 2 * GIB})
    assert (bench.row()["held_bytes"], bench.row()["foreign_bytes"]) == (2 * GIB, 0)


def test_a_request_ends_in_its_time_also_where_the_memory_cannot_be_read():
    bench = Bench()
    bench.ask("asr@cuda:0/0", GIB)
    bench.later(Waits().lease_wait_s + 1)
    (denied,) = bench.feed(Tick())
    assert isinstance(denied, Denied) and denied.reason == "the memory of cuda:0 cannot be read"


def test_who_waits_or_holds_is_known_and_who_has_let_go_is_not():
    bench = Bench(Limits(GPU, 24 * GIB, safety_margin=0.0))
    bench.read(24 * GIB)
    (granted,) = bench.ask("lease@7/1", 20 * GIB)
    bench.later(0.1)
    bench.read(4 * GIB)
    bench.ask("lease@8/1", 10 * GIB)
    assert bench.book.knows("lease@7/1#1") and bench.book.knows("lease@8/1#1")
    bench.feed(FromWorker("lease@7/1#1", Release(granted.lease)))
    assert "draining" in bench.states() and not bench.book.knows("lease@7/1#1")


def test_the_book_looks_again_when_a_program_that_was_asked_to_leave_is_overdue():
    bench = Bench(Limits(GPU, 24 * GIB, safety_margin=0.0), waits=Waits(lease_wait_s=600.0))
    bench.read(24 * GIB)
    bench.ask("lease@7/1", 20 * GIB, preemptible=True)
    bench.later(0.1)
    bench.read(4 * GIB)
    bench.ask("asr@cuda:0/0", 10 * GIB)
    assert bench.book.due_in(bench.now) == pytest.approx(Waits().grace_s)


def test_who_stands_far_back_in_a_long_line_is_told_that_and_more_when_it_comes_to_the_front():
    bench = Bench(Limits(GPU, 24 * GIB, safety_margin=0.0))
    bench.read(GIB)
    first = [bench.ask(f"lease@{pid}/1", 8 * GIB) for pid in range(1, 17)]
    assert all("needs 8.0 GiB" in one.reason for (one,) in first)
    (behind,) = bench.ask("asr@cuda:0/0", 2 * GIB)
    assert behind.reason == "more than 16 requests wait before it"
    assert bench.feed(Tick()) == []
    (told,) = bench.feed(Gone("lease@1/1", 1, "ended"))
    assert told.id == behind.id and "needs 2.0 GiB" in told.reason


def test_at_most_max_models_models_on_a_device_where_instances_of_one_are_one():
    bench = Bench(Limits(GPU, 24 * GIB, max_models=2))
    bench.read(24 * GIB)
    bench.load("asr@cuda:0/0", GIB, 23 * GIB, model="w")
    bench.load("nmt@cuda:0/0", GIB, 22 * GIB, model="m")
    bench.load("asr@cuda:0/1", GIB, 21 * GIB, model="w")
    (wait,) = bench.ask("tts@cuda:0/0", GIB, model="v")
    assert isinstance(wait, LeaseWait) and "max_models" in wait.reason


def test_where_all_places_are_taken_more_workers_of_a_model_there_and_programs_pass_one_another_as_anywhere() -> None:
    """The one that lacks room is passed for half its patience, and what comes back then is its own."""
    bench = Bench(Limits(GPU, 24 * GIB, max_models=1, safety_margin=0.0))
    bench.read(20 * GIB)
    bench.load("asr@cuda:0/0", 12 * GIB, 8 * GIB)
    (lacks_room,) = bench.ask("asr@cuda:0/1", 10 * GIB)
    (lacks_place,) = bench.ask("nmt@cuda:0/0", GIB)
    assert "needs 10.0 GiB" in lacks_room.reason and "max_models" in lacks_place.reason
    bench.load("asr@cuda:0/2", GIB, 7 * GIB)  # passes
    assert isinstance(bench.ask("lease@7/1", GIB)[0], Granted)
    bench.later(31.0)
    bench.read(6 * GIB)
    for worker in ("asr@cuda:0/3", "lease@8/1"):
        (wait,) = bench.ask(worker, GIB)
        assert isinstance(wait, LeaseWait) and "waiting behind asr@cuda:0/1" in wait.reason
    bench.later(1.0)
    granted = bench.read(10 * GIB)[0]  # other programs have left
    assert isinstance(granted, Granted) and granted.id == lacks_room.id


def test_who_waits_for_a_place_among_the_models_however_long_keeps_nobody_from_what_it_cannot_have() -> None:
    bench = Bench(Limits(GPU, 24 * GIB, max_models=1, safety_margin=0.0))
    bench.read(24 * GIB)
    bench.load("asr@cuda:0/0", 12 * GIB, 12 * GIB)
    bench.ask("nmt@cuda:0/0", 14 * GIB)
    bench.later(31.0)
    bench.read(12 * GIB)
    bench.load("asr@cuda:0/1", GIB, 11 * GIB)
    assert isinstance(bench.ask("lease@7/1", GIB)[0], Granted)


def test_programs_outside_the_node_are_no_models_and_wait_for_no_place_among_them():
    bench = Bench(Limits(GPU, 24 * GIB, max_models=2, safety_margin=0.0))
    bench.read(24 * GIB)
    bench.load("asr@cuda:0/0", GIB, 23 * GIB)
    assert isinstance(bench.ask("lease@7/1", GIB)[0], Granted)
    bench.later(0.1)
    bench.read(22 * GIB)
    bench.load("nmt@cuda:0/0", GIB, 21 * GIB)
    assert isinstance(bench.ask("tts@cuda:0/0", GIB)[0], LeaseWait), "two models"
    assert isinstance(bench.ask("lease@8/1", GIB)[0], Granted)
    bench.feed(Gone("tts@cuda:0/0", 1))
    (wait,) = bench.ask("lease@9/1", 20 * GIB + 1)
    assert f"needs {20 * GIB + 1} bytes" in wait.reason, "it lacks room, and nothing else"


def test_what_is_still_lacking_is_said_again_when_a_lease_has_ended_or_never_will():
    """The scheduler lets one go at a time."""
    bench = Bench(Limits(GPU, 24 * GIB, safety_margin=0.0))
    two_held(bench)
    bench.ask("tts@cuda:0/0", 20 * GIB)
    assert [one.nbytes for one in bench.told] == [12 * GIB]
    bench.feed(Gone("asr@cuda:0/0", 1))
    assert [one.nbytes for one in bench.told] == [12 * GIB, 4 * GIB], "the rest is on its way back"
    bench.later(0.1)
    bench.read(16 * GIB)
    assert [one.nbytes for one in bench.told] == [12 * GIB, 4 * GIB, 4 * GIB]
    stuck = Bench(Limits(GPU, 24 * GIB, safety_margin=0.0))
    two_held(stuck)
    stuck.ask("tts@cuda:0/0", 14 * GIB)
    stuck.feed(Gone("asr@cuda:0/0", 1, "killed", final=True, stuck=True))
    assert [one.nbytes for one in stuck.told] == [6 * GIB, 6 * GIB]


def test_nothing_is_granted_upon_an_old_reading_or_none():
    bench = Bench()
    assert bench.ask("asr@cuda:0/0", GIB) == []  # the first reading is on its way
    bench.later(2.5)
    (wait,) = bench.feed(Tick())
    assert isinstance(wait, LeaseWait) and "cannot be read" in wait.reason
    (granted,) = bench.read(24 * GIB)
    assert isinstance(granted, Granted)
    bench.settle("asr@cuda:0/0", granted.lease, GIB)
    bench.later(0.1)
    bench.read(23 * GIB)
    bench.later(2.1)
    (wait,) = bench.ask("nmt@cuda:0/0", GIB)
    assert "cannot be read" in wait.reason
    assert isinstance(bench.read(23 * GIB)[0], Granted)


def test_a_dead_holders_bytes_count_until_the_driver_shows_them_back():
    bench = Bench(Limits(GPU, 24 * GIB, safety_margin=0.0))
    bench.read(24 * GIB)
    bench.load("asr@cuda:0/0", 20 * GIB, 4 * GIB)
    bench.feed(Gone("asr@cuda:0/0", 1))
    bench.ask("asr@cuda:0/0", 20 * GIB, incarnation=2)
    bench.later(1.0)
    bench.read(4 * GIB)  # the driver lags
    assert bench.states() == ["draining"]
    bench.later(1.0)
    (granted,) = bench.read(24 * GIB)
    assert (type(granted), bench.states()) == (Granted, ["granted"])


def test_what_somebody_took_just_before_its_death_is_its_own_until_it_is_shown_back():
    bench = Bench(Limits(GPU, 24 * GIB, safety_margin=0.0))
    bench.read(24 * GIB)
    (outside,) = bench.ask("lease@7/1", 8 * GIB)  # takes nothing yet
    (granted,) = bench.ask("asr@cuda:0/0", 10 * GIB)
    assert isinstance(outside, Granted) and isinstance(granted, Granted)
    bench.feed(Gone("asr@cuda:0/0", 1, "killed"))  # it had taken all of it, and nobody had looked
    bench.later(0.1)
    bench.read(14 * GIB)
    assert bench.row()["grantable_bytes"] == 6 * GIB, "8 promised, 10 on their way back"
    bench.later(0.1)
    bench.read(24 * GIB)
    assert bench.row()["grantable_bytes"] == 16 * GIB


def test_what_appears_after_the_first_reading_without_it_is_not_the_deads():
    bench = Bench(Limits(GPU, 24 * GIB, safety_margin=0.0))
    two_held(bench)
    bench.feed(Gone("asr@cuda:0/0", 1, "killed"))
    bench.later(0.1)
    bench.read(12 * GIB)  # half of its 8 GiB
    bench.ask("tts@cuda:0/0", 6 * GIB)
    bench.later(0.1)
    bench.read(9 * GIB)
    held = {row["worker"]: row["held_bytes"] // GIB for row in bench.book.snapshot(bench.now)["leases"]}
    assert held == {"asr@cuda:0/0#1": 4, "nmt@cuda:0/0#1": 8, "tts@cuda:0/0#1": 3}


def test_nothing_is_a_deficit_before_anybody_has_looked():
    bench = Bench(Limits(GPU, 24 * GIB, safety_margin=0.0), waits=Waits(settle_s=0.5))
    bench.read(24 * GIB)
    bench.ask("asr@cuda:0/0", 10 * GIB)
    bench.feed(Gone("asr@cuda:0/0", 1, "killed"))
    bench.later(1.0)
    assert bench.feed(Tick()) == [] and bench.states() == ["draining"]
    (wait,) = bench.ask("nmt@cuda:0/0", 15 * GIB)
    assert isinstance(wait, LeaseWait) and bench.book.due_in(bench.now) != 0.0


def test_what_is_not_shown_back_in_time_is_a_deficit_and_ends_when_it_is():
    bench = Bench(Limits(GPU, 24 * GIB, safety_margin=0.0))
    bench.read(24 * GIB)
    bench.load("asr@cuda:0/0", 20 * GIB, 4 * GIB)
    bench.feed(Gone("asr@cuda:0/0", 1))
    bench.later(5.1)
    bench.read(4 * GIB)
    assert (bench.states(), bench.row()["deficit_bytes"]) == (["deficit"], 20 * GIB)
    assert bench.row()["grantable_bytes"] == 4 * GIB
    bench.later(DOUBT_S - 0.1)
    bench.read(4 * GIB)
    assert (bench.states(), bench.row()["foreign_bytes"]) == (["deficit"], 0), "it may be late"
    bench.later(0.05)
    bench.read(24 * GIB)
    assert (bench.states(), bench.row()["grantable_bytes"]) == ([], 24 * GIB)


def test_host_memory_is_back_with_the_first_reading_after_a_death():
    bench = Bench(Limits("cpu", 16 * GIB, returns_at_once=True))
    bench.read(16 * GIB, 16 * GIB, "cpu")
    (granted,) = bench.ask("asr@cpu/0", 4 * GIB, device="cpu")
    bench.settle("asr@cpu/0", granted.lease, 4 * GIB)
    bench.later(0.1)
    bench.read(12 * GIB, 16 * GIB, "cpu")
    bench.feed(Gone("asr@cpu/0", 1))
    assert bench.states() == ["draining"]
    bench.read(12 * GIB, 16 * GIB, "cpu", taken_at=bench.now - 0.05)  # from before the death
    assert bench.states() == ["draining"]
    bench.later(0.1)
    bench.read(13 * GIB, 16 * GIB, "cpu")  # another program has taken the rest meanwhile
    assert bench.states() == []


def test_a_frame_of_the_dead_that_comes_late_gets_no_lease():
    bench = Bench()
    bench.read(24 * GIB)
    bench.feed(Gone("asr@cuda:0/0", 3))
    assert bench.ask("asr@cuda:0/0", GIB, incarnation=3) == []
    assert bench.ask("asr@cuda:0/0", GIB, incarnation=2) == []
    assert isinstance(bench.ask("asr@cuda:0/0", GIB, incarnation=4)[0], Granted)


def test_a_question_repeated_gets_the_same_answer_and_no_second_lease():
    bench = Bench()
    bench.read(24 * GIB)
    question = FromWorker("asr@cuda:0/0#1", LeaseRequest(7, "asr@cuda:0/0", GPU, GIB))
    assert bench.feed(question) == bench.feed(question)
    waiting = FromWorker("nmt@cuda:0/0#1", LeaseRequest(8, "nmt@cuda:0/0", GPU, GIB))
    assert bench.feed(waiting) == bench.feed(waiting)
    assert bench.states() == ["granted"]


def test_nobody_ends_a_lease_that_is_not_its_own():
    bench = Bench()
    bench.read(24 * GIB)
    (granted,) = bench.ask("asr@cuda:0/0", GIB)
    bench.feed(FromWorker("nmt@cuda:0/0#1", Release(granted.lease)))
    bench.feed(FromWorker("nmt@cuda:0/0#1", Settled(granted.lease)))
    assert bench.states() == ["granted"]


def test_a_dying_worker_with_two_questions_leaves_nothing_granted():
    bench = Bench()
    bench.read(24 * GIB)
    bench.ask("asr@cuda:0/0", GIB)
    bench.ask("asr@cuda:0/0", GIB)
    assert bench.feed(Gone("asr@cuda:0/0", 1)) == []
    assert bench.states() == ["draining"]


# ---------------------------------------------------------------- when the arbiter dies


def test_a_question_whose_lease_is_over_or_lost_is_a_new_one():
    bench = Bench(Limits("cuda:0", 24 * GIB), Limits("cuda:1", 24 * GIB))
    bench.read(24 * GIB, device="cuda:0"), bench.read(24 * GIB, device="cuda:1")

    def ask(device: str) -> Any:
        (answer,) = bench.feed(FromWorker("lease@7/1#1", LeaseRequest(1, "x", device, GIB)))
        return answer

    first = ask("cuda:0")
    bench.later(0.1)
    bench.read(23 * GIB, device="cuda:0")
    bench.feed(FromWorker("lease@7/1#1", Release(first.lease)))  # and its memory is not back yet
    second = ask("cuda:0")
    assert isinstance(second, Granted) and second.lease != first.lease
    bench.feed(DeviceLost("cuda:0", "it fell off the bus"))
    denied = ask("cuda:0")
    assert isinstance(denied, Denied) and "quarantined" in denied.reason
    third = ask("cuda:1")
    assert isinstance(third, Granted) and third.device == "cuda:1"


def test_a_grant_whose_answer_got_lost_with_the_arbiter_is_given_again_and_not_twice():
    bench = Bench()
    bench.read(24 * GIB)
    question = FromWorker("asr@cuda:0/0#1", LeaseRequest(7, "asr@cuda:0/0", GPU, GIB))
    lost = bench.feed(question)
    bench.arbiter_dies()
    assert bench.feed(question) == lost
    assert bench.states() == ["granted"]


def test_a_load_in_flight_keeps_its_turn_when_the_arbiter_dies_until_its_holder_speaks():
    bench = Bench()
    bench.read(24 * GIB)
    (granted,) = bench.ask("asr@cuda:0/0", GIB)
    bench.arbiter_dies()
    bench.read(24 * GIB)
    (wait,) = bench.ask("nmt@cuda:0/0", GIB)
    assert "asr@cuda:0/0 to load" in wait.reason
    bench.settle("asr@cuda:0/0", granted.lease, GIB)
    bench.later(0.1)
    (second,) = bench.read(23 * GIB)
    assert (type(second), second.lease) == (Granted, granted.lease + 1)


def test_a_load_in_flight_whose_holder_has_died_meanwhile_ends_with_the_supervisors_word():
    bench = Bench()
    bench.read(24 * GIB)
    bench.ask("asr@cuda:0/0", GIB)
    bench.arbiter_dies()
    bench.read(24 * GIB)
    bench.ask("nmt@cuda:0/0", GIB)
    (granted,) = bench.feed(Gone("asr@cuda:0/0", 1))
    assert (type(granted), bench.states()) == (Granted, ["draining", "granted"])


def test_after_the_arbiters_death_the_book_still_knows_whose_memory_is_whose():
    bench = Bench(Limits(GPU, 24 * GIB, safety_margin=0.0))
    bench.read(20 * GIB)  # 4 are another program's
    bench.load("asr@cuda:0/0", 8 * GIB, 12 * GIB)
    bench.ask("nmt@cuda:0/0", 6 * GIB)
    bench.later(0.1)
    bench.read(10 * GIB)  # 2 of its 6 are there
    before = bench.row()
    bench.arbiter_dies()
    assert bench.row() == before
    bench.later(0.1)
    bench.read(5 * GIB)  # the other 4, and another program's 1
    assert (bench.row()["foreign_bytes"], bench.row()["held_bytes"]) == (5 * GIB, 14 * GIB)


def test_after_the_arbiters_death_nothing_is_granted_before_it_has_read_the_memory_itself():
    bench = Bench()
    bench.read(24 * GIB)
    bench.arbiter_dies()
    assert bench.ask("asr@cuda:0/0", GIB) == []  # milliseconds: not worth telling
    assert isinstance(bench.read(23 * GIB)[0], Granted)
    bench.later(9.0)
    bench.arbiter_dies()
    assert bench.ask("asr@cuda:0/1", GIB, incarnation=2) != []  # its turn
    bench.feed(Gone("asr@cuda:0/0", 1))
    bench.later(2.5)
    (wait,) = bench.feed(Tick())
    assert "cannot be read" in wait.reason


def test_what_was_measured_before_the_arbiters_death_is_settled_by_a_later_reading():
    bench = Bench(Limits(GPU, 24 * GIB, safety_margin=0.0))
    bench.read(24 * GIB)
    (granted,) = bench.ask("asr@cuda:0/0", 8 * GIB)
    bench.later(0.1)
    bench.read(16 * GIB)
    bench.settle("asr@cuda:0/0", granted.lease, 5 * GIB)
    bench.arbiter_dies()
    bench.settle("asr@cuda:0/0", granted.lease, 5 * GIB)  # its last words, again
    bench.later(0.1)
    bench.read(16 * GIB)
    assert (bench.states(), bench.row()["held_bytes"], bench.row()["foreign_bytes"]) == (["held"], 5 * GIB, 3 * GIB)


def test_last_words_about_a_failed_load_may_be_said_again():
    bench = Bench()
    bench.read(24 * GIB)
    (granted,) = bench.ask("asr@cuda:0/0", 8 * GIB)
    for _ in range(2):
        bench.settle("asr@cuda:0/0", granted.lease, ok=False)
        bench.feed(FromWorker("asr@cuda:0/0#1", Release(granted.lease)))
        assert bench.states() == ["draining"]
        bench.arbiter_dies()


def test_a_dead_holders_bytes_count_beyond_the_arbiters_death():
    bench = Bench(Limits(GPU, 24 * GIB, safety_margin=0.0))
    bench.read(24 * GIB)
    bench.load("asr@cuda:0/0", 20 * GIB, 4 * GIB)
    bench.feed(Gone("asr@cuda:0/0", 1))
    bench.arbiter_dies()
    bench.feed(Gone("asr@cuda:0/0", 1))  # the supervisor says it again
    bench.later(1.0)
    bench.read(4 * GIB)
    assert bench.states() == ["draining"]
    bench.later(5.0)
    bench.read(4 * GIB)
    assert (bench.states(), bench.row()["deficit_bytes"]) == (["deficit"], 20 * GIB)
    bench.arbiter_dies()
    bench.later(0.1)
    bench.read(23 * GIB)  # nearly all of it
    assert (bench.states(), bench.row()["grantable_bytes"]) == ([], 23 * GIB)


def test_the_dead_stay_dead_when_the_arbiter_dies():
    bench = Bench()
    bench.feed(Gone("asr@cuda:0/0", 3))
    bench.arbiter_dies()
    bench.read(24 * GIB)
    assert bench.ask("asr@cuda:0/0", GIB, incarnation=3) == []
    assert isinstance(bench.ask("asr@cuda:0/0", GIB, incarnation=4)[0], Granted)


def test_no_number_is_given_twice_even_when_all_leases_are_over():
    bench = Bench(Limits(GPU, 24 * GIB, returns_at_once=True))
    bench.read(24 * GIB)
    first = bench.load("asr@cuda:0/0", GIB, 23 * GIB)
    bench.feed(Gone("asr@cuda:0/0", 1))
    bench.later(0.1)
    bench.read(24 * GIB)
    assert bench.states() == []
    bench.arbiter_dies()
    bench.read(24 * GIB)
    assert bench.ask("nmt@cuda:0/0", GIB)[0].lease > first


def test_load_times_outlive_the_arbiter():
    bench = Bench()
    bench.read(24 * GIB)
    bench.load("asr@cuda:0/0", GIB, 23 * GIB, model="whisper")
    before = bench.book.snapshot(bench.now)["load_times_ms"]
    bench.arbiter_dies()
    assert bench.book.snapshot(bench.now)["load_times_ms"] == before == {"whisper": 0.0}


def test_leases_of_a_device_this_node_has_not_are_left_out():
    bench = Bench(Limits(GPU, 24 * GIB), Limits("cuda:1", 24 * GIB))
    bench.read(24 * GIB, device="cuda:1")
    bench.ask("asr@cuda:1/0", GIB, device="cuda:1")
    book = Leases([Limits(GPU, 24 * GIB)], Waits())
    book.restore(bench.book.keep())
    book.check()
    assert book.snapshot(bench.now)["leases"] == []


def test_what_is_kept_does_not_change_with_the_book():
    bench = Bench()
    bench.read(24 * GIB)
    (granted,) = bench.ask("asr@cuda:0/0", GIB)
    left = bench.book.keep()
    before = kept.encode(left)
    bench.settle("asr@cuda:0/0", granted.lease, GIB)
    bench.feed(Gone("asr@cuda:0/0", 1))
    assert kept.encode(left) == before


@pytest.mark.parametrize(
    "damage", [lambda _: b"", lambda _: b"\xff", lambda data: data.replace(b"leases 5", b"leases 4")]
)
def test_what_another_version_kept_is_refused(damage):
    data = kept.encode(Bench().book.keep())
    assert kept.encode(kept.decode(data)) == data
    with pytest.raises(ValueError):
        kept.decode(damage(data))


# ---------------------------------------------------------------- looking, and the table


def test_the_report_has_the_fields_operators_read():
    bench = Bench()
    bench.read(24 * GIB)
    bench.load("asr@cuda:0/0", GIB, 23 * GIB, model="whisper")
    bench.ask("nmt@cuda:0/0", GIB)
    bench.ask("tts@cuda:0/0", GIB)
    report = bench.book.snapshot(bench.now)
    assert {"total_bytes", "free_bytes", "grantable_bytes", "held_bytes", "foreign_bytes", "snapshot_age_ms"} <= set(
        report["devices"][GPU]
    )
    assert {"lease", "worker", "device", "nbytes", "state", "measured_bytes"} <= set(report["leases"][0])
    assert {"id", "worker", "device", "nbytes", "reason"} <= set(report["waiting"][0])
    assert set(report["load_times_ms"]) == {"whisper"}


@pytest.mark.parametrize("before", LeaseState)
@pytest.mark.parametrize("after", LeaseState)
def test_a_lease_moves_by_its_table_and_an_illegal_move_changes_nothing(before, after):
    lease = Lease("asr@cpu/0#1", 1, "cpu", GIB, "", before, 1.0)
    if after in MOVES[before]:
        move(lease, after, 2.0)
        assert (lease.state, lease.since) == (after, 2.0)
        return
    with pytest.raises(IllegalMove):
        move(lease, after, 2.0)
    assert (lease.state, lease.since) == (before, 1.0)


def test_time_alone_is_asked_for_when_it_matters():
    bench = Bench(Limits(GPU, 24 * GIB, safety_margin=0.0))
    assert bench.book.due_in(bench.now) is None
    bench.read(4 * GIB)
    bench.ask("asr@cuda:0/0", 8 * GIB)
    assert bench.book.due_in(bench.now) == pytest.approx(30.0)
    bench.later(31.0)
    bench.read(4 * GIB)
    assert bench.book.due_in(bench.now) == pytest.approx(29.0)


def test_what_a_worker_is_told_stands_in_the_log_in_words():
    assert words.told("asr@cpu/0#1", Granted(1, 2, 3 * 2**20)) == "asr@cpu/0 is granted 3 MiB"
    assert words.told("lease@7/1#99", Granted(1, 2, 6 * 2**30)) == "lease@7/1 is granted 6.0 GiB"
    assert words.told("asr@cpu/0#1", Denied("too large", "no_vram", 1)) == "asr@cpu/0 gets no memory: too large"


def test_what_the_scheduler_says_of_workers_is_not_logged_twice_and_of_programs_all_is():
    for message in (Denied("too large", "no_vram", 1), LeaseWait("no room")):
        assert words.is_told_elsewhere("asr@cpu/0#1", message)
        assert not words.is_told_elsewhere("lease@7/1#99", message)
    assert not words.is_told_elsewhere("asr@cpu/0#1", Granted(1, 2, 3))


def test_a_load_while_a_neighbours_memory_comes_back_leaves_no_deficit_for_ever():
    """Between two readings 8 GiB come back and 3 are taken: a sum cannot tell that from 5 coming back."""
    bench = Bench(Limits(GPU, 24 * GIB, safety_margin=0.0))
    two_held(bench)
    bench.feed(Gone("nmt@cuda:0/0", 1))
    bench.later(0.1)
    (granted,) = bench.ask("tts@cuda:0/0", 3 * GIB)
    bench.later(0.1)
    bench.read(13 * GIB)  # 8 free before, 8 back, 3 taken
    bench.settle("tts@cuda:0/0", granted.lease)
    for _ in range(24):
        bench.later(0.5)
        bench.read(13 * GIB)
    assert bench.states() == ["held", "held"], "nmt has long given all back"
    assert bench.row()["grantable_bytes"] == 13 * GIB


def grow(bench: Bench, worker: str, nbytes: int, wait_s: float = 5.0, pid: int = 0) -> list:
    message = LeaseRequest(next(bench._ids), worker, GPU, nbytes, "", wait_s, grows=True, pid=pid)
    return bench.feed(FromWorker(f"{worker}#1", message))


def test_a_model_that_takes_more_than_was_thought_leases_more_and_nobody_else_is_granted_that():
    bench = Bench(Limits(GPU, 24 * GIB, safety_margin=0.0))
    bench.read(24 * GIB)
    bench.load("asr@cuda:0/0", 10 * GIB, 14 * GIB)
    (granted,) = grow(bench, "asr@cuda:0/0", 4 * GIB)
    assert isinstance(granted, Granted) and bench.states() == ["held", "held"], "nobody waits for it to have loaded"
    assert bench.row()["grantable_bytes"] == 10 * GIB
    assert isinstance(bench.ask("nmt@cuda:0/0", 10 * GIB)[0], Granted), "and it takes nobody's turn"


def test_what_a_model_has_leased_besides_ends_with_it():
    bench = Bench(Limits(GPU, 24 * GIB, safety_margin=0.0))
    bench.read(24 * GIB)
    bench.load("asr@cuda:0/0", 10 * GIB, 14 * GIB)
    grow(bench, "asr@cuda:0/0", 4 * GIB)
    bench.arbiter_dies()
    bench.feed(Gone("asr@cuda:0/0", 1))
    bench.later(0.1)
    bench.read(24 * GIB)
    assert bench.states() == [] and bench.row()["grantable_bytes"] == 24 * GIB


def test_more_than_there_is_is_waited_for_as_long_as_was_said_and_then_denied():
    bench = Bench(Limits(GPU, 24 * GIB, safety_margin=0.0))
    bench.read(24 * GIB)
    bench.load("asr@cuda:0/0", 10 * GIB, 2 * GIB)
    assert isinstance(grow(bench, "asr@cuda:0/0", 4 * GIB)[0], LeaseWait)
    bench.later(5.1)
    assert isinstance(bench.read(2 * GIB)[0], Denied)
    assert bench.states() == ["held"], "what it has stays"


def test_a_device_without_memory_of_its_own_stands_in_the_book_whose_memory_it_shares():
    bench = Bench(Limits("cpu", 24 * GIB, safety_margin=0.0), books={GPU: "cpu"})
    bench.read(24 * GIB, device="cpu")
    (first,) = bench.ask("asr@cuda:0/0", 10 * GIB)
    bench.settle("asr@cuda:0/0", first.lease)
    bench.read(24 * GIB, device="cpu", taken_at=bench.now + 0.1)
    assert bench.row("cpu")["grantable_bytes"] == 14 * GIB
    (refused,) = bench.ask("nmt@cpu/0", 15 * GIB, device="cpu")
    assert isinstance(refused, LeaseWait) and "on cpu" in refused.reason


def test_a_part_of_a_shared_device_is_what_this_node_takes_whatever_others_use():
    bench = Bench(Limits(GPU, 24 * GIB, ceiling_bytes=10 * GIB, safety_margin=0.0, ceiling_is_own=True))
    bench.read(12 * GIB)  # another node has its 12
    assert bench.row()["grantable_bytes"] == 10 * GIB
    bench.load("asr@cuda:0/0", 8 * GIB, 4 * GIB)
    assert bench.row()["grantable_bytes"] == 2 * GIB
    bench.read(GIB)  # others have taken more than was agreed: what is there counts
    assert bench.row()["grantable_bytes"] == GIB


def test_the_book_does_not_grow_with_every_program_that_ever_held_a_lease():
    bench = Bench(Limits(GPU, 24 * GIB, safety_margin=0.0))
    sizes = []
    for pid in range(2 * OVER):
        bench.read(24 * GIB)
        bench.ask(f"lease@{pid}/0", GIB)
        bench.feed(Gone(f"lease@{pid}/0", 1))
        bench.later(0.1)
        bench.read(24 * GIB)
        bench.later(0.1)
        sizes.append(len(kept.encode(bench.book.keep())))
    assert sizes[-1] <= sizes[OVER] + 100


def test_a_lease_that_is_over_is_reported_for_a_while_also_by_the_next_arbiter():
    bench = Bench(Limits(GPU, 24 * GIB, safety_margin=0.0))
    bench.read(24 * GIB)
    bench.ask("asr@cuda:0/0", GIB)
    granted_at = bench.now
    bench.later(0.1)
    bench.feed(Gone("asr@cuda:0/0", 1))
    left_at = bench.now
    bench.later(0.1)
    bench.read(24 * GIB)
    bench.ask("nmt@cuda:0/0", GIB)
    for _ in range(2):
        report = bench.book.snapshot(bench.now)
        assert [row["worker"] for row in report["leases"]] == ["nmt@cuda:0/0#1"]
        (over,) = report["over"]
        assert (over["worker"], over["state"], over["nbytes"]) == ("asr@cuda:0/0#1", "released", GIB)
        assert (over["granted_s"], over["left_s"], report["last_lease"]) == (granted_at, left_at, 2)
        bench.arbiter_dies()
    bench.later(OVER_S)
    bench.feed(Tick())
    assert bench.book.snapshot(bench.now)["over"] == []


# ---------------------------------------------------------------- a driver that lists processes


ASR, NMT, PROGRAM, GAME = 101, 102, 103, 9  # processes


def listed_bench() -> Bench:
    """asr has 5 GiB of its 8, and the driver lists it."""
    bench = Bench(Limits(GPU, 24 * GIB, safety_margin=0.0))
    bench.read(24 * GIB)
    (granted,) = bench.ask("asr@cuda:0/0", 8 * GIB, pid=ASR)
    bench.later(0.1)
    bench.list({ASR: 5 * GIB})
    bench.settle("asr@cuda:0/0", granted.lease)
    bench.later(0.1)
    bench.list({ASR: 5 * GIB})
    return bench


def test_another_programs_growth_beside_a_lease_that_may_grow_is_not_that_leases():
    bench = listed_bench()
    bench.list({ASR: 5 * GIB, GAME: 3 * GIB})
    assert (bench.row()["held_bytes"], bench.row()["foreign_bytes"]) == (5 * GIB, 3 * GIB)
    assert bench.row()["grantable_bytes"] == 13 * GIB  # 16 free, 3 of them asr's


def test_nor_is_growth_that_the_driver_lists_with_nobody():
    bench = listed_bench()
    bench.list({ASR: 5 * GIB}, unlisted=3 * GIB)
    assert bench.row()["grantable_bytes"] == 13 * GIB


@pytest.mark.parametrize(
    "listed", [None, {}, {70_001: 5 * GIB}, {ASR: 5 * GIB, 70_001: 5 * GIB}], ids=["silent", "none", "others", "chance"]
)
def test_a_driver_that_lists_nobody_or_by_other_numbers_tells_a_sum_and_that_has_its_limit(
    listed: dict[int, int] | None,
):
    """WSL and containers. 3 GiB of a game go for asr's, and what asr may yet take is granted a second time.

    A process of the host may have asr's number, if it was there before asr.
    """
    bench = Bench(Limits(GPU, 34 * GIB, safety_margin=0.0))
    all_listed = sum((listed or {}).values())
    before = {pid: nbytes for pid, nbytes in (listed or {}).items() if pid == ASR}
    bench.list(before, unlisted=10 * GIB - sum(before.values()), total=34 * GIB)
    (granted,) = bench.ask("asr@cuda:0/0", 8 * GIB, pid=ASR)
    bench.settle("asr@cuda:0/0", granted.lease)
    bench.later(0.1)
    bench.list(listed, unlisted=15 * GIB - all_listed, total=34 * GIB)
    assert (bench.row()["held_bytes"], bench.row()["foreign_bytes"]) == (5 * GIB, 10 * GIB)
    bench.list(listed, unlisted=18 * GIB - all_listed, total=34 * GIB)
    assert (bench.row()["held_bytes"], bench.row()["foreign_bytes"]) == (8 * GIB, 10 * GIB)
    assert bench.row()["grantable_bytes"] == 16 * GIB, "13 would be right"


def test_an_empty_list_says_that_nobody_has_anything_once_the_driver_has_listed_us():
    bench = listed_bench()
    bench.ask("lease@103/1", 4 * GIB, pid=PROGRAM)
    bench.feed(Gone("asr@cuda:0/0", 1))
    bench.later(0.1)
    bench.list({})
    bench.list({GAME: 4 * GIB})
    assert bench.row()["grantable_bytes"] == 16 * GIB, "the game's 4 are not the program's"


def test_what_a_holder_has_beyond_its_lease_is_its_own_where_it_is_listed():
    bench = listed_bench()
    bench.list({ASR: 9 * GIB})
    assert (bench.row()["held_bytes"], bench.row()["foreign_bytes"]) == (9 * GIB, 0)
    assert bench.row()["grantable_bytes"] == 15 * GIB


def test_a_program_outside_has_what_it_is_listed_with_and_nothing_before_that():
    bench = listed_bench()
    bench.ask("lease@103/1", 4 * GIB, pid=PROGRAM)
    bench.list({ASR: 5 * GIB, GAME: 2 * GIB})
    assert bench.row()["grantable_bytes"] == 10 * GIB  # 17 free, of which asr's 3 and the program's 4
    bench.list({ASR: 5 * GIB, GAME: 2 * GIB, PROGRAM: 4 * GIB})
    assert (bench.row()["foreign_bytes"], bench.row()["grantable_bytes"]) == (2 * GIB, 10 * GIB)


def test_leases_of_one_process_share_what_it_is_listed_with():
    bench = listed_bench()
    grow(bench, "asr@cuda:0/0", 4 * GIB, pid=ASR)
    bench.list({ASR: 10 * GIB})
    assert [row["held_bytes"] for row in bench.book.snapshot(bench.now)["leases"]] == [8 * GIB, 2 * GIB]
    assert bench.row()["grantable_bytes"] == 12 * GIB


def test_the_dead_leave_the_list_and_their_bytes_count_until_the_driver_has_them_back():
    bench = listed_bench()
    bench.feed(Gone("asr@cuda:0/0", 1))
    bench.later(0.1)
    bench.list({GAME: 3 * GIB}, unlisted=5 * GIB)
    assert (bench.row()["held_bytes"], bench.row()["foreign_bytes"]) == (5 * GIB, 3 * GIB)
    bench.later(0.1)
    bench.list({GAME: 3 * GIB})
    assert (bench.states(), bench.row()["grantable_bytes"]) == ([], 21 * GIB)


def test_what_the_list_drops_before_anybody_tells_of_a_death_is_still_its_holders():
    """A driver forgets a process that ends a moment before its memory is free."""
    bench = listed_bench()
    bench.list({GAME: GIB}, unlisted=5 * GIB)
    assert (bench.row()["held_bytes"], bench.row()["foreign_bytes"]) == (5 * GIB, GIB)
    assert bench.row()["grantable_bytes"] == 10 * GIB, "if it lives, it may take 8 anew"
    bench.feed(Gone("asr@cuda:0/0", 1))
    bench.later(0.1)
    bench.list({GAME: GIB}, unlisted=5 * GIB)
    assert (bench.states(), bench.row()["grantable_bytes"]) == (["draining"], 15 * GIB), "8 are on their way back"
    bench.list({GAME: GIB})
    assert (bench.states(), bench.row()["grantable_bytes"]) == ([], 23 * GIB)


def test_what_the_list_has_dropped_for_long_is_somebody_elses():
    bench = listed_bench()
    bench.list({}, unlisted=5 * GIB)
    bench.later(1.0)
    bench.list({}, unlisted=5 * GIB)
    assert (bench.row()["held_bytes"], bench.row()["foreign_bytes"]) == (0, 5 * GIB)
    assert bench.row()["grantable_bytes"] == 11 * GIB


def test_what_is_free_as_soon_as_the_list_drops_it_was_given_back():
    bench = listed_bench()
    bench.list({ASR: GIB})
    assert (bench.row()["held_bytes"], bench.row()["grantable_bytes"]) == (GIB, 16 * GIB)


def test_growth_is_first_of_those_who_have_asked_for_more():
    """Else a model that died would leave more than the book thinks, and the others seem to have taken what they may."""
    bench = Bench(Limits(GPU, 24 * GIB, safety_margin=0.0))
    bench.read(24 * GIB)
    (granted,) = bench.ask("asr@cuda:0/0", 8 * GIB)
    bench.settle("asr@cuda:0/0", granted.lease)
    bench.later(0.1)
    bench.read(18 * GIB)
    grow(bench, "asr@cuda:0/0", 2 * GIB)
    bench.later(0.1)
    bench.read(16 * GIB)
    assert [row["held_bytes"] // GIB for row in bench.book.snapshot(bench.now)["leases"]] == [6, 2]


def test_all_leases_of_the_dead_end_together():
    """Which of its bytes lie in which of its leases is a guess, and so is what others of them have taken."""
    bench = Bench(Limits(GPU, 24 * GIB, safety_margin=0.0))
    bench.read(24 * GIB)
    bench.load("asr@cuda:0/0", 8 * GIB, 16 * GIB)
    grow(bench, "asr@cuda:0/0", 4 * GIB)
    bench.feed(Gone("asr@cuda:0/0", 1))
    bench.later(0.1)
    bench.read(16 * GIB)
    assert bench.states() == ["draining", "draining"]
    assert bench.row()["grantable_bytes"] == 12 * GIB, "it had taken 4 more, perhaps"
    bench.later(0.1)
    bench.read(24 * GIB)
    assert (bench.states(), bench.row()["grantable_bytes"]) == ([], 24 * GIB)


def two_loaded() -> Bench:
    """asr may take 2 GiB more than it measured, and nmt has 4 GiB that no reading has shown yet."""
    bench = Bench(Limits(GPU, 24 * GIB, safety_margin=0.0))
    bench.read(24 * GIB)
    (granted,) = bench.ask("asr@cuda:0/0", 8 * GIB)
    bench.settle("asr@cuda:0/0", granted.lease, 6 * GIB)
    bench.later(0.1)
    bench.read(18 * GIB)
    (granted,) = bench.ask("nmt@cuda:0/0", 4 * GIB)
    bench.later(0.1)
    bench.settle("nmt@cuda:0/0", granted.lease, 4 * GIB)
    return bench


def test_growth_that_a_reading_from_before_the_end_of_a_load_shows_is_the_loaders():
    bench = two_loaded()
    bench.read(14 * GIB, taken_at=bench.now - 0.001)
    assert [row["held_bytes"] // GIB for row in bench.book.snapshot(bench.now)["leases"]] == [6, 4]


def test_growth_that_the_first_reading_after_a_load_shows_is_the_loaders_whether_it_has_measured_or_not():
    bench = Bench(Limits(GPU, 24 * GIB, safety_margin=0.0))
    bench.read(24 * GIB)
    (granted,) = bench.ask("asr@cuda:0/0", 8 * GIB)
    bench.settle("asr@cuda:0/0", granted.lease)
    bench.later(0.1)
    bench.read(18 * GIB)
    (granted,) = bench.ask("nmt@cuda:0/0", 4 * GIB)
    bench.settle("nmt@cuda:0/0", granted.lease)
    bench.later(0.1)
    bench.read(14 * GIB)
    assert [row["held_bytes"] // GIB for row in bench.book.snapshot(bench.now)["leases"]] == [6, 4]


def test_what_one_measured_that_others_were_thought_to_have_they_have_not():
    bench = two_loaded()
    ((memory, leases),) = bench.book.books()
    leases[0].held_bytes, leases[1].held_bytes = 8 * GIB, 2 * GIB  # as a guess may have it
    memory.reading = Reading(GPU, 24 * GIB, 14 * GIB, bench.now - 0.05)
    bench.later(0.1)
    bench.read(14 * GIB)
    assert [row["held_bytes"] // GIB for row in bench.book.snapshot(bench.now)["leases"]] == [6, 4]
    assert memory.missing_bytes == 0


def test_who_gives_its_lease_back_and_lives_on_is_a_stranger_like_any_other():
    bench = listed_bench()
    (granted,) = bench.ask("lease@103/1", 4 * GIB, pid=PROGRAM)
    bench.later(0.1)
    bench.list({ASR: 5 * GIB, PROGRAM: 4 * GIB})
    bench.feed(FromWorker("lease@103/1#1", Release(granted.lease)))
    bench.later(0.1)
    bench.list({ASR: 5 * GIB, PROGRAM: GIB // 4})  # its context
    for _ in range(2):
        assert (bench.states(), bench.row()["foreign_bytes"]) == (["held"], GIB // 4)
        bench.list({ASR: 5 * GIB, PROGRAM: GIB // 4})


def test_a_list_that_fails_for_a_moment_leaves_the_book_right():
    bench = listed_bench()
    bench.list({ASR: 5 * GIB, GAME: 3 * GIB})
    bench.list(None, unlisted=8 * GIB)
    assert (bench.row()["held_bytes"], bench.row()["foreign_bytes"]) == (5 * GIB, 3 * GIB)
    bench.list({ASR: 6 * GIB, GAME: 4 * GIB})
    assert (bench.row()["held_bytes"], bench.row()["foreign_bytes"]) == (6 * GIB, 4 * GIB)


def test_after_the_arbiters_death_the_list_still_tells():
    bench = listed_bench()
    bench.list({ASR: 5 * GIB, GAME: 3 * GIB})
    bench.arbiter_dies()
    assert (bench.row()["held_bytes"], bench.row()["foreign_bytes"]) == (5 * GIB, 3 * GIB)
    bench.list({ASR: 5 * GIB, GAME: 4 * GIB})
    assert (bench.row()["held_bytes"], bench.row()["foreign_bytes"]) == (5 * GIB, 4 * GIB)


def test_the_rest_of_a_dead_holders_memory_is_not_put_down_to_the_living():
    bench = listed_bench()
    bench.ask("nmt@cuda:0/0", 4 * GIB, pid=NMT)
    bench.list({ASR: 5 * GIB, NMT: 4 * GIB})
    bench.feed(Gone("nmt@cuda:0/0", 1))
    bench.later(0.1)
    bench.list({ASR: 5 * GIB}, unlisted=GIB // 4)  # nearly all of it is back
    assert (bench.states(), bench.row()["held_bytes"], bench.row()["foreign_bytes"]) == (["held"], 5 * GIB, GIB // 4)


def dying_beside(bench: Bench, processes: dict[int, int]) -> None:
    """nmt is dead, and its 4 GiB are on their way back while these have theirs."""
    bench.feed(Gone("nmt@cuda:0/0", 1))
    bench.later(0.1)
    bench.list(processes, unlisted=4 * GIB)
    assert [row["held_bytes"] for row in bench.book.snapshot(bench.now)["leases"] if row["state"] == "draining"] == [
        4 * GIB
    ]


def test_nothing_that_is_listed_is_taken_for_memory_on_its_way_back():
    """Whatever begins to be listed, or by another name: who has left keeps what the driver has not back."""
    bench = listed_bench()
    (granted,) = bench.ask("nmt@cuda:0/0", 4 * GIB, pid=NMT)
    bench.settle("nmt@cuda:0/0", granted.lease)
    bench.list({ASR: 5 * GIB, NMT: 4 * GIB, GAME: 3 * GIB})
    (program,) = bench.ask("lease@103/1", 4 * GIB, pid=PROGRAM)
    bench.list({ASR: 5 * GIB, NMT: 4 * GIB, GAME: 3 * GIB, PROGRAM: 4 * GIB})
    dying_beside(bench, {ASR: 5 * GIB, GAME: 3 * GIB, PROGRAM: 4 * GIB})
    bench.arbiter_dies()
    dying_beside(bench, {ASR: 5 * GIB, GAME: 3 * GIB, PROGRAM: 4 * GIB})
    bench.feed(FromWorker("lease@103/1#1", Release(program.lease)))
    bench.later(0.1)
    dying_beside(bench, {ASR: 5 * GIB, GAME: 3 * GIB, PROGRAM: GIB // 4})
    dying_beside(bench, {ASR: 5 * GIB, GAME: 3 * GIB, PROGRAM: GIB // 4})
    bench.list(None, unlisted=12 * GIB + GIB // 4)  # the list fails once
    dying_beside(bench, {ASR: 5 * GIB, GAME: 3 * GIB, PROGRAM: GIB // 4})
    assert bench.row()["foreign_bytes"] == 3 * GIB + GIB // 4


def test_a_process_that_gives_one_lease_back_for_another_has_what_it_has_by_the_other():
    bench = listed_bench()
    (first,) = bench.ask("lease@103/1", 4 * GIB, pid=PROGRAM)
    bench.list({ASR: 5 * GIB, PROGRAM: 4 * GIB})
    bench.feed(FromWorker("lease@103/1#1", Release(first.lease)))
    bench.ask("lease@103/2", 2 * GIB, pid=PROGRAM)
    bench.later(0.1)
    bench.list({ASR: 5 * GIB, PROGRAM: 2 * GIB})
    assert (bench.states(), bench.row()["held_bytes"], bench.row()["promised_bytes"]) == (
        ["held", "held"], 7 * GIB, 3 * GIB,
    )  # fmt: skip


@pytest.mark.parametrize("wait_s", [float("nan"), float("inf"), -1.0])
def test_a_patience_that_is_no_time_is_denied_and_harms_nobody(wait_s: float):
    bench = Bench(Limits(GPU, 24 * GIB, safety_margin=0.0))
    bench.read(2 * GIB)
    bench.ask("asr@cuda:0/0", 10 * GIB)
    message = LeaseRequest(next(bench._ids), "lease@7/1", GPU, GIB, "", wait_s)
    (denied,) = bench.feed(FromWorker("lease@7/1#1", message))
    assert isinstance(denied, Denied) and "no time to wait" in denied.reason
    bench.later(1.0)
    (granted,) = bench.read(24 * GIB)
    assert isinstance(granted, Granted) and bench.states() == ["granted"], "the other waits on, and is served"


def test_who_withdraws_has_neither_a_request_nor_a_lease():
    bench = Bench(Limits(GPU, 24 * GIB, safety_margin=0.0))
    bench.read(24 * GIB)
    bench.ask("lease@7/1", 10 * GIB)
    bench.ask("lease@8/1", 20 * GIB)
    bench.feed(FromWorker("lease@8/1#1", Release(0)))
    assert bench.states() == ["held"] and bench.row()["grantable_bytes"] == 14 * GIB
    bench.feed(FromWorker("lease@7/1#1", Release(0)))
    bench.later(0.1)
    bench.read(24 * GIB)
    assert bench.states() == []


def test_names_are_cut_so_that_the_book_fits_its_journal():
    bench = Bench(Limits(GPU, 24 * GIB, safety_margin=0.0))
    bench.read(24 * GIB)
    bench.feed(FromWorker("lease@7/1#1", LeaseRequest(next(bench._ids), "lease@7/1", GPU, GIB, "x" * 50_000)))
    assert len(kept.encode(bench.book.keep())) < 2000


def test_what_is_no_text_in_a_program_s_name_is_escaped_wherever_others_read_it():
    bench = Bench(Limits(GPU, 24 * GIB, safety_margin=0.0), waits=Waits(grace_s=1.0))
    bench.read(24 * GIB)
    evil = "\x1b[2J\x07\r\u202e\ntrainer \u4e16"
    bench.ask("lease@7/1", 20 * GIB, model=evil, preemptible=True)
    bench.ask("lease@8/1", 10 * GIB, model=evil, wait_s=3.0)
    bench.later(2.0)
    bench.read(24 * GIB)
    (row,) = bench.book.snapshot(bench.now)["waiting"]
    bench.later(2.0)
    (denied,) = bench.read(24 * GIB)
    shown = "\\x1b[2J\\x07\\r\\u202e\\ntrainer \u4e16"
    assert row["model"] == shown and shown in row["leaving"][0] and shown in denied.reason
    assert all(lease["model"] == shown for lease in bench.book.snapshot(bench.now)["leases"])


def test_programs_can_fill_the_book_no_further_than_its_journal_takes():
    bench = Bench(Limits(GPU, 10_000 * GIB, safety_margin=0.0))
    bench.read(10_000 * GIB)
    for pid in range(MOST_LEASES):
        message = LeaseRequest(next(bench._ids), f"lease@{pid}/1", GPU, 1, "\u4e16" * 5000)
        (granted,) = bench.feed(FromWorker(f"lease@{pid}/1#1", message))
        assert isinstance(granted, Granted)
    (denied,) = bench.ask("lease@5000/1", 1)
    assert isinstance(denied, Denied) and "the most this node keeps" in denied.reason
    assert isinstance(bench.ask("asr@cuda:0/0", GIB)[0], Granted), "the node's own are always taken in"
    assert len(kept.encode(bench.book.keep())) < JOURNAL_BYTES // 2 - HEADER_BYTES


TWO = ("cuda:0", "cuda:1")


def on_two(*free: int) -> Bench:
    """Two cards of 24 GiB with so much free."""
    bench = Bench(*(Limits(name, 24 * GIB, safety_margin=0.0) for name in TWO))
    for name, nbytes in zip(TWO, free, strict=True):
        bench.read(nbytes, device=name)
    return bench


def test_of_several_devices_each_request_gets_the_one_with_most_room_when_it_asks():
    bench = on_two(10 * GIB, 12 * GIB)
    took = [bench.ask(f"lease@{pid}/1", 5 * GIB, device="", among=TWO)[0].device for pid in range(4)]
    assert took == ["cuda:1", "cuda:0", "cuda:1", "cuda:0"], "without a reading in between"


def test_where_it_is_granted_at_once_goes_before_where_there_is_more():
    bench = on_two(8 * GIB, 20 * GIB)
    bench.ask("asr@cuda:1/0", GIB, device="cuda:1")  # and it loads
    assert bench.ask("lease@7/1", 5 * GIB, device="", among=TWO)[0].device == "cuda:0"


def test_who_would_do_with_either_device_goes_to_the_one_that_has_room_first():
    bench = on_two(8 * GIB, 9 * GIB)
    (wait,) = bench.ask("lease@7/1", 10 * GIB, device="", among=TWO)
    assert isinstance(wait, LeaseWait) and "on cuda:1" in wait.reason
    bench.later(1.0)
    (granted,) = bench.read(11 * GIB, device="cuda:0")
    assert isinstance(granted, Granted) and granted.device == "cuda:0"
    assert bench.book.snapshot(bench.now)["waiting_total"] == 0
    bench.later(1.0)
    assert bench.read(20 * GIB, device="cuda:1") == [], "it has one, and wants no other"


def test_its_patience_is_its_own_wherever_it_waits():
    bench = on_two(8 * GIB, 9 * GIB)
    bench.ask("lease@7/1", 10 * GIB, device="", among=TWO, wait_s=5.0)
    bench.later(4.0)
    bench.read(8 * GIB, device="cuda:0")
    (wait,) = bench.feed(DeviceLost("cuda:1", "GPU is lost"))
    assert isinstance(wait, LeaseWait) and "needs 10.0 GiB on cuda:0" in wait.reason
    bench.later(0.9)
    assert bench.read(8 * GIB, device="cuda:0") == []
    bench.later(0.2)
    assert isinstance(bench.feed(Tick())[0], Denied)


def test_a_lost_device_is_chosen_by_nobody_and_said_when_there_is_no_other():
    bench = on_two(8 * GIB, 20 * GIB)
    bench.feed(DeviceLost("cuda:1", "GPU is lost"))
    assert bench.ask("lease@7/1", 5 * GIB, device="", among=TWO)[0].device == "cuda:0"
    bench.ask("lease@8/1", 5 * GIB, device="", among=TWO)
    said = bench.feed(DeviceLost("cuda:0", "GPU is lost"))
    assert [type(one) for one in said] == [Denied] and "quarantined" in said[0].reason
    denied = bench.ask("lease@9/1", GIB, device="", among=TWO)[0]
    assert isinstance(denied, Denied) and "quarantined" in denied.reason


def test_who_waits_for_any_of_two_is_not_moved_to_one_that_was_lost_however_much_room_it_shows():
    bench = on_two(8 * GIB, 8 * GIB)
    bench.ask("lease@7/1", 10 * GIB, device="", among=TWO)
    bench.feed(DeviceLost("cuda:1", "2 uncorrectable ECC errors in its memory"))
    assert bench.read(24 * GIB, device="cuda:1") == []
    assert bench.read(20 * GIB, device="cuda:0")[0].device == "cuda:0"


def test_who_waits_for_any_of_two_does_not_pass_an_elder_one_there():
    bench = on_two(4 * GIB, 8 * GIB)
    bench.ask("nmt@cuda:1/0", 12 * GIB, device="cuda:1")
    bench.later(Waits().lease_wait_s * 0.6)  # from half of it on nobody passes
    bench.read(4 * GIB, device="cuda:0"), bench.read(4 * GIB, device="cuda:1")
    bench.ask("lease@7/1", 5 * GIB, device="", among=TWO)
    assert bench.read(8 * GIB, device="cuda:1") == [], "there would be room"
    assert isinstance(bench.read(14 * GIB, device="cuda:1")[0], Granted)


def test_of_devices_that_this_node_has_not_none_is_chosen():
    bench = on_two(8 * GIB, 9 * GIB)
    assert bench.ask("lease@7/1", GIB, device="", among=("cuda:9", "cuda:0"))[0].device == "cuda:0"
    for among in ((), ("cuda:9",)):
        (denied,) = bench.ask("lease@8/1", GIB, device="", among=among)
        assert isinstance(denied, Denied) and "no device" in denied.reason


def test_a_device_without_memory_of_its_own_is_chosen_and_granted_by_its_own_name():
    bench = Bench(Limits("cpu", 24 * GIB, safety_margin=0.0), books={GPU: "cpu"})
    bench.read(20 * GIB, device="cpu")
    assert bench.ask("lease@7/1", GIB, device="", among=(GPU,))[0].device == GPU


# ---------------------------------------------------------------- drained devices


def test_on_a_drained_device_nothing_new_is_granted_and_who_waits_is_told_why_until_it_is_used_again():
    bench = on_two(20 * GIB, 20 * GIB)
    assert bench.feed(Orders(drained=("cuda:1",))) == []
    (wait,) = bench.ask("lease@7/1", GIB, device="cuda:1")
    assert isinstance(wait, LeaseWait) and "cuda:1 is drained" in wait.reason and "ctl resume cuda:1" in wait.reason
    assert bench.read(20 * GIB, device="cuda:1") == [], "told once"
    assert bench.ask("lease@8/1", GIB, device="cuda:0")[0].device == "cuda:0"
    report = bench.book.snapshot(bench.now)
    assert report["drained"] == ["cuda:1"] and report["waiting_total"] == 1
    (row,) = report["waiting"]
    assert (row["kind"], row["ahead"], row["patience_s"]) == ("drained", 0, 60.0) and row["reason"] == wait.reason
    assert bench.book.rooms()["cuda:1"] == 0
    (granted,) = bench.feed(Orders())
    assert isinstance(granted, Granted) and granted.device == "cuda:1"
    assert bench.book.rooms()["cuda:1"] == 19 * GIB


def test_who_asked_before_the_drain_is_not_granted_after_it_and_goes_elsewhere_if_it_would_do():
    bench = on_two(8 * GIB, 9 * GIB)
    bench.ask("lease@7/1", 10 * GIB, device="cuda:1")
    bench.ask("lease@8/1", 10 * GIB, device="", among=TWO)  # on cuda:1, which has more room
    told = bench.feed(Orders(drained=("cuda:1",)))
    assert [type(one) for one in told] == [LeaseWait, LeaseWait]
    assert {one["worker"]: one["device"] for one in bench.book.snapshot(bench.now)["waiting"]} == {
        "lease@7/1#1": "cuda:1", "lease@8/1#1": "cuda:0",
    }  # fmt: skip
    bench.later(1.0)
    assert bench.read(20 * GIB, device="cuda:1") == [], "however much room there is"
    (granted,) = bench.read(20 * GIB, device="cuda:0")
    assert granted.device == "cuda:0"
    (granted,) = bench.feed(Orders(drained=("cuda:0",)))
    assert granted.device == "cuda:1", "the other one"


def test_one_that_waits_elsewhere_goes_to_no_drained_device_and_goes_there_when_it_is_used_again():
    bench = on_two(2 * GIB, 20 * GIB)
    bench.feed(Orders(drained=("cuda:1",)))
    (wait,) = bench.ask("lease@7/1", 10 * GIB, device="", among=TWO)
    assert "on cuda:0" in wait.reason
    bench.later(1.0)
    assert bench.read(20 * GIB, device="cuda:1") == []
    (granted,) = bench.feed(Orders())
    assert granted.device == "cuda:1"


def test_where_all_are_drained_it_stands_aside_and_takes_the_first_that_is_not():
    bench = on_two(20 * GIB, 20 * GIB)
    bench.feed(Orders(drained=TWO))
    (wait,) = bench.ask("lease@7/1", GIB, device="", among=TWO)
    assert "is drained" in wait.reason
    aside = bench.book.snapshot(bench.now)["waiting"][0]["device"]
    (granted,) = bench.feed(Orders(drained=(aside,)))
    assert granted.device != aside


def test_its_patience_runs_while_it_stands_aside_and_the_end_is_said_with_the_reason():
    bench = on_two(20 * GIB, 20 * GIB)
    bench.ask("asr@cuda:1/0", GIB, device="cuda:1")  # a load: nobody's patience runs there
    bench.ask("lease@7/1", GIB, device="cuda:1", wait_s=5.0)
    bench.feed(Orders(drained=("cuda:1",)))
    bench.later(4.0)
    assert bench.feed(Tick()) == []
    assert bench.book.due_in(bench.now) == pytest.approx(1.0)
    bench.later(1.1)
    (denied,) = bench.feed(Tick())
    assert isinstance(denied, Denied) and "cuda:1 is drained" in denied.reason
    (at_once,) = bench.ask("lease@8/1", GIB, device="cuda:1", wait_s=0.0)
    assert isinstance(at_once, Denied) and "cuda:1 is drained" in at_once.reason


def test_what_a_loaded_model_grows_by_is_granted_on_a_drained_device_so_that_its_batch_ends():
    bench = on_two(20 * GIB, 20 * GIB)
    bench.load("asr@cuda:1/0", GIB, 19 * GIB, device="cuda:1")
    bench.feed(Orders(drained=("cuda:1",)))
    bench.read(19 * GIB, device="cuda:1")
    (granted,) = bench.ask("asr@cuda:1/0", GIB, device="cuda:1", grows=True)
    assert isinstance(granted, Granted)


def test_who_stands_aside_holds_nobody_back_and_nobody_leaves_for_it():
    bench = Bench(Limits(GPU, 24 * GIB, safety_margin=0.0), waits=Waits(lease_wait_s=10.0))
    bench.read(24 * GIB)
    bench.load("asr@cuda:0/0", 8 * GIB, 16 * GIB)
    bench.ask("nmt@cuda:0/0", 20 * GIB)
    assert bench.told[-1].nbytes == 4 * GIB
    bench.feed(Orders(drained=(GPU,)))
    assert bench.told[-1].nbytes == 0, "it wants no room now"


def test_who_withdraws_or_dies_or_whose_device_is_lost_stands_aside_no_more():
    bench = on_two(20 * GIB, 20 * GIB)
    bench.feed(Orders(drained=("cuda:1",)))
    for pid in (7, 8, 9):
        bench.ask(f"lease@{pid}/1", GIB, device="cuda:1")
    bench.feed(FromWorker("lease@7/1#1", Release(0)))
    bench.feed(Gone("lease@8/1", 1))
    (denied,) = bench.feed(DeviceLost("cuda:1", "GPU is lost"))
    assert isinstance(denied, Denied) and "quarantined" in denied.reason
    assert bench.book.snapshot(bench.now)["waiting_total"] == 0


def test_of_two_devices_with_one_book_the_one_is_drained_and_the_other_is_not():
    bench = Bench(Limits("cpu", 24 * GIB, safety_margin=0.0), books={GPU: "cpu"})
    bench.read(20 * GIB, device="cpu")
    bench.feed(Orders(drained=(GPU,)))
    assert "cuda:0 is drained" in bench.ask("lease@7/1", GIB, device=GPU)[0].reason
    assert bench.ask("lease@8/1", GIB, device="cpu")[0].device == "cpu"
    assert bench.feed(Orders())[0].device == GPU


# ---------------------------------------------------------------- beside other programs, where only a sum is known


def test_what_has_just_loaded_explains_growth_before_others_are_said_to_have_had_too_much():
    """Host memory: workers measure themselves, and other programs always hold some."""
    bench = Bench(Limits(GPU, 24 * GIB, safety_margin=0.0))
    bench.read(14 * GIB)
    (granted,) = bench.ask("asr@cuda:0/0", 8 * GIB)
    bench.later(0.1)
    bench.read(12 * GIB)  # in mid-load
    bench.settle("asr@cuda:0/0", granted.lease, 4 * GIB)
    for _ in range(3):
        bench.later(0.1)
        bench.read(10 * GIB)
        row = bench.row()
        assert (row["held_bytes"], row["foreign_bytes"], row["promised_bytes"]) == (4 * GIB, 10 * GIB, 4 * GIB)
        assert row["grantable_bytes"] == 6 * GIB


def test_a_deficit_that_somebody_lives_on_with_is_foreign_in_the_end_and_pays_nobodys_promise():
    bench = Bench(Limits(GPU, 24 * GIB, safety_margin=0.0))
    bench.read(24 * GIB)
    (granted,) = bench.ask("nmt@cuda:0/0", 8 * GIB)
    bench.settle("nmt@cuda:0/0", granted.lease)
    bench.later(0.1)
    bench.read(22 * GIB)
    bench.ask("lease@77/1", 8 * GIB)
    bench.later(1.0)
    bench.read(14 * GIB)
    bench.feed(Gone("lease@77/1", 1))  # its child has the 8 GiB
    states = set()
    for _ in range(60):
        bench.later(0.25)
        bench.read(14 * GIB)
        states.update(bench.states())
        assert bench.row()["grantable_bytes"] == 8 * GIB
    assert "deficit" in states and bench.states() == ["held"] and bench.row()["foreign_bytes"] == 8 * GIB


def test_a_deficit_of_nobody_keeps_no_place_among_the_models():
    """Between two readings what it had came back, and somebody else took as much."""
    bench = Bench(Limits(GPU, 24 * GIB, safety_margin=0.0, max_models=1))
    bench.read(24 * GIB)
    bench.load("nmt@cuda:0/0", 2 * GIB, 22 * GIB, model="n")
    bench.feed(Gone("nmt@cuda:0/0", 1))
    for _ in range(60):
        bench.later(0.25)
        bench.read(20 * GIB)
    assert bench.states() == [] and bench.row()["foreign_bytes"] == 4 * GIB
    assert isinstance(bench.ask("asr@cuda:0/0", GIB, model="a")[0], Granted)


def test_room_is_made_for_the_first_whom_it_helps():
    """A program that waits for more than all could give stands first, and costs those behind it nothing."""
    bench = Bench(Limits(GPU, 24 * GIB, safety_margin=0.0))
    bench.read(14 * GIB)
    bench.load("asr@cuda:0/0", 12 * GIB, 2 * GIB)
    bench.ask("lease@77/1", 20 * GIB, wait_s=1e6)
    assert not [told for told in bench.told if told.nbytes], "nobody leaves in vain"
    bench.ask("nmt@cuda:0/0", 6 * GIB)
    assert bench.told[-1] == Vacate(GPU, 4 * GIB, "nmt@cuda:0/0")


def test_nobody_leaves_for_one_that_may_not_pass_who_waits_before_it():
    bench = Bench(Limits(GPU, 24 * GIB, safety_margin=0.0))
    bench.read(14 * GIB)
    bench.load("asr@cuda:0/0", 12 * GIB, 2 * GIB)
    bench.ask("tts@cuda:0/0", 20 * GIB)
    bench.later(31.0)  # half of its patience: nobody passes it
    bench.read(2 * GIB)
    bench.ask("nmt@cuda:0/0", 6 * GIB)
    assert not [told for told in bench.told if told.nbytes]


def test_devices_named_twice_or_that_are_not_here_are_looked_at_once_or_never(monkeypatch):
    bench, looks = Bench(), []
    bench.read(24 * GIB)
    monkeypatch.setattr(leases, "look", lambda *args: looks.append(args) or look(*args))
    (granted,) = bench.ask("lease@5/0", GIB, "", among=(GPU, "nosuch") * 1000)
    assert granted.device == GPU
    assert len(looks) < 10


def test_a_program_that_says_it_grows_is_not_let_onto_a_drained_device():
    bench = Bench()
    bench.read(24 * GIB)
    bench.feed(Orders(drained=(GPU,)))
    (wait,) = bench.ask("lease@5/0", GIB, grows=True)
    assert isinstance(wait, LeaseWait) and "drained" in wait.reason


def test_a_program_whose_name_would_fill_the_journal_is_denied_in_words():
    bench = Bench()
    bench.read(24 * GIB)
    (denied,) = bench.ask("lease@5/" + "0" * 900, GIB)
    assert isinstance(denied, Denied) and "more than 100 bytes" in denied.reason


def test_where_the_machine_s_memory_is_listed_by_process_other_programs_growth_is_no_lease_s():
    bench = Bench(Limits(GPU, 16 * GIB, safety_margin=0.0, returns_at_once=True))
    bench.list({}, unlisted=2 * GIB, total=16 * GIB)
    bench.ask("lease@7/1", 4 * GIB, pid=7)
    bench.list({7: GIB}, unlisted=2 * GIB, total=16 * GIB)
    bench.list({7: GIB}, unlisted=5 * GIB, total=16 * GIB)  # somebody else takes 3 GiB
    assert (bench.row()["held_bytes"], bench.row()["foreign_bytes"]) == (GIB, 5 * GIB)
    assert bench.row()["grantable_bytes"] == 7 * GIB  # the program may take 3 more


def test_what_a_process_had_before_it_asked_is_not_of_its_lease():
    bench = Bench(Limits(GPU, 16 * GIB, safety_margin=0.0, returns_at_once=True))
    bench.list({}, unlisted=2 * GIB, total=16 * GIB)
    bench.ask("asr@cpu/0", 4 * GIB, pid=7, base_bytes=GIB)
    bench.list({7: 2 * GIB}, unlisted=GIB, total=16 * GIB)
    assert (bench.row()["held_bytes"], bench.row()["foreign_bytes"]) == (GIB, 2 * GIB)
    assert bench.row()["grantable_bytes"] == 10 * GIB  # what it has yet to take is kept for it
    bench.arbiter_dies()
    bench.list({7: 5 * GIB}, unlisted=GIB, total=16 * GIB)
    assert (bench.row()["held_bytes"], bench.row()["grantable_bytes"]) == (4 * GIB, 10 * GIB)


# ------------------------------------------------------------ more than was needed, more than was granted


def grown_bench(true: int, lists: bool = True) -> Bench:
    """A model of 8 GiB by its estimate has been granted 4 more; it has ``true`` bytes."""
    bench = Bench(Limits(GPU, 24 * GIB, safety_margin=0.0))
    show(bench, 0, lists)
    bench.settle("asr@cuda:0/0", bench.ask("asr@cuda:0/0", 8 * GIB, pid=7)[0].lease)
    show(bench, min(true, 8 * GIB), lists)
    bench.ask("asr@cuda:0/0", 4 * GIB, pid=7, grows=True)
    show(bench, true, lists)
    assert bench.row()["grantable_bytes"] == 24 * GIB - max(12 * GIB, true)
    return bench


def show(bench: Bench, true: int, lists: bool = True) -> list:
    return bench.list({7: true} if true else {}) if lists else bench.list(None, unlisted=true)


def give_back(bench: Bench, keep: int) -> list:
    return bench.feed(FromWorker("asr@cuda:0/0#1", Release(1, keep_bytes=keep)))


@pytest.mark.parametrize("lists", [True, False])
def test_what_was_leased_beyond_the_estimate_is_given_back_for_others(lists):
    bench = grown_bench(5 * GIB, lists)
    (waits,) = bench.ask("nmt@cuda:0/0", 14 * GIB)
    assert isinstance(waits, LeaseWait)
    heard = give_back(bench, 8 * GIB) + show(bench, 5 * GIB, lists)
    assert [one.nbytes for one in heard if isinstance(one, Granted)] == [14 * GIB]
    assert [row["nbytes"] for row in bench.book.snapshot(bench.now)["leases"]] == [8 * GIB, 14 * GIB]


def test_but_not_what_the_model_was_seen_to_have():
    bench = grown_bench(10 * GIB)
    show(bench, 5 * GIB)  # between two runs
    give_back(bench, 8 * GIB)
    show(bench, 5 * GIB)
    assert [row["nbytes"] for row in bench.book.snapshot(bench.now)["leases"]] == [8 * GIB, 2 * GIB]
    assert bench.row()["grantable_bytes"] == 14 * GIB


def test_nor_what_it_has_where_nobody_is_listed():
    bench = grown_bench(10 * GIB, lists=False)
    give_back(bench, 8 * GIB)
    show(bench, 10 * GIB, lists=False)
    assert (bench.row()["held_bytes"], bench.row()["foreign_bytes"]) == (10 * GIB, 0)
    assert bench.row()["grantable_bytes"] == 14 * GIB


def test_a_standing_lease_that_was_raised_comes_down_and_waiting_growth_with_it():
    bench = Bench(Limits(GPU, 24 * GIB, safety_margin=0.0))
    show(bench, 0)
    bench.settle("asr@cuda:0/0", bench.ask("asr@cuda:0/0", 16 * GIB, pid=7)[0].lease)
    show(bench, 5 * GIB)
    bench.ask("asr@cuda:0/0", 12 * GIB, pid=7, grows=True)  # there is not so much
    give_back(bench, 8 * GIB)
    show(bench, 5 * GIB)
    report = bench.book.snapshot(bench.now)
    assert [row["nbytes"] for row in report["leases"]] == [8 * GIB] and not report["waiting"]


def test_a_worker_that_has_more_than_it_was_granted_is_named_once_and_asks_for_that_the_next_time():
    bench = Bench(Limits(GPU, 24 * GIB, safety_margin=0.0))
    show(bench, 0)
    bench.settle("asr@cuda:0/0", bench.ask("asr@cuda:0/0", GIB, pid=7)[0].lease)
    said = []
    for true in (GIB, 6 * GIB, 5 * GIB):
        reading = Reading(GPU, 24 * GIB, 24 * GIB - true, bench.now + 0.01, {7: true})
        bench.later(0.01)
        said += [one.text for one in bench.book.handle(reading, bench.now) if isinstance(one, Note)]
    assert said == ["asr@cuda:0/0 has 6.0 GiB on cuda:0, 1.0 GiB were granted: its next load asks for that"]
    (row,) = bench.book.snapshot(bench.now)["leases"]
    assert (row["over_bytes"], bench.row()["over_lease_bytes"]) == (4 * GIB, 4 * GIB)
    bench.feed(Gone("asr@cuda:0/0", 1, "ended"))
    show(bench, 0)
    (granted,) = bench.ask("asr@cuda:0/0", GIB, pid=8, incarnation=2)
    assert granted.nbytes == 6 * GIB
    (other,) = bench.ask("nmt@cuda:0/0", GIB, pid=9)
    assert isinstance(other, LeaseWait), "another worker's question is its own, and waits for the load"


def test_what_rounds_is_not_called_more_than_was_granted():
    bench = Bench(Limits(GPU, 24 * GIB, safety_margin=0.0))
    show(bench, 0)
    bench.settle("asr@cuda:0/0", bench.ask("asr@cuda:0/0", 2 * GIB, pid=7)[0].lease)
    reading = Reading(GPU, 24 * GIB, 24 * GIB - int(2.15 * GIB), bench.now + 0.01, {7: int(2.15 * GIB)})
    assert not [one for one in bench.book.handle(reading, bench.now) if isinstance(one, Note)]


# ------------------------------------------------------------ what bounds a grant is named


def test_what_devices_max_bytes_leaves_is_named_where_that_is_the_bound():
    bench = Bench(Limits(GPU, 24 * GIB, ceiling_bytes=8 * GIB))
    (denied,) = bench.ask("asr@cuda:0/0", 20 * GIB)
    assert "(of 24.0 GiB devices.max_bytes leaves 8.0 GiB, 819 MiB margin)" in denied.reason
    bench.read(18 * GIB)
    (wait,) = bench.ask("asr@cuda:0/0", 4 * GIB)
    assert "(of 24.0 GiB devices.max_bytes leaves 8.0 GiB, 6.0 GiB of them taken, 819 MiB margin)" in wait.reason


def test_and_where_the_device_is_full_its_figures():
    bench = Bench(Limits(GPU, 24 * GIB, ceiling_bytes=20 * GIB, ceiling_is_own=True, reserve_bytes=4 * GIB))
    bench.read(6 * GIB)
    (wait,) = bench.ask("asr@cuda:0/0", 4 * GIB)
    assert "(6.0 GiB free, 0 MiB promised, 4.0 GiB devices.reserve_bytes)" in wait.reason


def test_the_margin_is_a_share_of_what_may_be_used():
    """Not of a machine's whole memory, of which this node may use a little."""
    bench = Bench(Limits(GPU, 64 * GIB, ceiling_bytes=6 * GIB, ceiling_is_own=True))
    bench.read(60 * GIB, 64 * GIB)
    (granted,) = bench.ask("asr@cuda:0/0", 5 * GIB)
    assert isinstance(granted, Granted)


def test_who_would_do_with_several_devices_is_explained_for_each():
    names = "cuda:0", "cuda:1", "cuda:2", "cuda:3", "cuda:4"
    sizes = 24, 24, 24, 4, 24
    bench = Bench(*(Limits(name, size * GIB, safety_margin=0.0) for name, size in zip(names, sizes, strict=True)))
    for name, size in zip(names, sizes, strict=True):
        bench.read(min(size, 3) * GIB, size * GIB, name)
    bench.feed(Orders(drained=("cuda:2",)))
    bench.feed(DeviceLost("cuda:4", "it fell off"))
    bench.ask("asr@cuda:1/0", GIB, "cuda:1")
    (wait,) = bench.ask("lease@7/1", 5 * GIB, "", among=names)
    assert wait.reason.startswith("lease@7/1 needs 5.0 GiB on cuda:0, 3.0 GiB can be granted")
    assert wait.reason.endswith("; the first to have room will do, of cuda:0, cuda:1, cuda:2, cuda:3, cuda:4")
    (row,) = bench.book.snapshot(bench.now)["waiting"]
    assert row["reason"].startswith("lease@7/1 needs 5.0 GiB on cuda:0, 3.0 GiB can be granted")
    assert row["reason"].endswith("; cuda:1: a model loads; cuda:2: drained; cuda:3: too small; cuda:4: lost")


def test_programs_that_nobody_can_help_do_not_keep_the_scheduler_from_making_room() -> None:
    bench = Bench(waits=Waits(lease_wait_s=60.0))
    bench.read(24 * GIB)
    asr = bench.ask("asr@cuda:0/0", 8 * GIB)[0]
    bench.read(16 * GIB)
    bench.settle("asr@cuda:0/0", asr.lease, 8 * GIB)
    bench.later(0.1)
    bench.read(8 * GIB)  # others have the rest
    for number in range(leases.TOLD):
        bench.ask(f"lease@{number + 1}/1", 20 * GIB, wait_s=1e6)
    bench.told.clear()
    bench.ask("nmt@cuda:0/0", 10 * GIB)
    assert [(one.by, one.nbytes > 0) for one in bench.told] == [("nmt@cuda:0/0", True)]


@pytest.mark.parametrize("how", ["lost", "drained"])
def test_who_must_wait_for_another_device_keeps_its_place_in_time(how: str) -> None:
    bench = Bench(Limits("cuda:0", 24 * GIB), Limits("cuda:1", 24 * GIB))
    for name in ("cuda:0", "cuda:1"):
        bench.read(GIB, device=name)
    bench.ask("lease@5/1", 8 * GIB, "", among=("cuda:0", "cuda:1"))
    (where,) = [row["device"] for row in bench.book.snapshot(bench.now)["waiting"]]
    other = {"cuda:0": "cuda:1", "cuda:1": "cuda:0"}[where]
    bench.later(25.0)
    bench.read(GIB, device=other)
    bench.ask("lease@6/1", 8 * GIB, other)
    bench.feed(DeviceLost(where, "gone") if how == "lost" else Orders((where,)))
    bench.later(0.1)
    told = bench.read(10 * GIB, device=other)
    assert [one.device for one in told if isinstance(one, Granted)] == [other]
    assert [row["worker"] for row in bench.book.snapshot(bench.now)["waiting"]] == ["lease@6/1#1"]


def test_a_model_that_would_do_with_any_device_waits_for_a_place_among_the_models_of_one() -> None:
    bench = Bench(*(Limits(name, 24 * GIB, max_models=1) for name in ("cuda:0", "cuda:1")))
    for name in ("cuda:0", "cuda:1"):
        bench.read(24 * GIB, device=name)
        granted = bench.ask(f"asr@{name}/0", 2 * GIB, name)[0]
        bench.settle(f"asr@{name}/0", granted.lease, 2 * GIB)
        bench.later(0.1)
        bench.read(22 * GIB, device=name)
    (wait,) = bench.ask("nmt@cuda:0/0", 2 * GIB, "", among=("cuda:0", "cuda:1"))
    assert "devices.max_models" in wait.reason
    for name in ("cuda:0", "cuda:1"):
        assert not [one for one in bench.read(22 * GIB, device=name) if isinstance(one, Granted)]


def test_a_shortage_by_what_lies_there_and_is_shown_free_names_that() -> None:
    bench = Bench()
    bench.read(24 * GIB)
    bench.ask("asr@cuda:0/0", 14 * GIB)
    bench.later(0.1)
    bench.read(10 * GIB)
    bench.feed(Gone("asr@cuda:0/0", 1, "stuck", stuck=True))
    for _ in range(5):
        bench.later(1.0)
        bench.read(24 * GIB)
    (wait,) = bench.ask("nmt@cuda:0/0", 10 * GIB)
    assert "24.0 GiB in all, 14.0 GiB leased, 0 MiB of other programs" in wait.reason


@pytest.mark.parametrize(("others", "max_models"), [("nmt", 5), ("asr", 1)])
def test_who_may_not_be_passed_any_more_is_not_passed_while_another_with_less_patience_waits_too(
    others: str, max_models: int
) -> None:
    """What a loaded model grows by waits for seconds and lets nobody pass from the start: it takes nobody's place.

    Also where all places among the models are taken, and only more workers of a model that is there may come.
    """
    bench = Bench(Limits(GPU, 24 * GIB, max_models=max_models))
    bench.read(24 * GIB)
    bench.load("asr@cuda:0/0", 12 * GIB, 12 * GIB)
    bench.ask(f"{others}@cuda:0/1", 12 * GIB)
    for _ in range(31):
        bench.later(1.0)
        bench.read(12 * GIB)
    (before,) = bench.ask(f"{others}@cuda:0/2", GIB)
    after = bench.ask("asr@cuda:0/0", 12 * GIB, grows=True, wait_s=5.0)
    (behind,) = bench.ask(f"{others}@cuda:0/3", GIB)
    assert [type(one) for one in after] == [LeaseWait], "nobody is granted because of it"
    for wait in (before, behind):
        assert isinstance(wait, LeaseWait) and f"waiting behind {others}@cuda:0/1" in wait.reason
