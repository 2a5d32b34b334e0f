"""Who leaves a device for whom, and who comes back: each rule by an example on the bare core."""

from __future__ import annotations

from engine.boot import WorkerPlan
from engine.scheduler.book import SUPERVISOR
from engine.scheduler.workers import Life
from ipc.messages import CancelJob, Denied, Gone, Here, Load, Loaded, Loading, Park, Preload, Ready, Run, Serve, Vacate
from tests.scheduler.world import DEADLINES, World, text_stage

GPU = "cuda:0"
TURN = DEADLINES.turn_s


def stage(name: str, device: str = GPU, **fields):
    plan = WorkerPlan(role=f"{name}@{device}/0", stage=name, device=device, estimate_bytes=1000)
    return text_stage(name, workers=(plan,), **fields)


def world(*names: str, device: str = GPU, **fields) -> World:
    """Stages on one GPU, all of them loaded."""
    found = World(*(stage(name, device, **fields) for name in names))
    found.start_all()
    found.open()
    return found


def role(name: str) -> str:
    return f"{name}@{GPU}/0"


def want(world: World, by: str, nbytes: int = 500, device: str = GPU, arbiter: int = 1, *, again: bool = False) -> None:
    by = role(by) if nbytes else ""
    world.core.handle(f"arbiter#{arbiter}", Vacate(device, nbytes, by, again), world.now)
    world.turn()


def parked(world: World) -> list[str]:
    return [send.peer.partition("@")[0] for send in world.sent if isinstance(send.message, Park)]


def leave(world: World, name: str) -> None:
    """The parked worker ends, and its next life says that it is here."""
    world.core.handle(SUPERVISOR, Gone(role(name), world.lives[role(name)], "parked", parked=True), world.now)
    world.turn()
    world.lives[role(name)] += 1
    world.board[world.peer(role(name))] = []
    world.core.handle(world.peer(role(name)), Here(), world.now)
    world.turn()


def come(world: World, name: str) -> None:
    """A worker that was told to load has loaded."""
    for message in (Loading(), Loaded("")):
        world.core.handle(world.peer(role(name)), message, world.now)
        world.turn()


def loads(world: World, name: str) -> int:
    return len(world.messages(Load, world.peer(role(name))))


def test_whoever_no_utterance_needs_leaves_at_once() -> None:
    found = world("a", "b", "c")
    found.admit(0)
    found.done(found.peer(role("a")))  # it is at b now: nobody needs a any more
    want(found, "d")
    assert parked(found) == ["a"]


def test_one_leaves_at_a_time_and_the_next_when_something_is_still_lacking() -> None:
    found = world("a", "b", "c")
    want(found, "c")
    assert len(parked(found)) == 1
    found.advance(5.0)
    assert len(parked(found)) == 1, "the arbiter has not said that it lacks more"
    leave(found, parked(found)[0])
    want(found, "c", 200, again=True)
    assert sorted(parked(found)) == ["a", "b"], "and never the one that asks"


def test_nobody_leaves_while_anybody_there_has_something_to_do_and_all_are_needed() -> None:
    found = world("a", "b", "c")
    found.admit(0)  # in a, and needs b and c after it
    want(found, "c")
    assert parked(found) == []


def test_utterances_that_have_no_memory_yet_keep_nobody_at_work() -> None:
    found = world("a", "b", "c")
    found.kill(role("c"))
    found.admit(0)
    for name in "ab":
        found.done(found.peer(role(name)))  # it waits at c
    found.admit(1, waiting=True)
    want(found, "c")
    assert parked(found) == ["b"], "of the two that nobody can give work to, the one that is needed later"


def test_when_all_wait_for_who_asks_the_one_needed_last_goes() -> None:
    found = world("a", "b", "c")
    found.kill(role("a"))
    found.admit(0)  # waits at a; b is needed after it, c last
    want(found, "a")
    assert parked(found) == ["c"]


