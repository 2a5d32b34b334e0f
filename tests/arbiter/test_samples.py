"""A load's measurement without a note is the loader's alone; whatever else was seen to move on the device is named."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.arbiter import kept
from engine.arbiter.events import FromWorker, Send, Waits
from engine.arbiter.leases import Leases
from engine.arbiter.room import Limits, Reading
from engine.arbiter.samples import Samples
from ipc.messages import Gone, Granted, Inquire, LeaseRequest, Measured, Release, Settled, Used

GPU, CPU = "cuda:0", "cpu"
GIB = 2**30
TOTAL = 24 * GIB


class Device:
    """A book and its watcher over one device whose true holders are known here. Turns are one event long."""

    def __init__(self, name: str = GPU, foreign: int = GIB, lists: bool = False) -> None:
        self.name, self.lists, self.foreign, self.now = name, lists, foreign, 100.0
        self._of = [Limits(name, TOTAL, safety_margin=0.0, returns_at_once=name == CPU)], Waits()
        self.book, self.samples = Leases(*self._of), Samples()
        self.true: dict[str, int] = {}  # worker -> bytes
        self.ran_at: dict[str, float] = {}
        self.told: list[Measured] = []
        self.questions: list[Inquire] = []
        self.leases: dict[str, int] = {}
        self._ids = itertools.count(1)
        self.read()

    def feed(self, *events) -> None:
        for event in events:
            for action in self.book.handle(event, self.now):
                if isinstance(action, Send) and isinstance(action.message, Granted):
                    self.leases[action.peer.partition("#")[0]] = action.message.lease
        for action in self.samples.look(self.book.books()):
            if isinstance(action, Measured):
                self.told.append(action)
            else:
                self.questions.append(action.message)
        self.samples.check()
        self.book.check()

    def read(self) -> None:
        self.now += 0.25
        listed = {pid(worker): nbytes for worker, nbytes in self.true.items() if nbytes} if self.lists else {}
        free = TOTAL - self.foreign - sum(self.true.values())
        self.feed(Reading(self.name, TOTAL, free, self.now, listed))

    def ask(self, worker: str, nbytes: int) -> None:
        self.feed(FromWorker(f"{worker}#1", LeaseRequest(next(self._ids), worker, self.name, nbytes, pid=pid(worker))))

    def settle(self, worker: str, measured: int = -1) -> None:
        self.now += 0.01
        self.feed(FromWorker(f"{worker}#1", Settled(self.leases[worker], measured)))

    def load(self, worker: str, granted: int, true: int, measured: int = -1) -> None:
        self.ask(worker, granted)
        self.true[worker] = true // 2
        self.read()
        self.true[worker] = true
        self.settle(worker, measured)
        self.read()
        self.answer()

    def run(self, worker: str, grown: int = 0) -> None:
        self.now += 0.01
        self.true[worker] += grown
        self.ran_at[worker] = self.now

    def answer(self) -> None:
        """Everybody who was asked says when they ran last."""
        for question in self.questions:
            worker = next(name for name, lease in self.leases.items() if lease == question.lease)
            self.samples.hear(f"{worker}#1", Used(question.lease, ran_at=self.ran_at.get(worker, 0.0)))
        self.questions.clear()
        self.feed()

    @property
    def loads(self) -> list[tuple[str, int, bool, str]]:
        return [(one.worker, one.nbytes, one.exact, one.note) for one in self.told if one.phase == "load"]


def pid(worker: str) -> int:
    return 1000 + sum(worker.encode())


def test_a_sole_loader_is_measured_by_the_difference_of_two_readings():
    device = Device()
    device.load("asr", 4 * GIB, 3 * GIB)
    assert device.loads == [("asr", 3 * GIB, False, "")]
    assert device.told[0].granted == 4 * GIB and device.questions == []


def test_beside_quiet_holders_it_is_as_good_and_they_are_asked():
    device = Device()
    device.load("asr", 4 * GIB, 3 * GIB)
    device.run("asr")
    device.read()
    device.ask("nmt", 2 * GIB)
    device.true["nmt"] = GIB
    device.settle("nmt")
    device.read()
    assert device.questions == [Inquire(device.leases["asr"])] and len(device.loads) == 1
    device.answer()
    assert device.loads[1:] == [("nmt", GIB, False, "")]


def test_a_neighbour_that_runs_meanwhile_makes_it_noisy():
    device = Device()
    device.load("asr", 4 * GIB, 3 * GIB)
    device.ask("nmt", 2 * GIB)
    device.true["nmt"] = GIB
    device.run("asr", grown=GIB // 2)
    device.settle("nmt")
    device.read()
    device.answer()
    ((worker, nbytes, _, note),) = device.loads[1:]
    assert (worker, nbytes, note) == ("nmt", GIB + GIB // 2, "asr ran while it loaded")


def test_a_neighbour_that_dies_before_it_answers_makes_it_noisy():
    device = Device()
    device.load("asr", 4 * GIB, 3 * GIB)
    device.ask("nmt", 2 * GIB)
    device.true["nmt"] = GIB
    device.settle("nmt")
    device.read()
    device.questions.clear()
    device.feed(Gone("asr", 1))
    assert device.loads[1:] == [("nmt", GIB, False, "another holder left before it could say whether it ran")]


def test_who_drains_meanwhile_or_holds_a_lease_outside_the_node_makes_it_noisy():
    device = Device()
    device.load("asr", 4 * GIB, 3 * GIB)
    device.feed(FromWorker("asr#1", Release(device.leases["asr"])))
    device.load("nmt", 2 * GIB, GIB)
    assert "drained" in device.loads[1][3]
    device = Device()
    device.ask("lease@1/1", GIB)
    device.load("nmt", 2 * GIB, GIB)
    assert "outside the node" in device.loads[0][3]


def test_other_programs_memory_that_changes_where_it_can_be_seen_makes_it_noisy():
    for change in (-GIB // 2, 4 * GIB):  # gone before the model is there, or more than was granted
        device = Device(foreign=GIB)
        device.ask("nmt", 2 * GIB)
        device.foreign += change
        device.read()
        device.true["nmt"] = GIB
        device.settle("nmt")
        device.read()
        ((_, nbytes, _, note),) = device.loads
        assert nbytes == GIB + change and "other programs" in note


def test_the_next_loader_which_is_granted_upon_the_same_reading_spoils_nothing():
    device = Device()
    device.ask("asr", 4 * GIB)
    device.ask("nmt", 2 * GIB)  # waits for its turn
    device.true["asr"] = 3 * GIB
    device.settle("asr")
    device.read()
    assert device.loads == [("asr", 3 * GIB, False, "")] and device.leases.keys() == {"asr", "nmt"}


def test_what_the_driver_lists_is_exact_whoever_moves():
    device = Device(lists=True)
    device.load("asr", 4 * GIB, 3 * GIB)
    device.ask("nmt", 2 * GIB)
    device.true["nmt"] = GIB
    device.run("asr", grown=GIB)
    device.foreign += GIB
    device.settle("nmt")
    device.read()
    assert device.loads == [("asr", 3 * GIB, True, ""), ("nmt", GIB, True, "")]
    device.run("nmt", grown=3 * GIB)  # beyond what was granted
    device.read()
    assert [(one.worker, one.nbytes, one.exact) for one in device.told if one.phase == "run"] == [
        ("asr", 4 * GIB, True), ("nmt", 4 * GIB, True),
    ]  # fmt: skip


def test_a_foreign_process_with_the_holders_number_is_not_taken_for_it():
    """In a container the driver's numbers are the host's; one that was there before the load is somebody else's."""
    device = Device(lists=True)
    device.true["asr"] = 5 * GIB  # listed under the pid that asr will say is its own
    device.read()
    device.true["other"] = device.true.pop("asr")
    device.lists = False
    device.ask("asr", 4 * GIB)
    device.true["asr"] = 3 * GIB
    device.settle("asr")
    device.lists = True
    device.read()
    assert [one[1:3] for one in device.loads] == [(3 * GIB, False)]


