"""How the node's places are divided among sessions, and what the ledger and the line know of them without a walk.

Shares are max-min fair by weight, and the better goes before the lesser. Everything that is asked at each ``Busy`` is
compared with a plain slow computation, and costs about as much beside a thousand others in line as beside ten.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stand import Stand

from engine.gateway.events import Arrived, Tell
from engine.gateway.gate import Gate
from engine.gateway.ledger import RANKS, Ledger, Part, State
from engine.gateway.shares import ONE
from ipc.messages import Admit, Busy, Capacity, Skip, Submit

HIGH, NORMAL, LOW = (RANKS[name] for name in ("high", "normal", "low"))
SESSIONS = st.lists(st.tuples(st.sampled_from((HIGH, NORMAL, LOW)), st.integers(1, 10), st.integers(0, 12)), min_size=1)


def ledger(*sessions: tuple[int, int, int]) -> Ledger:
    """Sessions "0", "1", ... by rank, weight, and how many unended they have."""
    made = Ledger()
    for number, (rank, weight, unended) in enumerate(sessions):
        made.open(str(number), Part(rank, weight))
        for index in range(unended):
            made.admit(Admit(str(number), index, 1000, text="x"), 0.0)
    made.check()
    return made


def share(made: Ledger, places: int, asks: str, line: Iterable[str]) -> int:
    """What ``asks`` may have of so many places while these stand in line."""
    for name in line:
        made.shares.wait(name, True)
    made.check()
    return made.shares.share(asks, places)


def test_weights_count_also_where_there_are_more_sessions_than_places() -> None:
    made = ledger((NORMAL, 10, 1), *[(NORMAL, 1, 1)] * 14)
    everybody = [str(number) for number in range(15)]
    assert share(made, 10, "0", everybody) == 10 * 10 // 24
    assert share(made, 10, "1", everybody) == 1


def test_lesser_priorities_take_nothing_from_a_better_one_and_it_from_them() -> None:
    made = ledger((HIGH, 1, 2), *[(LOW, 1, 3)] * 5)
    everybody = [str(number) for number in range(6)]
    assert share(made, 12, "0", everybody) == 12
    assert share(made, 12, "1", everybody) == 2, "a sixth, as if they were alike: what is left is the stages' to order"


def test_what_some_leave_is_for_who_wants_more() -> None:
    made = ledger((NORMAL, 1, 4), (NORMAL, 1, 1), (NORMAL, 2, 1))
    assert share(made, 12, "0", ["0"]) == 10


def test_a_session_takes_turns_with_those_of_its_priority_alone() -> None:
    made = ledger((NORMAL, 2, 1), (NORMAL, 6, 3), (LOW, 5, 1), (HIGH, 7, 1), (NORMAL, 10, 0))
    assert made.round("0") == 1 + 6 / 2
    assert made.round("2") == 1


def test_one_pause_does_not_say_that_a_session_gives_its_places_up() -> None:
    made = ledger((NORMAL, 3, 2), (NORMAL, 1, 1))
    for index in range(20):  # another follows each end
        made.end("0", index)
        made.admit(Admit("0", index + 2, 1000, text="x"), 0.0)
    assert made.shares.freeing("1", 12) < 0.01 * 2
    made.end("0", 20)
    assert 0 < made.shares.freeing("1", 12) < 0.5 * 1
    made.drop("0")
    made.check()
    assert made.shares.freeing("1", 12) == 0.0


@given(SESSIONS, st.integers(1, 60), st.data())
def test_it_is_what_filling_place_by_place_gives(
    sessions: list[tuple[int, int, int]], places: int, data: st.DataObject
) -> None:
    made = ledger(*sessions)
    numbers = st.integers(0, len(sessions) - 1)
    asks, wanting = data.draw(numbers), data.draw(st.sets(numbers))
    rank, weight, _ = sessions[asks]
    open_ = {n: w for n, (r, w, had) in enumerate(sessions) if r <= rank and (had or n in wanting or n == asks)}
    left = float(places)
    while content := [
        n for n, w in open_.items()
        if n not in wanting and n != asks and sessions[n][2] * sum(open_.values()) < left * w
    ]:  # fmt: skip
        least = min(content, key=lambda n: sessions[n][2] / open_[n])
        left -= sessions[least][2]
        del open_[least]
    expected = max(1, int(left * weight / sum(open_.values()) + 1e-9))
    assert share(made, places, str(asks), map(str, wanting)) == expected


STEPS = st.lists(
    st.tuples(
        st.integers(0, 5), st.sampled_from(("admit", "admit", "end", "end", "forget", "missing", "stand", "leave"))
    )
)


@given(SESSIONS, STEPS, st.integers(1, 60))
def test_what_is_told_of_a_place_is_what_a_walk_along_everybody_finds(
    sessions: list[tuple[int, int, int]], steps: list[tuple[int, str]], places: int
) -> None:
    made, standing = ledger(*sessions), set[str]()
    gone_since = {str(number): [-1] for number in range(len(sessions))}  # by how many each end has left it with fewer
    for now, (number, step) in enumerate(steps):
        name = str(number % len(sessions))
        entries = made.of(name)
        match step:
            case "admit":
                made.admit(Admit(name, len(entries) + 1000 * now, 1000, text="x"), float(now // 3))
                gone_since[name][-1] += 1
            case "missing":
                made.enter_missing(name, len(entries) + 1000 * now, float(now))
            case "end" if left := list(made.unended_indices(name)):
                made.end(name, left[now % len(left)])
                gone_since[name].append(0)
            case "forget":
                for index in [index for index, entry in entries.items() if entry.state is State.ENDED][:1]:
                    made.forget(name, index)
            case "stand" | "leave":
                made.shares.wait(name, step == "stand")
                standing = standing - {name} | ({name} if step == "stand" else set())
        made.check()
    rank = {str(number): rank for number, (rank, *_) in enumerate(sessions)}
    for asks in rank:
        freeing = 0.0
        for other in rank:
            if other == asks or rank[other] < rank[asks]:
                continue
            if other in standing:
                freeing += max(0, made.unended(other) - made.shares.share(other, places))
            else:
                freeing += made.unended(other) * giving(gone_since[other])
        assert made.shares.freeing(asks, places) == pytest.approx(freeing, abs=1000 / ONE)
        times = {o: [e.taken_at for e in made.of(o).values() if e.state is not State.ENDED] for o in rank}
        mine = min(times[asks], default=0.0)
        assert made.oldest(asks) == mine
        assert made.older(asks) == sum(when < mine for other in rank if other != asks for when in times[other])
        working = sum(weight for o, (r, weight, _) in enumerate(sessions) if r == rank[asks] and made.unended(str(o)))
        assert made.round(asks) == max(1.0, working / sessions[int(asks)][1])
    assert made.best_rank == min((rank[name] for name in made.at_work()), default=0)


def giving(gained: list[int]) -> float:
    """A weighted mean over a session's ends but the first: how many fewer each left it with."""
    mean = 1.0
    for came in gained[1:-1]:
        mean += 0.3 * (1 - came - mean)
    return max(0.0, mean)