def test_of_two_needed_equally_late_the_one_that_is_back_sooner_goes() -> None:
    found = World(stage("a"), stage("b"), stage("c"))
    for name, ms in (("a", 5000.0), ("b", 200.0)):
        found.lives[role(name)] = 1
        found.board[found.peer(role(name))] = []
        for message in (Here(), Loading(), Loaded("", load_ms=ms)):
            found.core.handle(found.peer(role(name)), message, found.now)
            found.turn()
    want(found, "c")
    assert parked(found) == ["b"]


def test_patience_ends_and_who_has_stayed_so_long_leaves_after_its_last_batch() -> None:
    found = world("a", "b")
    for index in range(5):
        found.admit(index)
    want(found, "c")
    found.advance(TURN - 1.0)
    assert parked(found) == []
    found.advance(1.5)
    chosen = role("b")  # needed later than a, where they wait
    assert found.core.book.workers[chosen].leaving and parked(found) == ["b"]
    found.done(found.peer(role("a")))
    assert not found.messages(Run, found.peer(chosen)), "no more work for one that leaves"


def test_who_waits_for_a_turn_is_told_whose_it_is_and_for_how_long_at_most() -> None:
    w = world("a", "b")
    for index in range(200):
        w.admit(index)
    want(w, "b")

    def told() -> str:
        rows = w.core.snapshot(w.now)["workers"]
        assert not rows[role("a")]["turn"]
        return rows[role("b")]["turn"]

    left = f"for {TURN:.0f} s more at most (deadlines.turn_s) and its last batch"
    assert told() == f"it is the turn of a@cuda:0/0, {left}"
    w.advance(TURN)
    assert told() == "a@cuda:0/0 leaves for it, after the batch it runs"
    want(w, "b", 0)
    assert told() == ""


def test_a_model_that_has_just_come_stays_its_turn_however_long_others_have_waited() -> None:
    found = world("a")
    for index in range(5):
        found.admit(index)
    want(found, "c")
    found.advance(TURN / 2)
    found.kill(role("a"))
    found.start(role("a"))
    come(found, "a")
    worker = found.core.book.workers[role("a")]
    found.advance(TURN / 2 + 0.5)
    assert worker.life is Life.LOADED and not worker.leaving, "c has waited long enough, and a has not stayed so"
    found.advance(TURN / 2)
    assert worker.leaving


def test_who_asks_again_has_waited_since_it_first_asked() -> None:
    found = world("a", "b")
    for index in range(5):
        found.admit(index)
    for _ in range(4):
        want(found, "c", 500)
        found.advance(TURN / 4 + 0.2)
    assert parked(found) == ["b"]


def test_who_leaves_with_work_on_board_does_it_first() -> None:
    found = world("a", "b")
    found.admit(0)
    found.admit(1)
    found.done(found.peer(role("a")))  # 0 runs at b, 1 at a
    want(found, "c")
    found.advance(TURN + 0.5)
    (leaving,) = [w for w in found.core.book.workers.values() if w.leaving]
    assert parked(found) == [] and leaving.batches
    found.done(leaving.peer)
    assert parked(found) == [leaving.plan.stage]


def test_who_was_to_leave_stays_when_nothing_is_wanted_any_more() -> None:
    found = world("a", "b")
    for index in range(3):
        found.admit(index)
    found.done(found.peer(role("a")))
    want(found, "c")
    found.advance(TURN + 0.5)
    (leaving,) = [w for w in found.core.book.workers.values() if w.leaving]
    want(found, "c", 0)
    assert not leaving.leaving
    found.run_everything()
    assert parked(found) == [] and set(found.ended().values()) == {"ok"}


def test_the_arbiter_s_death_lets_stay_who_was_to_leave() -> None:
    found = world("a", "b")
    found.admit(0)
    found.admit(1)
    found.done(found.peer(role("a")))
    want(found, "c")
    found.advance(TURN + 0.5)
    found.core.handle(SUPERVISOR, Gone("arbiter", 1, "killed"), found.now)
    found.turn()
    assert not any(worker.leaving for worker in found.core.book.workers.values())


