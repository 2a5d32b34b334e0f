"""Operators' orders, carried out on the bare core: each rule by an example."""

from __future__ import annotations

from engine.boot import VariantPlan, WorkerPlan
from engine.scheduler.book import SUPERVISOR
from engine.scheduler.workers import Life
from ipc.messages import (
    Denied,
    Errand,
    Gone,
    Here,
    LeaseWait,
    Load,
    Orders,
    Park,
    Preload,
    Progress,
    Run,
    Serve,
    Vacate,
)
from tests.scheduler.world import DEADLINES, World, text_stage

LEFT, RIGHT = "cuda:0", "cuda:1"


def stage(name: str, *devices: str, **fields):
    plans = tuple(WorkerPlan(role=f"{name}@{device}/0", stage=name, device=device) for device in devices or (LEFT,))
    return text_stage(name, workers=plans, **fields)


def world(*stages, **fields) -> World:
    found = World(*(stages or (stage("a", LEFT, RIGHT), stage("b"))), **fields)
    found.start_all()
    found.open()
    return found


def order(world: World, *errands: tuple[str, bool], drained: tuple[str, ...] = (), **knobs) -> None:
    """Everything that holds from now on; errands for the lives that are there."""
    made = tuple(Errand(role, world.lives[role], back) for role, back in errands)
    named = {name.replace("__", "."): value for name, value in knobs.items()}
    world.core.handle(SUPERVISOR, Orders(drained, made, named), world.now)
    world.turn()


def leaving(world: World) -> list[str]:
    return [send.peer for send in world.sent if isinstance(send.message, Park)]


def loads(world: World, role: str) -> int:
    return len(world.messages(Load, world.peer(role)))


def runs(world: World, role: str) -> int:
    return len(world.messages(Run, world.peer(role)))


def test_a_worker_leaves_after_all_batches_it_has_and_gets_no_more() -> None:
    w = world(stage("a"))
    for index in range(5):
        w.admit(index)
    peer = w.peer("a@cuda:0/0")
    assert len(w.board[peer]) == 2, "one that runs, one sent ahead"
    order(w, ("a@cuda:0/0", True))
    w.done(peer)
    assert not leaving(w)
    w.done(peer)
    assert leaving(w) == [peer] and not w.board[peer]
    w.leave("a@cuda:0/0")
    assert loads(w, "a@cuda:0/0") == 1, "a restarted worker loads at once"
    w.loaded(w.peer("a@cuda:0/0"))
    w.run_everything()
    assert set(w.ended().values()) == {"ok"} and len(w.ended()) == 5


def test_the_next_life_is_not_restarted_again_by_an_order_that_still_stands() -> None:
    w = world(stage("a"))
    order(w, ("a@cuda:0/0", True))
    w.leave("a@cuda:0/0")
    w.loaded(w.peer("a@cuda:0/0"))
    w.advance(10)
    assert len(leaving(w)) == 1


def test_a_worker_that_restarts_is_told_as_such_and_apart_from_the_one_that_is_lost() -> None:
    w = world(stage("a", RIGHT, LEFT))

    def told() -> tuple[str, str]:
        row = w.core.snapshot(w.now)["stages"]["a"]
        return row["coming"] or row["why"], row["lost_why"]

    w.core.handle(SUPERVISOR, Gone("a@cuda:1/0", w.lives["a@cuda:1/0"], "cuda:1 is quarantined", True), w.now)
    assert told() == ("", "cuda:1 is quarantined")
    order(w, ("a@cuda:0/0", True))
    life = w.lives["a@cuda:0/0"]
    w.core.handle(SUPERVISOR, Gone("a@cuda:0/0", life, "parked", parked=True), w.now)
    assert told() == ("a@cuda:0/0 is starting: restarted by an operator", "cuda:1 is quarantined")
    w.core.handle(f"a@cuda:0/0#{life + 1}", Here(), w.now)
    assert told()[0] == "a@cuda:0/0 loads its model"
    w.core.handle(f"a@cuda:0/0#{life + 1}", LeaseWait("it needs 3 GiB"), w.now)
    assert told()[0] == "it needs 3 GiB"


def test_an_unloaded_model_waits_for_work_though_it_is_pinned() -> None:
    w = world(stage("a", pinned=True))
    order(w, ("a@cuda:0/0", False))
    assert len(leaving(w)) == 1
    w.leave("a@cuda:0/0")
    assert not loads(w, "a@cuda:0/0")
    w.admit(0)
    assert loads(w, "a@cuda:0/0") == 1