def test_on_the_host_its_own_word_counts_and_its_peak():
    device = Device(CPU, foreign=4 * GIB)
    device.ask("asr", 4 * GIB)
    device.true["asr"] = 3 * GIB
    device.settle("asr", measured=2 * GIB)
    assert device.loads == [("asr", 2 * GIB, True, "")]
    device.samples.hear("asr#1", Used(device.leases["asr"], 5 * GIB))
    device.samples.hear("asr#2", Used(device.leases["asr"], 9 * GIB))  # another life's
    device.feed()
    assert [(one.phase, one.nbytes, one.exact) for one in device.told[1:]] == [("run", 5 * GIB, True)]
    device.feed()
    assert len(device.told) == 2  # said once


def test_growth_in_runs_is_told_as_the_book_has_it_and_not_for_every_byte():
    device = Device()
    device.load("asr", 4 * GIB, 3 * GIB)
    for grown in (2**19, 2**29, 2**19):
        device.run("asr", grown)
        device.read()
    ((phase, nbytes, note),) = [(one.phase, one.nbytes, one.note) for one in device.told[1:]]
    assert (phase, nbytes) == ("run", 3 * GIB + 2**19 + 2**29) and note


def test_what_a_holder_leases_besides_is_growth_of_its_model_and_no_load():
    device = Device()
    device.load("asr", 4 * GIB, 4 * GIB)
    first = device.leases["asr"]
    device.ask("asr", 2 * GIB)
    device.run("asr", grown=2 * GIB)
    device.settle("asr")
    device.read()
    assert [(one.phase, one.nbytes) for one in device.told] == [("load", 4 * GIB), ("run", 6 * GIB)]
    device.leases["asr"] = first
    device.ask("nmt", 2 * GIB)
    device.true["nmt"] = GIB
    device.settle("nmt")
    device.read()
    assert device.questions == [Inquire(first)]