def test_late_news_of_an_arbiter_s_death_are_no_news_of_the_next_one() -> None:
    found = world("a", "b")
    found.admit(0)
    found.core.handle("arbiter#2", Vacate(GPU, 500, role("c")), found.now)
    found.core.handle(SUPERVISOR, Gone("arbiter", 1, "killed"), found.now)
    found.core.handle("arbiter#1", Vacate(GPU, 0), found.now)  # late words of the dead
    found.turn()
    found.run_everything()
    assert parked(found), "the second arbiter's wish holds"


def test_a_parked_model_comes_back_when_its_stage_has_work_and_not_before() -> None:
    found = world("a", "b")
    want(found, "b")
    assert parked(found) == ["a"]
    leave(found, "a")
    want(found, "", 0)
    assert loads(found, "a") == 0
    found.admit(0)
    assert loads(found, "a") == 1
    come(found, "a")
    found.run_everything()
    assert found.ended() == {("s", 0): "ok"}


def test_work_that_came_while_a_model_was_leaving_calls_it_back() -> None:
    found = world("a", "b")
    want(found, "b")
    found.admit(0)
    leave(found, "a")
    want(found, "", 0)
    assert loads(found, "a") == 1
    come(found, "a")
    found.run_everything()
    assert found.ended() == {("s", 0): "ok"}


def test_a_worker_that_was_refused_while_parked_is_asked_again() -> None:
    found = world("a", "b")
    found.core.handle(SUPERVISOR, Serve(), found.now)
    want(found, "b")
    leave(found, "a")
    want(found, "", 0)
    found.admit(0)
    found.core.handle(found.peer(role("a")), Denied("no room"), found.now)
    found.turn()
    found.advance(DEADLINES.retry_delay_s + 0.1)
    assert loads(found, "a") == 2


def kept_out() -> World:
    """a has left for c, which waits for its first lease there and lacks more yet; a has work again."""
    found = World(stage("a"), stage("b"), stage("c"))
    for name in "ab":
        found.start(role(name))
    found.lives[role("c")] = 1
    found.core.handle(found.peer(role("c")), Here(), found.now)
    found.open()
    want(found, "c")
    assert parked(found) == ["a"]
    leave(found, "a")
    want(found, "c", 200, again=True)
    found.admit(0)
    return found


def test_who_has_left_for_another_is_not_called_back_while_that_one_waits_for_its_lease() -> None:
    found = kept_out()
    assert loads(found, "a") == 0
    want(found, "", 0)  # what it still lacked is on its way back
    assert loads(found, "a") == 0
    found.core.handle(found.peer(role("c")), Loading(), found.now)
    found.turn()
    assert loads(found, "a") == 1


def test_nor_is_it_kept_out_when_that_one_has_been_refused_or_for_longer_than_a_turn() -> None:
    found = kept_out()
    found.core.handle(found.peer(role("c")), Denied("no room"), found.now)
    want(found, "", 0)
    assert loads(found, "a") == 1
    found = kept_out()
    found.advance(TURN - 0.1)
    assert loads(found, "a") == 0
    found.advance(0.2)
    assert loads(found, "a") == 1


def test_an_operator_s_load_does_not_wait_for_whom_it_left() -> None:
    found = kept_out()
    found.core.handle(SUPERVISOR, Preload("a"), found.now)
    found.turn()
    assert loads(found, "a") == 1


def test_pinned_models_never_leave() -> None:
    found = world("a", "b", pinned=True)
    want(found, "c")
    found.advance(3 * TURN)
    assert parked(found) == []


def test_another_device_s_models_have_nothing_to_do_with_it() -> None:
    found = world("a", "b", device="cuda:1")
    want(found, "c")
    assert parked(found) == []