def test_a_new_epoch_leaves_unloaded_what_was_unloaded_before_it() -> None:
    w = World(stage("a"), epoch=2)
    w.core.handle(SUPERVISOR, Orders((), (Errand("a@cuda:0/0", 1, False),)), w.now)
    w.lives["a@cuda:0/0"] = 2
    w.board["a@cuda:0/0#2"] = []
    w.core.handle("a@cuda:0/0#2", Here(), w.now)
    w.turn()
    assert not loads(w, "a@cuda:0/0") and w.core.book.workers["a@cuda:0/0"].parked


def test_an_order_that_is_undone_before_it_was_carried_out_changes_nothing() -> None:
    w = world(stage("a"))
    w.admit(0)
    order(w, drained=(LEFT,))
    order(w)
    w.done(w.peer("a@cuda:0/0"))
    w.admit(1)
    assert not leaving(w) and len(w.board[w.peer("a@cuda:0/0")]) == 1


def test_an_order_that_is_undone_too_late_is_carried_out() -> None:
    w = world(stage("a"))
    order(w, drained=(LEFT,))
    order(w)
    w.admit(0)
    assert len(leaving(w)) == 1 and not w.board[w.peer("a@cuda:0/0")]
    w.leave("a@cuda:0/0")
    w.loaded(w.peer("a@cuda:0/0"))
    w.run_everything()
    assert w.ended() == {("s", 0): "ok"}


def test_on_a_drained_device_nothing_begins_and_the_other_does_the_work() -> None:
    w = world()
    order(w, drained=(RIGHT,))
    assert leaving(w) == ["a@cuda:1/0#1"]
    w.leave("a@cuda:1/0")
    for index in range(4):
        w.admit(index)
    w.run_everything()
    assert set(w.ended().values()) == {"ok"}
    assert not loads(w, "a@cuda:1/0") and not w.messages(Run, "a@cuda:1/0#2")
    order(w)
    assert loads(w, "a@cuda:1/0") == 1


def test_work_for_a_drained_device_waits_and_is_done_when_it_is_used_again() -> None:
    w = world(stage("a"))
    order(w, drained=(LEFT,))
    w.leave("a@cuda:0/0")
    w.admit(0)
    w.advance(30)
    assert not loads(w, "a@cuda:0/0") and not w.ended()
    order(w)
    w.loaded(w.peer("a@cuda:0/0"))
    w.run_everything()
    assert w.ended() == {("s", 0): "ok"}


def test_an_utterance_for_a_drained_device_is_pending_and_says_so_until_something_loads() -> None:
    w = world(stage("a"))
    w.open("t", partials=True)

    def told() -> tuple[str, str]:
        status = w.messages(Progress)[-1].message
        shown = {job["session"]: job["stages"]["a"] for job in w.core.snapshot(w.now)["jobs"]}
        assert set(shown.values()) == {status.state}
        return status.state, status.reason

    order(w, drained=(LEFT,))
    w.leave("a@cuda:0/0")
    w.admit(0, "t")
    assert told() == ("pending", "cuda:0 is drained")
    row = w.core.snapshot(w.now)["stages"]["a"]
    assert (row["waiting"], row["why"], row["coming"]) == (1, "cuda:0 is drained", "")
    order(w)
    assert told() == ("loading", "")
    order(w, drained=(LEFT,))
    assert told() == ("pending", "cuda:0 is drained")
    order(w)
    w.leave("a@cuda:0/0")
    w.loaded(w.peer("a@cuda:0/0"))
    w.run_everything()
    assert w.ended() == {("t", 0): "ok"}


def test_what_came_before_the_drain_is_told_of_it_when_the_model_has_gone() -> None:
    w = world(stage("a"))
    w.open("t", partials=True)
    for index in range(4):
        w.admit(index, "t")
    order(w, drained=(LEFT,))
    for _ in range(2):
        w.done(w.peer("a@cuda:0/0"))
    w.leave("a@cuda:0/0")
    waiting = [one.message for one in w.messages(Progress)[-2:]]
    assert [(one.index, one.state, one.reason) for one in waiting] == [
        (2, "pending", "cuda:0 is drained"),
        (3, "pending", "cuda:0 is drained"),
    ]


def test_a_parked_worker_elsewhere_takes_over_from_a_drained_device() -> None:
    w = world(stage("a", LEFT, RIGHT))
    order(w, ("a@cuda:1/0", False))
    w.leave("a@cuda:1/0")
    w.admit(0)
    w.admit(1)
    w.admit(2)
    order(w, drained=(LEFT,))
    assert loads(w, "a@cuda:1/0") == 1, "who is left does the waiting work"


