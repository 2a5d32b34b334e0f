"""Workers are heard at once, programs in rotation and so many a turn; nobody is heard of whom no life was told."""

from __future__ import annotations

from engine.arbiter.inbox import AT_ONCE, MOST_UNHEARD, MOST_UNHEARD_BYTES, Inbox

ASR, LONG, SHORT = "asr@cpu/0#1", "lease@7/1#5", "lease@8/1#6"
THERE = {ASR, LONG, SHORT}.__contains__


def test_a_worker_is_heard_before_programs_and_whole() -> None:
    inbox = Inbox({"asr@cpu/0"})
    inbox.announce("asr@cpu/0", 1)
    inbox.put(SHORT, ["x"])
    inbox.put(ASR, list(range(AT_ONCE * 2)))
    assert [peer for peer, _ in inbox.take(THERE)] == [ASR] * AT_ONCE * 2 + [SHORT]
    assert not inbox


def test_programs_are_heard_one_message_each_in_rotation_and_so_many_a_turn() -> None:
    inbox = Inbox(())
    inbox.put(LONG, list(range(AT_ONCE + 5)))
    inbox.put(SHORT, ["x", "y"])
    first = list(inbox.take(THERE))
    assert first[:5] == [(LONG, 0), (SHORT, "x"), (LONG, 1), (SHORT, "y"), (LONG, 2)] and len(first) == AT_ONCE
    assert inbox, "the rest is for the next turn, which comes at once"
    assert list(inbox.take(THERE)) == [(LONG, number) for number in range(AT_ONCE - 2, AT_ONCE + 5)]
    assert not inbox


def test_who_says_too_much_meanwhile_is_not_heard_at_all_and_the_others_are() -> None:
    inbox = Inbox(())
    assert not inbox.put(SHORT, ["x"]) and not inbox.put(LONG, [0] * MOST_UNHEARD)
    assert inbox.put(LONG, [0]) == {LONG: "says too much at once"}
    assert list(inbox.take(THERE)) == [(SHORT, "x")]


def test_what_programs_say_takes_so_many_bytes_and_of_too_many_goes_who_has_said_most() -> None:
    inbox, third = Inbox(()), "lease@9/1#6"
    half = "x" * (MOST_UNHEARD_BYTES // 2)
    assert not inbox.put(LONG, [half, "y"]) and not inbox.put(SHORT, ["x"])
    assert inbox.put(third, [half]) == {LONG: "says too much at once"}
    assert list(inbox.take(THERE)) == [(SHORT, "x"), (third, half)]
    assert not inbox.put(LONG, [half]) and not inbox.put(SHORT, ["x"]), "what was heard takes none"
    assert not inbox.put(SHORT, [half[:-100]])
    assert inbox.put(third, ["x" * 100]) == {LONG: "says too much at once"}


def test_a_life_that_was_not_told_of_is_heard_when_it_has_been_and_never_if_another_has() -> None:
    inbox = Inbox({"asr@cpu/0"})
    assert not inbox.put(ASR, ["early"]), "the news may be on its way"
    assert list(inbox.take(THERE)) == [] and not inbox
    inbox.announce("asr@cpu/0", 1)
    assert list(inbox.take(THERE)) == [(ASR, "early")]
    for false in ("asr@cpu/0#0", "asr@cpu/0#9"):
        inbox.put(false, ["false"])
    assert list(inbox.take(THERE)) == []
    inbox.announce("asr@cpu/0", 9)
    assert list(inbox.take(THERE)) == [], "whoever said it has gone meanwhile"


def test_a_role_of_nobody_is_not_heard() -> None:
    assert Inbox({"asr@cpu/0"}).put("nmt@cpu/0#1", ["x"]) == {"nmt@cpu/0#1": "is no worker of this node"}