def test_a_model_leaves_when_it_has_been_idle_for_its_keep_alive() -> None:
    found = world("a", keep_alive_s=5.0)
    found.admit(0)
    found.advance(20.0)
    assert parked(found) == [], "its run is not over"
    found.done(found.peer(role("a")))
    found.advance(4.9)
    assert parked(found) == []
    found.advance(0.2)
    assert parked(found) == ["a"]


def test_a_keep_alive_of_nothing_is_to_leave_after_each_piece_of_work() -> None:
    found = world("a", keep_alive_s=0.0)
    assert parked(found) == ["a"]
    found.admit(0)
    leave(found, "a")
    come(found, "a")
    assert parked(found) == ["a"], "it has work"
    found.done(found.peer(role("a")))
    assert parked(found) == ["a", "a"] and found.ended() == {("s", 0): "ok"}


def test_a_node_whose_models_take_turns_is_ready_when_each_has_been_loaded_once() -> None:
    found = World(stage("a"), stage("b"))
    found.start(role("a"))
    assert not found.messages(Ready, SUPERVISOR)
    want(found, "b")
    leave(found, "a")
    found.start(role("b"))
    (ready,) = found.messages(Ready, SUPERVISOR)
    assert "take turns" in ready.mode_reason and "away at the start: a" in ready.mode_reason


def test_a_parked_worker_that_is_lost_comes_back_for_no_work_and_is_not_counted_so() -> None:
    found = world("a", "b")
    want(found, "b")
    leave(found, "a")
    assert found.core.snapshot(found.now)["stages"]["a"]["parked"] == 1
    found.core.handle(SUPERVISOR, Gone(role("a"), found.lives[role("a")], "the device is lost", final=True), found.now)
    row = found.core.snapshot(found.now)["stages"]["a"]
    assert (row["parked"], row["called"], row["lost"]) == (0, 0, 1)


def test_a_parked_worker_that_is_killed_instead_is_a_death_and_stays_parked() -> None:
    found = world("a", "b")
    want(found, "b")
    found.kill(role("a"))
    assert found.core.book.totals.deaths == 1
    found.lives[role("a")] += 1
    found.core.handle(found.peer(role("a")), Here(), found.now)
    found.turn()
    assert found.core.book.workers[role("a")].life is Life.EMPTY and loads(found, "a") == 0


def test_parked_by_an_epoch_that_died_it_is_no_loss_to_the_next() -> None:
    """This epoch had given it work, which it never got to read."""
    found = world("a")
    found.admit(0)
    found.core.handle(SUPERVISOR, Gone(role("a"), 1, "parked", parked=True), found.now)
    found.turn()
    found.start(role("a"))
    found.run_everything()
    assert found.ended() == {("s", 0): "ok"}


def test_while_one_is_going_nobody_else_leaves_whatever_the_figures_say_meanwhile() -> None:
    found = world("a", "b", "c")
    want(found, "d", 500)
    assert len(parked(found)) == 1
    want(found, "d", 900)
    want(found, "d", 0)
    want(found, "e", 300)
    leave(found, parked(found)[0])
    want(found, "e", 400)  # its memory may still be on its way
    found.advance(5.0)
    assert len(parked(found)) == 1


def test_that_its_memory_is_back_may_be_told_before_its_death_is() -> None:
    found = world("a", "b", "c")
    want(found, "d", 500)
    (first,) = parked(found)
    want(found, "d", 200, again=True)
    assert len(parked(found)) == 2
    leave(found, first)


def test_who_is_idle_for_long_leaves_and_nobody_else_for_what_lacks_meanwhile() -> None:
    found = World(stage("a", keep_alive_s=5.0), stage("b"), stage("c"))
    for name in "abc":
        found.start(role(name))
    found.advance(6.0)
    assert parked(found) == ["a"]
    want(found, "c")
    assert parked(found) == ["a"]
    want(found, "c", again=True)
    assert parked(found) == ["a", "b"]


