"""How the node's places are divided among sessions: max-min fair by weight, and the better before the lesser."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from engine.gateway.ledger import RANKS, Ledger, Part
from ipc.messages import Admit

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


def test_weights_count_also_where_there_are_more_sessions_than_places() -> None:
    made = ledger((NORMAL, 10, 1), *[(NORMAL, 1, 1)] * 14)
    everybody = [str(number) for number in range(15)]
    assert made.level(10, "0", everybody) == 10 * 10 // 24
    assert made.level(10, "1", everybody) == 1


def test_lesser_priorities_take_nothing_from_a_better_one_and_it_from_them() -> None:
    made = ledger((HIGH, 1, 2), *[(LOW, 1, 3)] * 5)
    everybody = [str(number) for number in range(6)]
    assert made.level(12, "0", everybody) == 12
    assert made.level(12, "1", everybody) == 2, "a sixth, as if they were alike: what is left is the stages' to order"


def test_what_some_leave_is_for_who_wants_more() -> None:
    made = ledger((NORMAL, 1, 4), (NORMAL, 1, 1), (NORMAL, 2, 1))
    assert made.level(12, "0", ["0"]) == 10


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
    assert made.level(places, str(asks), map(str, wanting)) == expected
