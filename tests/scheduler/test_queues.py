"""Who goes next at a stage: promises of the queue, which are about order and shares and not about time."""

from __future__ import annotations

from collections import Counter, defaultdict

from hypothesis import given
from hypothesis import strategies as st

from engine.scheduler.jobs import Key
from engine.scheduler.queues import CREDIT, FORGET, StageQueue


def anybody(key: Key) -> bool:
    del key
    return True


def take(queue: StageQueue, now: float = 0.0) -> list[Key]:
    """The next one, which begins at once."""
    if picked := queue.pick(1, anybody, now):
        queue.begun(queue.place)
    return picked


def serve(queue: StageQueue, times: int, now: float = 0.0) -> list[str]:
    """Sessions in the order in which they are served."""
    return [session for _ in range(times) for session, _ in take(queue, now)]


def fill(queue: StageQueue, session: str, count: int, priority: str = "normal", **fields: float) -> None:
    now = fields.pop("now", 0.0)
    for index in range(count):
        queue.push((session, index), priority, now, **fields)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 20)), unique=True, max_size=30), st.integers(1, 4))
def test_within_a_session_the_lowest_index_always_goes_first(keys: list[Key], most: int) -> None:
    queue = StageQueue()
    for key in keys:
        queue.push(key, "normal", 0.0)
    left = set(keys)
    while left:
        for session, index in queue.pick(most, anybody, 0.0):
            assert index == min(i for s, i in left if s == session)
            left.remove((session, index))
        queue.check()
    assert not len(queue)


def test_a_flood_does_not_starve_another_session() -> None:
    queue = StageQueue()
    fill(queue, "flood", 100)
    queue.push(("good", 0), "normal", 0.0)
    assert "good" in serve(queue, 2)


@given(
    st.lists(st.floats(0.1, 30.0), min_size=40, max_size=40),
    st.lists(st.floats(0.1, 30.0), min_size=40, max_size=40),
    st.integers(1, 5),
    st.integers(1, 5),
)
def test_sessions_share_by_seconds_and_weight(ours: list[float], theirs: list[float], ws: int, wt: int) -> None:
    """The bound of start-time fair queueing, while both have work: one utterance of each, and what each may borrow."""
    queue = StageQueue()
    costs = {"s": ours, "t": theirs}
    for index in range(40):
        queue.push(("s", index), "normal", 0.0, ours[index], ws)
        queue.push(("t", index), "normal", 0.0, theirs[index], wt)
    served: dict[str, float] = defaultdict(float)
    weights = {"s": ws, "t": wt}
    while {session for session, _ in queue} == {"s", "t"}:
        ((session, index),) = take(queue)
        served[session] += costs[session][index]
        apart = abs(served["s"] / ws - served["t"] / wt)
        assert apart <= (1 + CREDIT) * (max(ours) / ws + max(theirs) / wt) + 1e-6, weights


def test_who_has_had_less_than_its_part_says_several_in_a_row_before_a_flood_s_next() -> None:
    queue = StageQueue()
    fill(queue, "flood", 100)
    fill(queue, "good", 1)
    serve(queue, 20)
    for index in range(1, 5):
        queue.push(("good", index), "normal", 0.0)
    assert serve(queue, 5) == ["good", "good", "good", "good", "flood"]


def test_who_has_just_come_has_earned_nothing() -> None:
    queue = StageQueue()
    fill(queue, "flood", 100)
    serve(queue, 20)
    fill(queue, "new", 4)
    assert serve(queue, 8).count("new") == 4 and "flood" in serve(queue, 1)


def test_those_who_earned_go_in_the_order_in_which_they_came_however_long_they_are() -> None:
    queue = StageQueue()
    fill(queue, "flood", 100)
    for name in "abc":
        fill(queue, name, 1)
    serve(queue, 40)
    for name, cost in (("b", 9.0), ("c", 1.0), ("a", 3.0)):
        queue.push((name, 1), "normal", 0.0, cost)
    assert serve(queue, 3) == ["b", "c", "a"]


def test_what_was_taken_while_nobody_wanted_any_is_no_debt() -> None:
    queue = StageQueue()
    fill(queue, "early", 50)
    serve(queue, 50)
    fill(queue, "late", 10)
    queue.push(("early", 50), "normal", 0.0)
    assert "early" in serve(queue, 2)


def test_two_floods_take_turns_whoever_came_first() -> None:
    queue = StageQueue()
    fill(queue, "first", 100)
    serve(queue, 20)
    fill(queue, "second", 100)
    assert serve(queue, CREDIT + 10)[CREDIT + 1 :].count("second") in (4, 5)


def test_who_comes_back_after_a_pause_has_saved_up_no_more_than_that() -> None:
    queue = StageQueue()
    fill(queue, "busy", 100)
    queue.push(("guest", 0), "normal", 0.0)
    serve(queue, 60)
    for index in range(1, 40):
        queue.push(("guest", index), "normal", 0.0)
    assert abs(Counter(serve(queue, 20))["guest"] - (CREDIT + (20 - CREDIT) / 2)) <= 1


