"""A program outside the node fills no log, and who reads it hears that there was more."""

from __future__ import annotations

from engine.arbiter.chatter import MOST, WHILE_S, Chatter


def test_of_one_process_so_many_lines_are_logged_and_the_rest_is_counted_and_said() -> None:
    chatter = Chatter()
    assert [*chatter.left_out(0.0)] == []
    logged = [chatter.admits(f"lease@7/{number}#1") for number in range(MOST + 5)]
    assert logged == [True] * MOST + [False] * 5
    assert chatter.admits("lease@8/1#1")
    assert [*chatter.left_out(WHILE_S - 1)] == []
    (said,) = chatter.left_out(WHILE_S)
    assert said.startswith("lease@7: 5 more lines")
    assert chatter.admits("lease@7/1#1")
    assert [*chatter.left_out(2 * WHILE_S)] == []


def test_every_line_about_the_nodes_own_is_logged() -> None:
    chatter = Chatter()
    assert all(chatter.admits("asr@cpu/0#1") for _ in range(2 * MOST))
