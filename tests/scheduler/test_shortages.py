"""Out of memory all the same: one ladder, pauses by device, and a count by phase; each rule by an example."""

from __future__ import annotations

import pytest

from engine.boot import WorkerPlan
from engine.scheduler.book import SUPERVISOR
from ipc.messages import Denied, Done, Gone, Grow, Here, Load, Run, RunResult, Serve
from tests.scheduler.world import DEADLINES, World, text_stage

LEFT, RIGHT = "cuda:0", "cuda:1"
D, HOLD, WINDOW = DEADLINES.retry_delay_s, DEADLINES.oom_hold_s, DEADLINES.oom_window_s
A, B = f"a@{LEFT}/0", f"a@{RIGHT}/0"


def stage(name: str, *devices: str, **fields):
    plans = tuple(
        WorkerPlan(role=f"{name}@{device}/0", stage=name, device=device, estimate_bytes=1000)
        for device in devices or (LEFT,)
    )
    return text_stage(name, workers=plans, **fields)


def world(*stages, **fields) -> World:
    found = World(*(stages or (stage("a"),)), **fields)
    found.start_all()
    found.core.handle(SUPERVISOR, Serve(), found.now)
    found.open()
    return found


def run_out(world: World, role: str) -> None:
    world.fail(world.peer(role), code="oom")


def on_board(world: World, role: str) -> list[int]:
    return [item.index for item in world.board[world.peer(role)]]


def counts(world: World) -> dict:
    return world.core.snapshot(world.now)["oom"]


def grown(world: World, role: str = A) -> list[int]:
    return [message.nbytes for message in world.messages(Grow, world.peer(role))]


# ------------------------------------------------------------ a job's ladder


def test_another_device_that_has_the_model_is_tried_at_once() -> None:
    w = world(stage("a", LEFT, RIGHT))
    w.admit(0)
    run_out(w, A)
    assert on_board(w, B) == [0] and not on_board(w, A)
    w.done(w.peer(B))
    (end,) = w.outcomes
    assert [(r.device, r.state) for r in end.outcome.stages] == [(LEFT, "retrying"), (RIGHT, "completed")]
    assert not grown(w), "the first device was only too full for this one"


def test_it_waits_for_the_other_device_while_that_is_busy_and_does_not_come_back() -> None:
    w = world(stage("a", LEFT, RIGHT), send_ahead=0)
    w.admit(0), w.admit(1)
    first, other = (A, B) if on_board(w, A) == [0] else (B, A)
    run_out(w, first)
    assert on_board(w, other) == [1] and not on_board(w, first)
    w.done(w.peer(other))
    assert on_board(w, other) == [0] and not on_board(w, first)


def test_at_the_next_stage_the_device_is_as_good_as_any() -> None:
    w = world(stage("a", LEFT, RIGHT), stage("b", LEFT, RIGHT), send_ahead=0)
    left, right = f"b@{LEFT}/0", f"b@{RIGHT}/0"
    w.admit(0)
    run_out(w, A)
    for index in (1, 2):  # they pass it, and have both workers of the next stage
        w.admit(index)
        w.done(w.peer(A))
    w.done(w.peer(left))
    w.done(w.peer(B))
    assert on_board(w, left) == [0] and len(on_board(w, right)) == 1


def test_when_no_device_has_enough_whole_tries_follow_with_a_larger_lease_and_then_its_end() -> None:
    w = world(stage("a", LEFT, RIGHT))
    w.admit(0, budget_ms=600_000)
    for wait in (D, 3 * D, 9 * D):
        assert len(on_board(w, A) + on_board(w, B)) == 1, "each try begins on one of them"
        first, second = (A, B) if on_board(w, A) else (B, A)
        run_out(w, first)
        assert on_board(w, second) == [0], "... goes to the other at once"
        run_out(w, second)
        w.advance(wait - 0.01)
        assert not on_board(w, A) and not on_board(w, B) and not w.ended()
        w.advance(0.02)
    first, second = (A, B) if on_board(w, A) else (B, A)
    run_out(w, first)
    run_out(w, second)
    assert w.ended() == {("s", 0): "error(no_vram)"}
    assert len(grown(w, A) + grown(w, B)) == 3


def test_the_estimate_is_raised_in_steps_and_not_beyond_twice_itself() -> None:
    w = world(max_retries=0)
    for index in range(3):
        w.admit(index, budget_ms=600_000)
        for again in (True, True, True, False):
            run_out(w, A)
            w.advance(10 * D * again)
    assert grown(w) == [250, 312, 391, 47], "a quarter more each time, up to 2000"
    assert set(w.ended().values()) == {"error(no_vram)"}