def test_what_is_saved_up_is_as_many_utterances_whatever_all_weigh() -> None:
    queue = StageQueue()
    fill(queue, "busy", 200, weight=10.0)
    queue.push(("guest", 0), "normal", 0.0, weight=10.0)
    serve(queue, 120)
    for index in range(1, 80):
        queue.push(("guest", index), "normal", 0.0, weight=10.0)
    assert abs(Counter(serve(queue, 40))["guest"] - (CREDIT + (40 - CREDIT) / 2)) <= 1


def test_who_comes_before_what_was_picked_has_begun_is_before_who_comes_after() -> None:
    queue = StageQueue()
    fill(queue, "busy", 3 * CREDIT)
    serve(queue, 2 * CREDIT)
    queue.pick(1, anybody, 0.0)
    ahead = queue.place
    queue.push(("guest", 0), "normal", 0.0)
    first = queue.first(0.0)
    assert first is not None and first[0] < ahead
    queue.begun(ahead)
    queue.push(("late", 0), "normal", 0.0)
    assert [session for session, _ in (*take(queue), *queue.pick(1, anybody, 0.0))] == ["guest", "late"]
    assert first[0] < queue.place, "and no later than that"


def test_who_is_first_is_who_is_picked_next() -> None:
    queue = StageQueue()
    assert queue.first(0.0) is None
    fill(queue, "low", 1, "low")
    fill(queue, "gone", 1, "high")
    queue.remove(("gone", 0))
    first = queue.first(0.0)
    assert first is not None and queue.pick(1, anybody, 0.0) == [first[1]] == [("low", 0)] and queue.place == first[0]


def test_a_higher_priority_goes_first() -> None:
    queue = StageQueue()
    for priority in ("low", "normal", "high"):
        fill(queue, priority, 2, priority)
    assert serve(queue, 6) == ["high", "high", "normal", "normal", "low", "low"]


def test_a_session_whose_first_is_not_eligible_waits_and_others_do_not() -> None:
    queue = StageQueue()
    fill(queue, "a", 2, "high")
    fill(queue, "b", 1, "low")
    assert queue.pick(3, lambda key: key != ("a", 0), 0.0) == [("b", 0)]
    assert queue.pick(3, anybody, 0.0) == [("a", 0), ("a", 1)], "and keeps its turn"


def test_who_has_waited_for_long_gets_one_in_a_while_and_no_more() -> None:
    queue = StageQueue(age_s=10.0)
    fill(queue, "vip", 1000, "high")
    fill(queue, "low", 10, "low")
    served: list[str] = []
    for second in range(100):
        served += serve(queue, 4, float(second))
    assert served.count("low") == 4, "20 s for two levels, and a turn among the high ones"


def test_a_low_one_below_a_high_flood_waits_for_two_steps_and_for_one_below_a_normal_flood() -> None:
    for better, steps in (("high", 2), ("normal", 1)):
        queue = StageQueue(age_s=10.0)
        fill(queue, "flood", 1000, better)
        fill(queue, "low", 2, "low")
        seconds = [second for second in range(50) if "low" in serve(queue, 4, float(second))]
        assert [second // 10 for second in seconds] == [steps, 2 * steps]


def test_ageing_keeps_index_order_when_a_lower_one_comes_back() -> None:
    queue = StageQueue(age_s=10.0)
    fill(queue, "vip", 100, "high")
    queue.push(("low", 5), "low", 0.0)
    serve(queue, 1, 11.0)
    queue.push(("low", 3), "low", 12.0)
    found = [key for t in range(12, 40) for key in take(queue, float(t)) if key[0] == "low"]
    assert found == [("low", 3)]


def test_sessions_that_have_gone_are_forgotten() -> None:
    queue = StageQueue()
    fill(queue, "busy", 3 * FORGET)
    for n in range(3 * FORGET):
        queue.push((f"s{n}", 0), "normal", 0.0)
        serve(queue, 2)
    assert len(queue._idle) <= FORGET and len(queue._turns) <= 1


def test_however_many_have_aged_a_better_one_waits_for_its_turn_among_them_and_no_longer() -> None:
    queue, said, heard, served, longest = StageQueue(age_s=30.0), 0, 0, [0] * 320, 0.0
    for low in range(320):
        queue.push((str(low), 0), "low", 0.0)
    for run in range(1200):  # four a second
        now = run / 4
        if run >= 240 and run % 4 == 0:
            queue.push(("high", said), "high", now)
            said += 1
        ((session, index),) = take(queue, now)
        if session == "high":
            heard, longest = heard + 1, max(longest, now - (60 + index))
        else:
            served[int(session)] += 1
            queue.push((session, index + 1), "low", now)
    assert heard == said and longest <= 0.5, "two runs"
    assert min(served) >= 2, "and all of the others have had their turns"


def test_an_aged_one_is_served_beside_betters_who_never_leave_off() -> None:
    queue, seen = StageQueue(age_s=30.0), []
    queue.push(("low", 0), "low", 0.0)
    for run in range(400):
        queue.push(("high", run), "high", run / 4)
        queue.push(("high too", run), "high", run / 4)
        seen += [session for session, _ in take(queue, run / 4)]
    assert "low" in seen
