"""Extra workers of a stage: when one is called, and when it leaves. Each rule by an example on the bare core."""

from __future__ import annotations

from engine.boot import VariantPlan, WorkerPlan
from engine.scheduler.book import SUPERVISOR
from engine.scheduler.instances import LEAST_LOAD_S
from engine.scheduler.workers import Life
from ipc.messages import (
    Denied,
    Errand,
    Gone,
    Grow,
    Here,
    Load,
    Loaded,
    Loading,
    Orders,
    Over,
    Park,
    Preload,
    Room,
    Run,
    Serve,
    Vacate,
)
from tests.scheduler.world import DEADLINES, World, text_stage

GPU, OTHER = "cuda:0", "cuda:1"
REST = DEADLINES.promote_s
NEEDS = 1000
SMALLER = (VariantPlan(name="int8", model="m", compute_type="int8", estimate_bytes=600),)
REGULAR, EXTRA = "b@cuda:0/0", "b@cuda:0/1"


def plans(stage: str = "b", extras: int = 1, devices: tuple[str, ...] = (GPU,), **fields) -> tuple[WorkerPlan, ...]:
    """One regular worker on each device and so many extra ones."""
    made = [(device, n) for n in range(1 + extras) for device in devices]
    return tuple(
        WorkerPlan(
            role=f"{stage}@{device}/{n}", stage=stage, device=device, estimate_bytes=NEEDS, extra=n > 0, **fields
        )
        for device, n in sorted(made, key=lambda one: one[1] > 0)
    )


class Pressed(World):
    """Stages that serve; utterances are one second of work each unless said otherwise."""

    def __init__(self, *stages, **fields) -> None:
        super().__init__(*(stages or (text_stage("b", workers=plans(), timeout_base_s=1e6),)), **fields)
        self.start_all()
        self.core.handle(SUPERVISOR, Serve(), self.now)
        self.open()
        self.admitted = 0

    def pile_up(self, count: int) -> None:
        for _ in range(count):
            self.admit(self.admitted, budget_ms=10**9)
            self.admitted += 1

    def ran(self, role: str, seconds: float = 1.0) -> None:
        """A worker ends its oldest run, which took so long."""
        end = int(self.now * 1e9)
        self.done(self.peer(role), begun_ns=int(end - seconds * 1e9), ended_ns=end)

    def room(self, nbytes: int, device: str = GPU, arbiter: int = 1) -> None:
        self.core.handle(f"arbiter#{arbiter}", Room(device, nbytes), self.now)
        self.turn()

    def want(self, by: str, nbytes: int = 500, device: str = GPU) -> None:
        self.core.handle("arbiter#1", Vacate(device, nbytes, by), self.now)
        self.turn()

    def say(self, role: str, *messages) -> None:
        for message in messages:
            self.core.handle(self.peer(role), message, self.now)
            self.turn()

    def order(self, message) -> None:
        self.core.handle(SUPERVISOR, message, self.now)
        self.turn()

    def loads(self, role: str) -> list[Load]:
        return [s.message for s in self.sent if s.peer.startswith(f"{role}#") and isinstance(s.message, Load)]

    def parks(self, role: str) -> int:
        return sum(s.peer.startswith(f"{role}#") and isinstance(s.message, Park) for s in self.sent)

    def life(self, role: str) -> Life:
        return self.core.book.workers[role].life

    def instances(self, stage: str = "b", device: str = GPU) -> dict:
        return self.core.snapshot(self.now)["stages"][stage]["instances"][device]

    def finish(self, *roles: str) -> None:
        """These do all that there is to do."""
        while any(self.board[self.peer(role)] for role in roles):
            for role in roles:
                if self.board[self.peer(role)]:
                    self.ran(role)


def helped(**fields) -> Pressed:
    """The extra worker has come, and nothing is left to do."""
    found = Pressed(text_stage("b", workers=plans(), timeout_base_s=1e6, **fields))
    return come(found)


def come(found: Pressed) -> Pressed:
    found.room(NEEDS)
    found.pile_up(6)
    found.advance(2 * LEAST_LOAD_S)
    found.loaded(found.peer(EXTRA))
    found.room(0)
    found.finish(REGULAR, EXTRA)
    return found


# ---------------------------------------------------------------- called