@given(st.lists(st.tuples(st.sampled_from("abcde"), st.integers(0, 6), st.sampled_from((None, 0.5, 2.0, 5.0)))))
def test_the_line_is_in_the_order_in_which_they_came_without_who_is_late(
    steps: list[tuple[str, int, float | None]],
) -> None:
    made = Ledger()
    for name in "abcde":
        made.open(name)
    gate, line, now = Gate(made.shares), dict[str, float](), 0.0
    for name, passes, keeps_s in steps:
        now += passes / 4
        line = {each: until for each, until in line.items() if until >= now}
        assert gate.ahead(name, now) == (list(line).index(name) if name in line else len(line))
        assert list(gate.standing()) == list(line) and len(gate) == len(line)
        if keeps_s is None:
            gate.leave(name)
            line.pop(name, None)
        else:
            gate.stand(name, now + keeps_s)
            line[name] = now + keeps_s
        made.check()


# ---------------------------------------------------------------- what a Busy costs


def opcodes(call: Callable[[], Any]) -> int:
    """How many steps of Python's the call takes, those of all it calls included."""
    steps = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal steps
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        steps += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return steps


def crowd(sessions: int, weights: int, skips: int) -> tuple[Stand, list[str]]:
    """Many sessions with one unended each and ended ones that wait behind it; all of them stand in line."""
    stand = Stand(ring_blocks=0, max_sessions=sessions, window=64, outbox_node_bytes=2**28)
    stand.core.check = lambda: None  # type: ignore[method-assign]
    stand.feed(Capacity(sessions, 10.0))
    opened = [stand.open(pipeline="text", weight=1 + number % weights).session for number in range(sessions)]
    for session in opened:
        stand.core.handle(
            Arrived(b"a", (Submit(session, 0, text="x"), *(Skip(session, 2 + n) for n in range(skips)))), stand.now
        )
        stand.now += 0.0001
    stand.feed(Capacity(sessions // 2, 10.0))
    for session in opened:
        refuse(stand, session)
    assert len(stand.core.books.gate) == sessions
    return stand, opened


def refuse(stand: Stand, session: str) -> None:
    told = [a.message for a in stand.core.handle(Arrived(b"a", (Submit(session, 1, text="x"),)), stand.now)
            if isinstance(a, Tell)]  # fmt: skip
    assert [type(message) for message in told] == [Busy]


def cost(sessions: int, skips: int, before: Callable[[Stand, str], None] = lambda *_: None) -> int:
    """Of one more Busy for the last in a line of so many."""
    stand, opened = crowd(sessions, 20, skips)

    def once() -> None:
        before(stand, opened[-1])
        refuse(stand, opened[-1])

    return opcodes(once)


def test_a_busy_beside_many_others_in_line_costs_as_much_as_beside_few() -> None:
    """One frame may hold six hundred submits, each refused: nobody else is served meanwhile."""
    assert cost(400, skips=5) < 1.5 * cost(20, skips=0)


def test_a_busy_that_changes_the_line_costs_by_how_many_different_ones_there_are() -> None:
    """Leave it and come back, as often as one likes: sessions alike are counted, not visited."""

    def leave(stand: Stand, session: str) -> None:
        stand.core.books.gate.leave(session)

    assert cost(400, 0, leave) < 1.5 * cost(20, 0, leave)