def test_the_raised_estimate_comes_down_when_runs_have_fitted_for_a_while() -> None:
    w = world()
    w.admit(0, budget_ms=600_000)
    run_out(w, A)
    w.advance(D + 0.2)
    w.done(w.peer(A))
    assert grown(w) == [250], "one run that fits shows little"
    w.advance(WINDOW)
    w.admit(1, budget_ms=600_000)
    w.done(w.peer(A))
    w.admit(2, budget_ms=600_000)
    w.done(w.peer(A))
    assert grown(w) == [250, 0], "what was leased besides is given back, once"
    w.admit(3, budget_ms=600_000)
    run_out(w, A)
    assert grown(w) == [250, 0, 250], "and the next shortage begins anew"


def test_and_when_there_is_nothing_to_run_and_nothing_to_try_again() -> None:
    w = world()
    w.admit(0, budget_ms=600_000)
    run_out(w, A)
    w.advance(D + 0.2)
    run_out(w, A)
    w.advance(2 * D)
    assert grown(w) == [250, 312], "it is tried again in a while"
    w.advance(D + 0.2)
    w.done(w.peer(A))
    for _ in range(10):
        w.advance(WINDOW / 2)
    assert grown(w) == [250, 312, 0]


def test_jobs_that_run_out_together_raise_the_estimate_once() -> None:
    w = world()
    w.admit(0, budget_ms=600_000)
    w.admit(1, budget_ms=600_000)
    run_out(w, A)
    run_out(w, A)
    assert grown(w) == [250]


def test_a_wait_that_would_end_after_the_deadline_ends_the_job_now_with_its_cause() -> None:
    w = world()
    w.admit(0, budget_ms=int(2 * D * 1000))
    run_out(w, A)
    w.advance(D + 0.01)
    run_out(w, A)
    assert w.ended() == {("s", 0): "error(no_vram)"} and "on purpose" in w.outcomes[0].outcome.error
    assert w.outcomes[0].outcome.error.endswith("; the next try, in 3.0 s, would come after its deadline")


def test_so_does_a_pause_of_all_its_devices() -> None:
    w = world()
    w.admit(0, budget_ms=int(600 * D * 1000))
    w.admit(1, budget_ms=int((D + 0.1) * 1000))
    run_out(w, A)
    run_out(w, A)
    assert w.ended() == {("s", 1): "error(no_vram)"}, f"its try would be in {HOLD} s"


def test_out_of_memory_is_no_reported_failure() -> None:
    w = world(max_retries=1)
    w.admit(0, budget_ms=600_000)
    for wait in (D, 3 * D):
        run_out(w, A)
        w.advance(wait + 0.01)
    w.fail(w.peer(A))
    w.advance(D)
    w.done(w.peer(A))
    assert w.ended() == {("s", 0): "ok"}


def test_the_end_after_all_tries_speaks_of_no_further_one() -> None:
    w = world()
    w.admit(0, budget_ms=600_000)
    for wait in (D, 3 * D, 9 * D, 0):
        run_out(w, A)
        w.advance(wait + 0.01)
    assert w.ended() == {("s", 0): "error(no_vram)"} and "next try" not in w.outcomes[0].outcome.error


# ------------------------------------------------------------ a device's pause


def test_who_waits_for_a_device_that_pauses_hears_of_it_at_its_deadline() -> None:
    w = world()
    for index in range(2):
        w.admit(index, budget_ms=600_000)
    run_out(w, A)
    run_out(w, A)
    w.admit(2, budget_ms=int(HOLD / 2 * 1000))
    w.advance(HOLD / 2 + 0.01)
    assert w.ended() == {("s", 2): "error(expired)"}
    assert w.outcomes[0].outcome.error.endswith(
        "it was pending at a (nothing begins on cuda:0 for a while: memory ran out there)"
    )
    w.advance(HOLD)
    w.admit(3, budget_ms=100)
    w.advance(0.2)
    assert w.ended()[("s", 3)] == "error(expired)"
    assert "memory" not in w.outcomes[1].outcome.error, "the pause is over"


def test_one_shortage_is_an_accident_and_two_are_a_pause_of_that_device() -> None:
    w = world(stage("a", LEFT, RIGHT), stage("b"), send_ahead=0)
    for session in ("t", "u", "v", "x", "y"):  # one each: a session's own order is not what this is about
        w.open(session)
        w.admit(0, session, budget_ms=600_000)
    run_out(w, A)
    assert on_board(w, A) == [0] and not counts(w)["holds"], "work goes on after the first"
    run_out(w, A)
    assert not on_board(w, A) and counts(w)["held_s"] == {LEFT: HOLD}
    w.done(w.peer(B))
    assert on_board(w, B) == [0], "others go on"
    begun = len(w.messages(Run, w.peer(A)))
    w.advance(HOLD - 0.01)
    assert len(w.messages(Run, w.peer(A))) == begun
    w.advance(0.02)
    assert len(w.messages(Run, w.peer(A))) == begun + 1, "and it goes on by itself"


