"""How many utterances a run may have: each of the bands, by example, and what holds whatever happens."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from engine.limits import start_value
from engine.scheduler.adapting import FEWEST, RUNS, USELESS_S, Limit, Tally
from ipc.messages import Done, Orders, RunResult
from tests.scheduler.world import World, text_stage

MOST = 8


def ran(limit: Limit, *tallies: Tally, waiting: int = 0, now: float = 0.0, least: int = 1) -> None:
    for tally in tallies:
        limit.ran(tally, waiting, least, MOST, now)


def well(size: int, seconds: float = 1.0) -> Tally:
    return Tally(size, 0, False, seconds)


def short(size: int) -> Tally:
    return Tally(size, 0, True, 1.0)


def test_24_gb_reserve_6_peak_6_begins_with_two() -> None:
    assert start_value(24, 6, 6) == 2


def test_it_begins_with_one_at_least() -> None:
    assert start_value(6, 1, 8) == start_value(16, 6, 6) == 1


def test_memory_that_runs_out_in_less_than_a_twentieth_of_the_runs_is_what_retries_are_for() -> None:
    limit = Limit(4)
    ran(limit, short(4), *[well(4)] * (RUNS - 1))
    assert limit.n == 4


def test_in_a_twentieth_of_them_it_is_one_less() -> None:
    limit = Limit(4)
    ran(limit, short(4), *[well(4)] * 15, short(4), *[well(4)] * 8)
    assert limit.n == 3
    ran(limit, *[well(3)] * 30, short(3))
    assert limit.n == 3 and "10% of the runs ran out of memory" in limit.why


def test_in_more_than_a_tenth_it_is_one_half() -> None:
    limit = Limit(8)
    ran(limit, short(8), *[well(8)] * 10, short(8), *[well(8)] * 6, short(8), well(8))
    assert limit.n == 4


def test_frequently_it_is_one_at_once() -> None:
    limit = Limit(8)
    ran(limit, well(8), short(8), short(8), short(8))
    assert limit.n == 1 and "3 of the last 10 runs" in limit.why


def test_nearly_all_well_and_many_waiting_is_one_more() -> None:
    limit = Limit(2)
    ran(limit, *[well(2)] * FEWEST, waiting=4)
    assert limit.n == 3


def test_nearly_all_well_and_nobody_waiting_is_right_as_it_is() -> None:
    limit = Limit(2)
    ran(limit, *[well(2)] * RUNS, waiting=3)
    assert limit.n == 2


def test_runs_that_are_not_full_need_no_more() -> None:
    limit = Limit(2)
    ran(limit, *[well(1)] * RUNS, waiting=100)
    assert limit.n == 2


def test_with_fewer_than_nine_tenths_well_it_is_one_less() -> None:
    limit = Limit(4)
    ran(limit, *[Tally(4, 1, False, 1.0)] * FEWEST, waiting=100)
    assert limit.n == 3 and "75% of the utterances" in limit.why


def test_between_that_and_nearly_all_it_stays() -> None:
    limit = Limit(4)
    ran(limit, *[well(4)] * 7, *[Tally(4, 1, False, 1.0)] * 3, waiting=100)
    assert limit.n == 4


def test_more_that_makes_nothing_faster_is_taken_back_and_not_tried_again_for_a_while() -> None:
    """Utterances that are carried out one by one: twice as many take twice as long."""
    limit = Limit(1)
    ran(limit, *[well(1, 3.0)] * FEWEST, waiting=100)
    assert limit.n == 2
    ran(limit, *[well(2, 6.0)] * FEWEST, waiting=100)
    assert limit.n == 1 and "an utterance takes 3.00 s" in limit.why
    ran(limit, *[well(1, 3.0)] * RUNS, waiting=100, now=USELESS_S - 1)
    assert limit.n == 1
    ran(limit, well(1, 3.0), waiting=100, now=USELESS_S)
    assert limit.n == 2


def test_on_a_device_that_bears_two_and_never_three_three_are_tried_less_and_less_often() -> None:
    limit, now, runs, ran_out, tried = Limit(1), 0.0, 0, 0, []
    while now < 8 * 3600.0:
        n = limit.within(1, 8)
        tally = short(n) if n > 2 else well(n, 3.0 + n)
        now += 10.0
        runs, ran_out = runs + 1, ran_out + (n > 2)
        tried += [now] * (n > 2 and (not tried or now - tried[-1] > 200))
        ran(limit, tally, waiting=100, now=now)
    assert ran_out < 0.02 * runs
    assert tried[2] - tried[1] > 1.5 * (tried[1] - tried[0]) and len(tried) < 15


def test_shortages_of_runs_that_cannot_be_smaller_keep_nothing_from_growing_afterwards() -> None:
    limit = Limit(1)
    ran(limit, *[short(1)] * 20)
    assert limit.n == 1
    ran(limit, *[well(1)] * 60, waiting=100, now=100.0)
    assert limit.n > 1, "whoever took the memory has gone"


def test_what_was_borne_after_all_is_forgotten_as_a_shortage() -> None:
    limit = Limit(4)
    ran(limit, *[short(4)] * 3)
    assert (limit.n, limit.tight) == (1, 4)
    for n in range(1, 6):
        ran(limit, *[well(n, 1.0)] * 10, waiting=100, now=400.0)
    assert limit.n > 4 and limit.tight == 0


def test_more_that_pays_stays_and_goes_on() -> None:
    limit = Limit(1)
    for n in range(1, MOST):
        assert limit.n == n
        ran(limit, *[well(n, 1.0)] * FEWEST, waiting=100)
    ran(limit, *[well(MOST, 1.0)] * RUNS, waiting=100)
    assert limit.n == MOST, "and never beyond"


tallies = st.builds(
    lambda size, failed, ran_out, seconds: Tally(size, min(failed, size), ran_out, seconds),
    st.integers(1, MOST), st.integers(0, 2), st.booleans(), st.floats(0.01, 10.0),
)  # fmt: skip


@given(st.integers(1, MOST), st.lists(st.tuples(tallies, st.integers(0, 50)), max_size=200), st.integers(1, 4))
def test_whatever_happens_it_stays_within_its_bounds_and_memory_never_raises_it(
    begun: int, happens: list[tuple[Tally, int]], least: int
) -> None:
    limit = Limit(max(begun, least))
    for number, (tally, waiting) in enumerate(happens):
        before = limit.n
        changed = limit.ran(tally, waiting, least, MOST, float(number))
        assert least <= limit.n <= MOST and changed == (limit.n != before) and limit.n <= before + 1
        assert not (tally.ran_out and sum(run.ran_out for run in limit.runs) >= 3 and limit.n > least and changed)


# ---------------------------------------------------------------- in the node


def run_out(world: World, times: int) -> None:
    worker = world.peer("a@cpu/0")
    for _ in range(times):
        while not world.board[worker]:
            world.advance(5.0)
        items = [world.board[worker].pop(0) for _ in range(len(world.board[worker]))]
        results = tuple(
            RunResult(item.ticket, state="completed", text="x", begun_ns=1, ended_ns=int(1e9)) for item in items
        )
        world.core.handle(worker, Done(results, fits=1), world.now)
        world.turn()


def busy(**fields: int) -> World:
    world = World(text_stage("a", max_batch=4, **fields), send_ahead=0)
    world.start_all()
    world.open()
    for index in range(40):
        world.admit(index)
    return world


def seen(world: World) -> dict[str, object]:
    found = world.core.snapshot(world.now)
    return {name: found["stages"]["a"][name] for name in ("max_batch", "max_batch_why")}


def test_a_node_whose_runs_run_out_of_memory_makes_them_smaller_takes_fewer_in_and_says_so() -> None:
    world = busy()
    assert world.core.concurrency() == {"a": 4}
    notes: list[str] = []
    world.on_note = notes.append
    run_out(world, 4)
    assert seen(world) == {"max_batch": 1, "max_batch_why": "3 of the last 10 runs ran out of memory"}
    assert world.core.concurrency() == {"a": 1}
    assert any("a runs up to 1 at once, not 4" in note for note in notes)


def test_a_least_of_two_is_kept() -> None:
    world = busy(min_batch=2)
    run_out(world, 4)
    assert seen(world)["max_batch"] == 2


def test_it_begins_as_the_plan_says() -> None:
    assert seen(busy(start_batch=2))["max_batch"] == 2


def test_operators_switch_it_off_and_on_and_bound_it() -> None:
    world = busy()
    run_out(world, 4)
    world.core.handle("supervisor", Orders(knobs={"node.adaptive": False}), world.now)
    assert seen(world) == {"max_batch": 4, "max_batch_why": "as configured"}
    world.core.handle("supervisor", Orders(knobs={"stages.a.max_batch": 2}), world.now)
    assert seen(world)["max_batch"] == 1, "what was learnt is not forgotten"
    world.core.handle("supervisor", Orders(knobs={"stages.a.max_batch": 1}), world.now)
    assert seen(world)["max_batch"] == 1


def test_utterances_that_cannot_be_done_by_their_own_fault_make_nobody_s_batches_smaller() -> None:
    world = busy()
    peer = world.peer("a@cpu/0")
    before = seen(world)["max_batch"]
    while world.board[peer]:
        items, world.board[peer] = world.board[peer], []
        at = int(world.now * 1e9)
        flaw = {"state": "failed", "code": "bad_text", "error": "cannot", "retry": False}
        results = [RunResult(one.ticket, **flaw, begun_ns=at, ended_ns=at + 1000) for one in items]
        world.core.handle(peer, Done(tuple(results)), world.now)
        world.turn()
    assert seen(world)["max_batch"] == before