def test_nothing_is_loaded_beyond_the_least_without_a_backlog() -> None:
    found = Pressed()
    found.room(100 * NEEDS)
    found.advance(100)
    found.pile_up(2)  # one runs, one is sent ahead: nobody waits
    found.advance(100)
    assert not found.loads(EXTRA)
    assert found.instances() == {"running": 1, "min": 1, "max": 2, "why": ""}


def test_a_backlog_that_has_lasted_for_twice_a_load_calls_one() -> None:
    found = Pressed()
    found.room(NEEDS)
    found.pile_up(3)
    found.advance(2 * LEAST_LOAD_S - 0.1)
    assert not found.loads(EXTRA)
    found.advance(0.2)
    (load,) = found.loads(EXTRA)
    assert load.wait_s == 0, "it asks for room that is there and waits for none"
    found.loaded(found.peer(EXTRA))
    found.pile_up(1)
    assert found.messages(Run, found.peer(EXTRA)), "and works"
    row = found.instances()
    assert row["running"] == 2 and "utterances wait" in row["why"]


def test_known_work_that_is_worth_a_load_calls_one_at_once() -> None:
    found = Pressed()
    found.room(NEEDS)
    found.pile_up(1)
    found.ran(REGULAR, seconds=1.0)
    found.pile_up(3)
    assert not found.loads(EXTRA), "one second of work waits, and a load takes one"
    found.pile_up(2)
    found.pile_up(1)
    assert found.loads(EXTRA)


def test_a_long_load_needs_much_more_work() -> None:
    found = Pressed()
    found.kill(REGULAR)
    found.lives[REGULAR] += 1
    found.board[found.peer(REGULAR)] = []
    found.say(REGULAR, Here(), Loading(), Loaded("", load_ms=20_000))
    found.room(NEEDS)
    found.pile_up(10)
    found.advance(39)
    assert not found.loads(EXTRA)
    found.advance(1.1)
    assert found.loads(EXTRA)


def test_a_backlog_that_ends_in_between_begins_anew() -> None:
    found = Pressed()
    found.room(NEEDS)
    for _ in range(10):
        found.pile_up(3)
        found.advance(1.5 * LEAST_LOAD_S)
        found.ran(REGULAR, seconds=0.001)  # what waited is sent: nobody waits
        found.advance(1.0)
        found.finish(REGULAR)
    assert not found.loads(EXTRA)


def test_work_that_waits_for_more_of_its_kind_is_no_backlog() -> None:
    found = Pressed(text_stage("b", workers=plans(), timeout_base_s=1e6, max_batch=4, max_delay_ms=60_000))
    found.room(NEEDS)
    found.pile_up(3)
    found.advance(50)
    assert not found.loads(EXTRA)


def test_work_that_waits_for_its_client_is_no_backlog() -> None:
    """Of a session over its byte budget; another one keeps the worker busy."""
    found = Pressed()
    found.open("t")
    found.room(NEEDS)
    found.pile_up(1)
    found.ran(REGULAR, seconds=1.0)
    found.tell(Over(("s",)))
    for index in range(2):
        found.admit(index, "t")
    found.pile_up(20)
    found.advance(0.5)
    assert not found.loads(EXTRA)


def test_the_next_one_needs_more_than_the_one_before() -> None:
    found = Pressed(text_stage("b", workers=plans(extras=2), timeout_base_s=1e6))
    found.room(2 * NEEDS)
    found.pile_up(20)
    found.advance(2.1 * LEAST_LOAD_S)
    assert found.loads(EXTRA) and not found.loads("b@cuda:0/2")
    found.advance(100)
    assert not found.loads("b@cuda:0/2"), "one at a time"
    found.loaded(found.peer(EXTRA))
    found.advance(2.9 * LEAST_LOAD_S)
    assert not found.loads("b@cuda:0/2")
    found.advance(0.2 * LEAST_LOAD_S)
    assert found.loads("b@cuda:0/2")
    found.loaded(found.peer("b@cuda:0/2"))
    found.advance(1000)
    assert found.instances()["running"] == found.instances()["max"] == 3


def test_without_room_there_is_none() -> None:
    found = Pressed()
    found.pile_up(20)
    found.advance(100)
    found.room(NEEDS - 1)
    found.advance(100)
    assert not found.loads(EXTRA)
    found.room(NEEDS)
    assert found.loads(EXTRA), "and then there is"