def test_who_was_to_leave_and_may_stay_is_no_answer_to_what_is_wanted_next() -> None:
    found = world("a")
    found.admit(0)
    want(found, "c")
    found.advance(2 * TURN)
    worker = found.core.book.workers[role("a")]
    assert worker.leaving and parked(found) == [], "it leaves after its batch"
    want(found, "c", 0)
    found.done(found.peer(role("a")))
    assert not worker.leaving and parked(found) == []
    want(found, "c")
    assert parked(found) == ["a"]


def test_who_leaves_of_old_age_gives_room_too_and_is_not_let_go_a_second_time() -> None:
    found = World(stage("a"), stage("b", keep_alive_s=1.0))
    found.start_all()
    found.open()
    found.admit(0)
    want(found, "c")
    found.advance(1.1)
    assert parked(found) == ["b"]
    found.advance(2 * TURN)
    assert parked(found) == ["b"] and found.core.snapshot(found.now)["parked"] == 1
    assert not found.core.book.workers[role("a")].leaving, "c waits for what that gives"
    leave(found, "b")
    want(found, "c", 200, again=True)
    found.advance(TURN)
    assert found.core.book.workers[role("a")].leaving, "and for more when it was not enough"


def test_when_more_is_lacking_whoever_is_to_leave_is_still_the_only_one_and_is_counted_once() -> None:
    found = world("a", "b")
    for index in range(4):
        found.admit(index)
    found.done(found.peer(role("a")))
    want(found, "c")
    found.advance(TURN + 0.5)
    (leaving,) = [w for w in found.core.book.workers.values() if w.leaving]
    found.done(found.peer(role("b")))  # it would be the one now
    want(found, "c", 900)
    found.advance(TURN)
    assert [w for w in found.core.book.workers.values() if w.leaving] == [leaving] and leaving.plan.stage == "a"
    while found.board[leaving.peer]:
        found.done(leaving.peer)
    want(found, "c", 1900)
    found.advance(TURN)
    assert parked(found) == ["a"] and found.core.snapshot(found.now)["parked"] == 1


def test_whoever_has_nothing_to_do_goes_before_one_that_works_in_vain() -> None:
    found = world("a", "b")
    found.admit(0)
    found.tell(CancelJob("s", 0))  # its run goes on, and nobody waits for it
    assert found.core.book.workers[role("a")].batches
    want(found, "c")
    assert parked(found) == ["b"]


def test_a_model_that_asks_for_more_does_not_leave_for_itself() -> None:
    found = world("a", "b")
    want(found, "a")
    assert parked(found) == ["b"]
    leave(found, "b")
    want(found, "a", 200, again=True)
    found.advance(3 * TURN)
    assert parked(found) == ["b"]


def test_another_arbiter_s_first_word_ends_what_the_one_before_it_lacked() -> None:
    found = world("a")
    found.admit(0)
    want(found, "c")
    found.advance(TURN + 0.5)
    assert found.core.book.workers[role("a")].leaving
    want(found, "c", device="cuda:1", arbiter=2)
    assert not found.core.book.workers[role("a")].leaving


def test_devices_that_share_a_memory_make_room_for_each_other_one_at_a_time() -> None:
    found = World(stage("a"), stage("b", "cpu"), books={GPU: "cpu"})
    found.start_all()
    want(found, "c", device="cpu")
    assert parked(found) == ["a"]
    want(found, "c", 900, device="cpu")
    assert parked(found) == ["a"], "its memory is on its way"
    leave(found, "a")
    want(found, "c", 400, device="cpu", again=True)
    assert parked(found) == ["a", "b"]


def test_a_model_that_is_still_on_its_way_in_does_not_leave_again() -> None:
    found = world("a", "b", "c")
    found.kill(role("a"))
    found.lives[role("a")] += 1
    found.board[found.peer(role("a"))] = []
    found.core.handle(found.peer(role("a")), Here(), found.now)
    found.turn()
    found.kill(role("b"))
    found.kill(role("c"))
    want(found, "d")
    found.advance(3 * TURN)
    assert found.core.book.workers[role("a")].life is Life.LOADING and parked(found) == []