def test_two_shortages_far_apart_are_two_accidents() -> None:
    w = world()
    for index in range(2):
        w.admit(index, budget_ms=600_000)
        run_out(w, A)
        w.advance(WINDOW + 0.01)
        w.done(w.peer(A))
    assert counts(w)["run"] == 2 and counts(w)["holds"] == 0


def test_no_model_is_loaded_on_a_device_that_pauses() -> None:
    w = world(stage("a"), stage("b"))
    w.kill("b@cuda:0/0")
    for index in range(2):
        w.admit(index, budget_ms=600_000)
    run_out(w, A)
    run_out(w, A)
    peer = w.start("b@cuda:0/0")
    assert not w.messages(Load, peer)
    w.advance(HOLD + 0.01)
    assert len(w.messages(Load, peer)) == 1


# ------------------------------------------------------------ batches


def test_batches_stay_as_small_as_memory_was_enough_for_and_grow_again() -> None:
    w = world(stage("a", max_batch=4), send_ahead=0)
    for index in range(30):
        w.admit(index)
    peer = w.peer(A)
    w.done(peer)
    batch = w.board[peer]
    assert len(batch) == 4
    results = tuple(RunResult(item.ticket, "completed", text="x") for item in batch)
    w.board[peer] = []
    w.core.handle(peer, Done(results, fits=2), w.now)
    w.turn()
    assert len(w.board[peer]) == 2 and counts(w)["run"] == 1
    w.advance(WINDOW + 0.01)
    w.done(peer)
    w.done(peer)
    assert len(w.board[peer]) == 4, "after a while without a shortage they are as configured"


# ------------------------------------------------------------ loads


def denied(w: World, role: str, code: str = "oom", phase: str = "load") -> None:
    """Its load has failed; as on every GPU, another process follows."""
    w.core.handle(w.peer(role), Denied("out of memory", code, phase=phase), w.now)
    w.turn()
    w.leave(role)


def test_a_load_that_runs_out_is_tried_again_after_d_3d_9d_with_more_memory() -> None:
    w = world()
    w.kill(A)
    w.lives[A] += 1
    w.board[w.peer(A)] = []
    w.core.handle(w.peer(A), Here(), w.now)
    w.turn()
    asked = []
    for wait in (D, 3 * D, 9 * D, 9 * D):
        (load,) = w.messages(Load, w.peer(A))
        asked.append(load.raised)
        denied(w, A)
        w.advance(wait - 0.01)
        assert not w.messages(Load, w.peer(A)), "not before its time, though it is another process"
        w.advance(0.02)
    assert asked == [1.0, 1.25, 1.5625, 1.953125]
    assert counts(w)["load"] == 4


def test_shortages_are_counted_by_phase() -> None:
    w = world()
    w.admit(0, budget_ms=600_000)
    run_out(w, A)
    for phase in ("load", "warm_up", "warm_up"):
        w.kill(A)
        w.lives[A] += 1
        w.board[w.peer(A)] = []
        w.core.handle(w.peer(A), Here(), w.now)
        w.turn()
        w.advance(HOLD)
        denied(w, A, phase=phase)
    seen = w.core.snapshot(w.now)
    assert {name: seen["oom"][name] for name in ("load", "warm_up", "run")} == {"load": 1, "warm_up": 2, "run": 1}
    assert seen["oom_errors"] == 4


def test_what_was_enough_before_is_asked_for_when_there_is_not_more() -> None:
    w = world()
    w.admit(0, budget_ms=600_000)
    run_out(w, A)
    w.kill(A)
    w.lives[A] += 1
    w.board[w.peer(A)] = []
    w.core.handle(w.peer(A), Here(), w.now)
    w.turn()
    w.core.handle(w.peer(A), Denied("no room for so much", "no_vram"), w.now)
    w.turn()
    assert [load.raised for load in w.messages(Load, w.peer(A))] == [1.25, 1.0]


@pytest.mark.parametrize("parked", [True, False])
def test_a_process_that_dies_after_its_load_failed_is_no_reason_to_wait_for_ever(parked: bool) -> None:
    w = world()
    w.kill(A)
    w.start(A)
    w.kill(A)
    w.lives[A] += 1
    w.board[w.peer(A)] = []
    w.core.handle(w.peer(A), Here(), w.now)
    w.turn()
    w.core.handle(w.peer(A), Denied("out of memory", "oom", phase="load"), w.now)
    w.core.handle(SUPERVISOR, Gone(A, w.lives[A], "x", parked=parked), w.now)
    w.turn()
    w.lives[A] += 1
    w.board[w.peer(A)] = []
    w.core.handle(w.peer(A), Here(), w.now)
    w.turn()
    w.advance(D + 0.01)
    assert len(w.messages(Load, w.peer(A))) == 1