def test_room_that_another_model_will_want_is_none() -> None:
    """It is away, and comes back when its stage has work."""
    c = text_stage("c", workers=plans("c", extras=0), keep_alive_s=1.0, timeout_base_s=1e6)
    found = Pressed(text_stage("b", workers=plans(), timeout_base_s=1e6), c)
    found.advance(1.1)
    assert found.parks("c@cuda:0/0") == 1
    found.leave("c@cuda:0/0")
    found.room(2 * NEEDS - 1)
    found.pile_up(20)
    found.advance(100)
    assert not found.loads(EXTRA)
    found.room(2 * NEEDS)
    assert found.loads(EXTRA)


def test_room_for_a_better_variant_is_none() -> None:
    found = Pressed(text_stage("b", workers=plans(smaller=SMALLER), timeout_base_s=1e6))
    found.kill(REGULAR)
    found.lives[REGULAR] += 1
    found.board[found.peer(REGULAR)] = []
    found.say(REGULAR, Here(), Denied("no", "no_vram"), Loading("m", 1), Loaded("m", 1))
    found.pile_up(20)
    found.room(999)  # 400 would be for the better variant
    found.advance(REST / 2)
    assert not found.loads(EXTRA)
    found.room(1000)
    (load,) = found.loads(EXTRA)
    assert load.variant == 1, "it loads what the others have loaded"


def test_the_same_room_is_not_taken_twice() -> None:
    """Two stages are pressed, and the arbiter has not said yet that one of them has taken the room."""
    a, b = (text_stage(name, workers=plans(name), timeout_base_s=1e6) for name in "ab")
    found = Pressed(a, b)
    found.pile_up(20)
    for _ in range(10):
        found.ran("a@cuda:0/0")
    found.advance(100)
    found.room(2 * NEEDS - 1)
    assert len(found.loads("a@cuda:0/1")) + len(found.loads(EXTRA)) == 1


def test_it_comes_where_there_is_most_room() -> None:
    found = Pressed(text_stage("b", workers=plans(devices=(GPU, OTHER)), timeout_base_s=1e6))
    found.room(NEEDS)
    found.room(2 * NEEDS, OTHER)
    found.pile_up(20)
    found.advance(10)
    assert not found.loads(EXTRA) and found.loads("b@cuda:1/1")


def test_not_where_an_operator_drains_the_device_and_not_in_serial_mode() -> None:
    found = Pressed(text_stage("b", workers=plans(devices=(GPU, OTHER)), timeout_base_s=1e6))
    found.order(Orders(drained=(GPU,)))
    found.room(9 * NEEDS)
    found.pile_up(20)
    found.advance(100)
    assert not found.loads(EXTRA)
    serial = Pressed(mode="serial")
    serial.room(9 * NEEDS)
    serial.pile_up(20)
    serial.advance(100)
    assert not serial.loads(EXTRA)


def test_while_the_regular_worker_is_away_no_extra_one_comes_in_its_place() -> None:
    found = Pressed()
    found.kill(REGULAR)
    found.room(9 * NEEDS)
    found.pile_up(20)
    found.advance(100)
    assert not found.loads(EXTRA)


def test_a_load_that_is_refused_is_no_trouble_and_not_tried_again_at_once() -> None:
    found = Pressed(text_stage("b", workers=plans(smaller=SMALLER), timeout_base_s=1e6))
    found.room(NEEDS)
    found.pile_up(20)
    found.advance(3)
    found.say(EXTRA, Denied("somebody was faster", "no_vram"))
    found.advance(REST - 1)
    assert len(found.loads(EXTRA)) == 1, "no smaller variant either"
    assert not found.messages(Grow, found.peer(EXTRA))
    assert "somebody was faster" in found.instances()["why"]
    found.advance(1.1)
    assert len(found.loads(EXTRA)) == 2
    found.say(EXTRA, Denied("the file is broken", "bad_model"))
    found.advance(10 * REST)
    assert len(found.loads(EXTRA)) == 2


def test_capacity_counts_those_that_are_there() -> None:
    found = Pressed()
    assert found.core.concurrency() == {"b": 1}
    found.room(NEEDS)
    found.pile_up(20)
    found.advance(3)
    assert found.core.concurrency() == {"b": 1}
    found.loaded(found.peer(EXTRA))
    assert found.core.concurrency() == {"b": 2}