def test_an_arbiter_that_comes_in_mid_load_takes_no_difference_it_has_seen_only_half_of():
    device = Device()
    device.ask("asr", 4 * GIB)
    device.true["asr"] = 2 * GIB
    device.read()
    left = kept.decode(kept.encode(device.book.keep()))
    device.book = Leases(*device._of)
    device.book.restore(left)
    device.samples = Samples(left.next_number - 1)
    device.true["asr"] = 3 * GIB
    device.read()
    device.settle("asr")
    device.read()
    assert device.loads == []
    device.load("nmt", 2 * GIB, GIB)
    assert device.loads == [("nmt", GIB, False, "")]


WHAT = ("load", "load", "load", "run", "grow", "foreign", "read", "leave")
steps = st.lists(
    st.tuples(
        st.sampled_from(["load", "run", "grow", "foreign", "read", "leave"]), st.integers(0, 2), st.integers(1, 8)
    ),
    max_size=30,
)


@settings(max_examples=400)
@given(steps, st.booleans())
def test_what_has_no_note_is_what_the_loader_took(script, lists):
    """Whatever the others do meanwhile. (Foreign memory moves here only beyond what a loader may still take.)"""
    device, loading, number = Device(lists=lists), "", 0
    device.load("w0", 2 * GIB, GIB)
    for what, who, size in script:
        holders = [name for name in device.true if name != loading]
        neighbour = holders[who % len(holders)] if holders else ""
        match what:
            case "load" if not loading:
                number += 1
                loading = f"w{number}"
                device.ask(loading, GIB)
                if loading not in device.leases:  # there is no room for it now
                    device.feed(Gone(loading, 1))
                    loading = ""
                else:
                    device.true[loading] = 0
            case "load":
                device.true[loading] += size * GIB // 8
                device.settle(loading)
                device.read()
                device.answer()
                for one in device.told:
                    if one.worker == loading and one.phase == "load" and not one.note:
                        assert one.nbytes == device.true[loading]
                loading = ""
            case "run" if neighbour:
                device.run(neighbour)
            case "grow" if neighbour:
                device.run(neighbour, grown=size * GIB // 16)
            case "foreign" if not loading:
                device.foreign = GIB + size * GIB // 16
                device.read()
            case "leave" if neighbour:
                device.true.pop(neighbour)
                device.feed(Gone(neighbour, 1))
            case "read":
                device.read()
