"""Slots and queues on their own: nothing is free while somebody may use it, nobody waits behind himself."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from engine.scheduler import retries
from engine.scheduler.slots import Slots
from ipc.ring import BLOCK


class SlotsMachine(RuleBasedStateMachine):
    """Grants, pins, answers and deaths against a plain model: slot -> (its bytes, who may touch it, is it needed)."""

    def __init__(self) -> None:
        super().__init__()
        self.slots = Slots({"r": 8}, reserve_after_s=1.0)
        self.model: dict[int, dict] = {}
        self.numbers = 0
        self.now = 0.0

    @rule(blocks=st.integers(1, 8), worker=st.sampled_from("pq"))
    def grant(self, blocks: int, worker: str) -> None:
        self.numbers += 1
        self.now += 0.3
        offset = self.slots.grant("r", blocks * BLOCK, self.numbers, "claimant", self.now)
        if offset is None:
            return
        extent = range(offset // BLOCK, offset // BLOCK + blocks)
        for other in self.model.values():
            assert not set(extent) & set(other["extent"]), "handed out while somebody may use it"
        self.slots.pin(("r", self.numbers), worker, self.numbers)
        self.model[self.numbers] = {"extent": extent, "pins": {(worker, self.numbers)}, "needed": True}

    @precondition(lambda self: self.model)
    @rule(data=st.data(), reader=st.sampled_from("xyz"))
    def read(self, data, reader: str) -> None:
        number = data.draw(st.sampled_from(sorted(self.model)))
        if self.model[number]["needed"]:
            self.numbers += 1
            self.slots.pin(("r", number), reader, self.numbers)
            self.model[number]["pins"].add((reader, self.numbers))

    @precondition(lambda self: any(m["pins"] for m in self.model.values()))
    @rule(data=st.data())
    def answer(self, data) -> None:
        pins = sorted(pin for m in self.model.values() for pin in m["pins"])
        pin = data.draw(st.sampled_from(pins))
        self.slots.answer(*pin)
        self._unpin(lambda p: p == pin)

    @rule(peer=st.sampled_from("pqxyz"))
    def die(self, peer: str) -> None:
        self.slots.gone(peer)
        self._unpin(lambda p: p[0] == peer)

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def drop(self, data) -> None:
        number = data.draw(st.sampled_from(sorted(self.model)))
        self.slots.drop(("r", number))
        self.model[number]["needed"] = False
        self._unpin(lambda p: False)

    def _unpin(self, gone) -> None:
        for number, entry in list(self.model.items()):
            entry["pins"] = {pin for pin in entry["pins"] if not gone(pin)}
            if not entry["pins"] and not entry["needed"]:
                del self.model[number]

    @invariant()
    def agrees(self) -> None:
        self.slots.check()
        taken = sum(len(entry["extent"]) for entry in self.model.values())
        assert self.slots.snapshot()["r"]["free"] == 8 - taken


TestSlotsMachine = SlotsMachine.TestCase


def test_a_large_request_is_not_starved_by_small_ones():
    slots = Slots({"r": 4}, reserve_after_s=1.0)
    for number in range(1, 5):
        assert slots.grant("r", BLOCK, number, "small", 0.0) is not None
    assert slots.grant("r", 2 * BLOCK, 10, "large", 0.0) is None
    assert slots.grant("r", 2 * BLOCK, 10, "large", 1.1) is None  # reserves from here on
    for step, number in enumerate(range(1, 5)):
        slots.drop(("r", number))
        if (offset := slots.grant("r", 2 * BLOCK, 10, "large", 2.0 + step)) is not None:
            break
        slots.grant("r", BLOCK, 20 + number, "small", 2.0 + step)
    assert offset is not None, "small requests took every block that came free"


def test_a_claimant_that_gives_up_lets_go_of_its_reservation():
    slots = Slots({"r": 2}, reserve_after_s=1.0)
    slots.grant("r", BLOCK, 1, "small", 0.0)
    assert slots.grant("r", 2 * BLOCK, 2, "large", 0.0) is None
    assert slots.grant("r", 2 * BLOCK, 2, "large", 1.0) is None
    slots.drop(("r", 1))
    assert slots.grant("r", BLOCK, 3, "small", 1.1) is None
    slots.forget_claims("large")
    assert slots.grant("r", BLOCK, 3, "small", 1.2) is not None


@pytest.mark.parametrize(("failures", "wait"), [(1, 5.0), (2, 10.0), (3, 20.0), (4, None)])
def test_reported_failures_wait_five_ten_and_twenty_seconds(failures, wait):
    assert retries.reported_wait(failures, 3, 10.0) == wait


def test_more_configured_retries_repeat_the_last_wait():
    assert retries.reported_wait(5, 5, 10.0) == 20.0


@pytest.mark.parametrize(("failures", "wait"), [(1, 10.0), (2, 30.0), (3, 90.0), (4, None)])
def test_out_of_memory_waits_ten_thirty_and_ninety_seconds(failures, wait):
    assert retries.oom_wait(failures, 10.0) == wait


def test_a_slot_that_was_given_up_is_not_needed_though_its_ring_is_not_known_yet():
    slots = Slots({}, unknown={"gateway": ["asr@cpu/0"]})
    slots.adopt("gateway", 7)
    assert slots.is_needed(("gateway", 7))
    assert slots.drop(("gateway", 7)) == [] and not slots.is_needed(("gateway", 7))
    assert slots.heard("asr@cpu/0") == [("gateway", 7)]


RING = {"tts@cpu/0": ["tts@cpu/0", "tone@cpu/0", "gateway"]}  # who maps it


def test_nothing_is_granted_in_a_ring_before_everybody_who_maps_it_has_spoken():
    slots = Slots({"tts@cpu/0": 4}, unknown=RING)
    for role in ("tts@cpu/0", "gateway"):
        assert slots.heard(role) == []
        assert slots.grant("tts@cpu/0", BLOCK, 1, "job", 0.0) is None
    assert slots.unknown == {"tts@cpu/0": ["tone@cpu/0"]}
    slots.heard("tone@cpu/0")
    assert slots.grant("tts@cpu/0", BLOCK, 1, "job", 0.0) == 0


def test_a_ring_that_is_not_known_yet_holds_up_no_other():
    slots = Slots({"tts@cpu/0": 4, "tts@cpu/1": 4}, unknown=RING)
    assert slots.grant("tts@cpu/1", BLOCK, 1, "job", 0.0) == 0


def test_who_was_turned_away_by_a_ring_not_known_yet_has_no_claim_on_it():
    """It is nobody's fault that there is no room: nothing is reserved, whatever it takes until all have spoken."""
    slots = Slots({"tts@cpu/0": 2}, reserve_after_s=1.0, unknown=RING)
    for now in (0.0, 2.0):
        assert slots.grant("tts@cpu/0", 2 * BLOCK, 1, "large", now) is None
    for role in RING["tts@cpu/0"]:
        slots.heard(role)
    assert slots.grant("tts@cpu/0", BLOCK, 2, "small", 2.0) is not None


def test_an_input_whose_ring_is_not_known_yet_is_free_when_the_last_has_spoken_and_not_before():
    slots = Slots({}, unknown={"gateway": ["gateway", "asr@cpu/0", "asr@cpu/1"]})
    slots.adopt("gateway", 7)
    assert slots.heard("gateway") == [] and slots.drop(("gateway", 7)) == []
    assert slots.heard("asr@cpu/0") == [] and not slots.idle
    assert slots.heard("asr@cpu/1") == [("gateway", 7)] and slots.idle


def test_the_death_of_a_reader_frees_nothing_in_a_ring_that_is_not_known_yet():
    """Another one, who has said nothing yet, may read the same slot for the epoch before."""
    slots = Slots({}, unknown={"gateway": ["asr@cpu/0", "asr@cpu/1"]})
    slots.heard("asr@cpu/0")
    slots.adopt("gateway", 7)
    slots.pin(("gateway", 7), "asr@cpu/0#1", 1)
    slots.drop(("gateway", 7))
    assert slots.gone("asr@cpu/0#1") == []
    assert slots.heard("asr@cpu/1") == [("gateway", 7)]