# ---------------------------------------------------------------- leaving


def test_one_that_has_nothing_to_do_leaves_and_rests() -> None:
    found = helped()
    found.advance(REST - 0.5)
    assert not found.parks(EXTRA)
    runs = len(found.messages(Run, found.peer(EXTRA)))
    for _ in range(20):
        found.pile_up(1)
        found.ran(REGULAR)
    assert len(found.messages(Run, found.peer(EXTRA))) == runs, "who stays at any rate goes first"
    found.advance(0.6)
    assert found.parks(EXTRA) == 1 and not found.parks(REGULAR)
    found.leave(EXTRA)
    assert found.life(EXTRA) is Life.EMPTY and "idle for" in found.instances()["why"]
    found.room(NEEDS)
    found.pile_up(20)
    found.advance(REST - 1)
    assert len(found.loads(EXTRA)) == 1
    found.advance(2)
    assert len(found.loads(EXTRA)) == 2


def test_a_stage_s_keep_alive_counts_where_it_is_shorter() -> None:
    found = helped(keep_alive_s=2.0)
    found.advance(2.1)
    assert found.parks(EXTRA) == 1
    found = helped(keep_alive_s=1000.0)
    found.advance(REST + 0.1)
    assert found.parks(EXTRA) == 1 and not found.parks(REGULAR)


def test_when_memory_is_wanted_it_leaves_first_and_at_once() -> None:
    """Pinned or not, and whatever there is to do."""
    c = text_stage("c", workers=plans("c", extras=0), timeout_base_s=1e6)
    found = come(Pressed(text_stage("b", workers=plans(), timeout_base_s=1e6, pinned=True), c))
    found.pile_up(20)
    assert found.board[found.peer(EXTRA)]
    found.want("lease@77/1")
    before = len(found.board[found.peer(EXTRA)])
    found.pile_up(1)
    assert len(found.board[found.peer(EXTRA)]) == before, "no more work for one that leaves"
    while found.board[found.peer(EXTRA)]:
        assert not found.parks(EXTRA)
        found.ran(EXTRA)
    assert found.parks(EXTRA) == 1 and not found.parks(REGULAR) and not found.parks("c@cuda:0/0")
    found.leave(EXTRA)
    found.want("lease@77/1", 0)
    found.run_everything()
    assert set(found.ended().values()) == {"ok"}


def test_it_stays_when_nothing_is_wanted_any_more_before_it_has_gone() -> None:
    found = helped()
    found.pile_up(20)
    found.want("lease@77/1")
    found.want("lease@77/1", 0)
    found.finish(EXTRA)
    assert not found.parks(EXTRA)


def test_nobody_leaves_for_an_extra_worker() -> None:
    c = text_stage("c", workers=plans("c", extras=0), timeout_base_s=1e6)
    found = Pressed(text_stage("b", workers=plans(), timeout_base_s=1e6), c)
    found.want(EXTRA)
    found.advance(10 * DEADLINES.turn_s)
    assert not found.parks(REGULAR) and not found.parks("c@cuda:0/0")


def test_it_leaves_when_another_worker_could_do_better_with_its_memory() -> None:
    c = text_stage("c", workers=plans("c", extras=0, smaller=SMALLER), timeout_base_s=1e6)
    found = come(Pressed(text_stage("b", workers=plans(), timeout_base_s=1e6), c))
    found.kill("c@cuda:0/0")
    found.lives["c@cuda:0/0"] += 1
    found.board[found.peer("c@cuda:0/0")] = []
    found.say("c@cuda:0/0", Here(), Denied("no", "no_vram"), Loading("m", 1), Loaded("m", 1))
    assert found.parks(EXTRA) == 1
    found.leave(EXTRA)
    found.room(NEEDS)
    found.finish("c@cuda:0/0")
    found.advance(REST + 1)
    assert found.parks("c@cuda:0/0") == 1, "so that it starts anew with its own model"


def test_it_leaves_when_it_ran_out_of_memory_and_nobody_makes_room_for_it() -> None:
    found = helped()
    found.pile_up(20)
    found.fail(found.peer(EXTRA), code="oom")
    assert not found.messages(Grow, found.peer(EXTRA))
    found.want("lease@77/1")
    found.finish(EXTRA)
    assert found.parks(EXTRA) == 1 and found.core.snapshot(found.now)["parked"] == 1, "whoever else wants it gone"