def test_the_capacity_falls_with_a_drained_device_and_is_never_none() -> None:
    w = world(stage("a", LEFT, RIGHT, max_batch=2))
    assert w.core.concurrency() == {"a": 4}
    order(w, drained=(RIGHT,))
    assert w.core.concurrency() == {"a": 2}
    order(w, drained=(LEFT, RIGHT))
    assert w.core.concurrency() == {"a": 2}, "what waits for the devices is still bounded, and still taken in"


def test_a_worker_that_dies_on_a_drained_device_does_not_load_again() -> None:
    w = world(stage("a"))
    w.admit(0)
    order(w, drained=(LEFT,))
    w.kill("a@cuda:0/0")
    w.lives["a@cuda:0/0"] += 1
    w.board[w.peer("a@cuda:0/0")] = []
    w.core.handle(w.peer("a@cuda:0/0"), Here(), w.now)
    w.turn()
    assert not loads(w, "a@cuda:0/0")


def test_a_worker_that_leaves_by_order_is_not_asked_to_leave_for_another_too() -> None:
    w = world(stage("a"), stage("b"))
    w.admit(0)
    w.done(w.peer("a@cuda:0/0"))
    w.admit(1)
    order(w, ("a@cuda:0/0", True))
    w.core.handle("arbiter#1", Vacate(LEFT, 100, "lease@77/1"), w.now)
    w.advance(2 * DEADLINES.turn_s)
    assert w.core.book.workers["b@cuda:0/0"].leaving, "who comes back makes no room"
    w.done(w.peer("a@cuda:0/0"))
    assert leaving(w).count("a@cuda:0/0#1") == 1
    w.leave("a@cuda:0/0")
    assert loads(w, "a@cuda:0/0") == 1


def test_a_restarted_worker_loads_again_however_long_it_takes_to_leave_and_whatever_becomes_of_its_load() -> None:
    w = world(stage("a", keep_alive_s=1.0))
    order(w, ("a@cuda:0/0", True))
    w.advance(3)
    w.leave("a@cuda:0/0")
    assert loads(w, "a@cuda:0/0") == 1
    for code in ("oom", "no_vram"):
        smaller = VariantPlan(name="int8", model="m", compute_type="int8", estimate_bytes=1)
        plan = WorkerPlan(role="a@cuda:0/0", stage="a", device=LEFT, smaller=(smaller,))
        w = World(text_stage("a", workers=(plan,)))
        w.core.handle(SUPERVISOR, Serve(), w.now)
        w.lives["a@cuda:0/0"], w.board["a@cuda:0/0#1"] = 1, []
        w.core.handle("a@cuda:0/0#1", Here(), w.now)
        order(w, ("a@cuda:0/0", True))
        w.core.handle("a@cuda:0/0#1", Denied("no", code), w.now)
        w.turn()
        w.leave("a@cuda:0/0")
        assert loads(w, "a@cuda:0/0") == 1


def test_loading_ahead_of_work_begins_anew_what_keep_alive_counts() -> None:
    w = world(stage("a", keep_alive_s=5.0))
    w.advance(6)
    assert len(leaving(w)) == 1
    w.leave("a@cuda:0/0")
    w.core.handle(SUPERVISOR, Preload("a"), w.now)
    w.turn()
    assert loads(w, "a@cuda:0/0") == 1
    w.loaded(w.peer("a@cuda:0/0"))
    w.advance(4)
    w.core.handle(SUPERVISOR, Preload("a"), w.now)
    w.turn()
    w.advance(4)
    assert len(leaving(w)) == 1 and w.core.book.workers["a@cuda:0/0"].life is Life.LOADED


def test_a_pin_and_a_keep_alive_hold_from_the_order_on_and_no_longer() -> None:
    w = world(stage("a"))
    order(w, stages__a__keep_alive_s=5.0, stages__a__pinned=True)
    w.advance(60)
    assert not leaving(w)
    order(w, stages__a__keep_alive_s=5.0)
    w.advance(6)
    assert len(leaving(w)) == 1


def test_batches_are_no_larger_than_an_operator_lets_them_be() -> None:
    w = world(stage("a", max_batch=4), send_ahead=0)
    for index in range(9):
        w.admit(index)
    peer = w.peer("a@cuda:0/0")
    order(w, stages__a__max_batch=2)
    w.done(peer)
    w.turn()
    sizes = [len(run.items) for run in w.messages(Run, peer)]
    assert sizes == [1, 2]
    order(w)
    w.done(peer)
    w.done(peer)
    assert len(w.messages(Run, peer)[-1].items) == 4


def test_retries_follow_the_knobs() -> None:
    w = world(stage("a"))
    order(w, node__max_retries=0)
    w.admit(0)
    w.fail(w.peer("a@cuda:0/0"))
    assert w.ended() == {("s", 0): "error(failed)"}