def test_it_leaves_when_it_ran_out_of_memory_though_nobody_wants_it_gone() -> None:
    found = helped()
    found.pile_up(6)
    found.fail(found.peer(EXTRA), code="oom")
    found.finish(EXTRA)
    assert found.parks(EXTRA) == 1


def test_one_that_dies_has_its_work_done_by_the_others_and_does_not_come_back_at_once() -> None:
    found = helped()
    found.pile_up(6)
    assert found.board[found.peer(EXTRA)]
    found.kill(EXTRA)
    found.start(EXTRA)
    found.room(NEEDS)
    found.advance(REST - 1)
    assert len(found.loads(EXTRA)) == 1
    found.run_everything()
    assert set(found.ended().values()) == {"ok"}


def test_who_is_refused_tries_again_as_if_there_were_no_extra_one() -> None:
    found = helped()
    found.kill(REGULAR)
    found.lives[REGULAR] += 1
    found.board[found.peer(REGULAR)] = []
    found.say(REGULAR, Here(), Denied("no", "no_vram"))
    before = len(found.loads(REGULAR))
    found.advance(DEADLINES.retry_delay_s + 0.1)
    assert len(found.loads(REGULAR)) == before + 1


def test_a_stage_without_its_regular_workers_is_lost_whatever_extra_ones_there_are() -> None:
    found = Pressed()
    found.kill(REGULAR, final=True)
    found.pile_up(1)
    assert found.ended() == {("s", 0): "error(failed)"}


# ---------------------------------------------------------------- operators, and beyond a scheduler's life


def test_orders_about_a_stage_bring_none() -> None:
    found = Pressed()
    found.order(Preload("b"))
    found.order(Orders(drained=(GPU,)))
    found.leave(REGULAR)
    found.order(Orders())
    found.load_all()
    assert found.life(REGULAR) is Life.LOADED and not found.loads(EXTRA)


def test_a_stage_s_models_are_wanted_and_its_extra_workers_leave_when_they_have_nothing_to_do() -> None:
    found = helped()
    found.advance(REST - 1)
    found.order(Preload("b"))
    found.advance(1.1)
    assert found.parks(EXTRA) == 1 and not found.parks(REGULAR)


def test_a_drained_device_is_left_and_not_come_back_to_by_itself() -> None:
    found = helped()
    found.order(Orders(drained=(GPU,)))
    assert found.parks(EXTRA) == 1
    found.leave(EXTRA)
    found.order(Orders())
    assert len(found.loads(EXTRA)) == 1 and "drained" in found.instances()["why"]


def test_an_unloaded_stage_comes_back_by_its_regular_worker() -> None:
    found = helped()
    lives = {role: found.lives[role] for role in (REGULAR, EXTRA)}
    found.order(Orders(errands=tuple(Errand(role, life, False) for role, life in lives.items())))
    for role in lives:
        found.leave(role)
    found.pile_up(1)
    assert found.life(REGULAR) is Life.LOADING and found.life(EXTRA) is Life.EMPTY


def test_a_worker_that_rests_comes_back_whatever_extra_ones_there_are() -> None:
    found = helped()
    found.order(Orders(errands=(Errand(REGULAR, found.lives[REGULAR], False),)))
    found.leave(REGULAR)
    found.pile_up(1)
    assert found.life(REGULAR) is Life.LOADING


def test_one_that_a_new_scheduler_finds_stays_until_it_is_idle() -> None:
    found = World(text_stage("b", workers=plans(), timeout_base_s=1e6), epoch=2)
    for role in (REGULAR, EXTRA):
        found.lives[role], found.board[f"{role}#1"] = 1, []
        found.core.handle(f"{role}#1", Here("loaded"), found.now)
        found.turn()
    assert found.core.concurrency() == {"b": 2}
    found.advance(REST - 0.1)
    assert not found.messages(Park, f"{EXTRA}#1")
    found.advance(0.2)
    assert found.messages(Park, f"{EXTRA}#1") and not found.messages(Park, f"{REGULAR}#1")


def test_what_a_dead_arbiter_said_is_no_room() -> None:
    found = Pressed()
    found.room(NEEDS)
    found.order(Gone("arbiter", 1, "killed"))
    found.pile_up(20)
    found.advance(100)
    assert not found.loads(EXTRA)
