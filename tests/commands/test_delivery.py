"""A run through a node: every utterance gets its row, whatever happens to its file, its session or the user."""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from engine import media
from engine.commands.delivery import Delivery, Wish
from engine.commands.inputs import Utterance, utterances
from engine.commands.reading import read
from engine.commands.results import Results
from engine.outcome import Busy, NodeGone, Outcome, Rejected, SessionClosed


class FakeSession:
    """Answers each text with itself, in the order the client hands out; "!" texts misbehave."""

    def __init__(self, client: FakeClient, tag: str) -> None:
        self.tag, self.id, self.closed = tag, f"{tag}.1", False
        self.core = SimpleNamespace(failure=None)
        self.submitted: list[Any] = []
        self._client = client

    def submit(self, payload: Any, **_: Any) -> int:
        trick = payload if isinstance(payload, str) else ""
        if trick == "!rejected":
            raise Rejected("bad_text", "not this")
        if trick == "!busy":
            raise Busy("shutting_down", "stopping")
        if trick == "!closed":
            self.core.failure = SessionClosed("taken_over", "another client resumed it")
            raise self.core.failure
        self.submitted.append(payload)
        text = payload if isinstance(payload, str) else f"{len(payload)} samples"
        index = len(self.submitted) - 1
        audio = np.ones(10, np.int16)
        self._client.ready.append(
            Outcome(self.id, index, "ok", texts={"nmt": text}, audio=audio, sample_rate=16_000, tag=self.tag)
        )
        return index

    def outcomes(self, timeout_s: float) -> Iterator[Outcome]:
        mine = [o for o in self._client.ready if o.tag == self.tag]
        for outcome in mine:
            self._client.ready.remove(outcome)
            yield outcome

    def close(self) -> None:
        self.closed = True


class FakeClient:
    def __init__(self, hold: int = 0) -> None:
        self.sessions: list[FakeSession] = []
        self.ready: deque[Outcome] = deque()
        self.fails: list[Exception] = []
        self.hold = hold  # how many looks bring nothing
        self.silent_s, self.patience_s = 0.0, 10.0

    def session(self, *, tag: str, **wanted: Any) -> FakeSession:
        self.sessions.append(FakeSession(self, tag))
        self.sessions[-1].wanted = wanted  # type: ignore[attr-defined]
        return self.sessions[-1]

    def outcomes(self, timeout_s: float) -> Iterator[Outcome]:
        if self.hold:
            self.hold -= 1
            raise TimeoutError
        if self.fails:
            raise self.fails.pop(0)
        while self.ready:
            yield self.ready.popleft()

    def pump(self, timeout_s: float) -> None:
        self.hold = 0


@pytest.fixture
def results(tmp_path: Path) -> Iterator[Results]:
    kept = Results(tmp_path / "out")
    kept.open()
    yield kept
    kept.close()


def texts(*lines: str, sessions: int = 1) -> list[Utterance]:
    return [Utterance(k, k % sessions, Path("lines.txt"), k + 1, line) for k, line in enumerate(lines)]


def deliver(client: FakeClient, results: Results, work: list[Utterance], **wish: Any) -> tuple[Delivery, list[str]]:
    said: list[str] = []
    delivery = Delivery(client, Wish(**wish), results, told=lambda row, outcome: None, say=said.append)
    delivery.run((u, read(u)) for u in work)
    return delivery, said


def test_every_utterance_has_one_row_in_the_order_received(results: Results) -> None:
    client = FakeClient()
    deliver(client, results, texts("a", "b", "c", "d", "e", sessions=2), sessions=2)
    assert [row["translation"] for row in results.rows] == ["a", "b", "c", "d", "e"]
    assert [(row["session"], row["utterance_index"]) for row in results.rows] == [
        ("s0.1", 0), ("s1.1", 0), ("s0.1", 1), ("s1.1", 1), ("s0.1", 2)
    ]  # fmt: skip
    assert all(session.closed for session in client.sessions)
    assert sorted(p.name for p in results.folder.glob("*.wav")) == [f"{k:03d}_lines-{k + 1}.wav" for k in range(5)]


def test_sessions_are_opened_with_what_was_wished(results: Results) -> None:
    client = FakeClient()
    deliver(client, results, [], sessions=3, pipeline="speak", languages=(("en", "de"), ("fr", "es")))
    assert [(s.wanted["source"], s.wanted["target"]) for s in client.sessions] == [  # type: ignore[attr-defined]
        ("en", "de"), ("fr", "es"), ("en", "de")
    ]  # fmt: skip
    assert {s.wanted["pipeline"] for s in client.sessions} == {"speak"}  # type: ignore[attr-defined]


def test_files_that_are_no_sound_or_too_long_are_never_submitted_and_hold_up_nobody(
    results: Results, tmp_path: Path
) -> None:
    (tmp_path / "broken.wav").write_bytes(b"no sound")
    media.write_wav(tmp_path / "long.wav", np.zeros(3 * 16_000, np.int16), 16_000)
    media.write_wav(tmp_path / "good.wav", np.ones(16_000, np.int16), 16_000)
    client = FakeClient()
    files = [tmp_path / name for name in ("broken.wav", "long.wav", "good.wav")]
    deliver(client, results, list(utterances(files, 1)), max_utterance_s=2)
    assert [(row["outcome"], row["code"]) for row in results.rows] == [
        ("error", "bad_audio"), ("error", "audio_too_long"), ("ok", None)
    ]  # fmt: skip
    assert "long.wav lasts 3.0 s" in results.rows[1]["error"]
    assert results.rows[2]["utterance_index"] == 0
    assert len(client.sessions[0].submitted) == 1


def test_what_the_node_rejects_or_cannot_take_has_its_row_and_the_rest_go_on(results: Results) -> None:
    deliver(FakeClient(), results, texts("a", "!rejected", "!busy", "b"))
    found = {row["input"]: (row["outcome"], row["code"]) for row in results.rows}
    assert list(found.values()).count(("ok", None)) == 2
    assert found["lines.txt:2"] == ("error", "bad_text")
    assert found["lines.txt:3"] == ("error", "shutting_down")


def test_a_session_that_ends_under_us_fails_its_own_utterances_only(results: Results) -> None:
    client = FakeClient(hold=10)
    deliver(client, results, texts("a", "b", "!closed", "c", "d", "e", sessions=2), sessions=2)
    found = {row["input"]: (row["outcome"], row["code"]) for row in results.rows}
    assert found == {
        "lines.txt:1": ("error", "taken_over"),
        "lines.txt:2": ("ok", None),
        "lines.txt:3": ("error", "taken_over"),
        "lines.txt:4": ("ok", None),
        "lines.txt:5": ("error", "taken_over"),
        "lines.txt:6": ("ok", None),
    }


def test_a_node_that_is_gone_leaves_no_utterance_without_a_row(results: Results) -> None:
    client = FakeClient(hold=2)
    client.fails = [NodeGone("no node answers")]
    deliver(client, results, texts("a", "b", sessions=2), sessions=2)
    assert [(row["outcome"], row["code"]) for row in results.rows] == [("error", "node_gone")] * 2


def test_a_node_that_is_gone_is_waited_for_once_however_many_sessions_there_are(results: Results) -> None:
    client, waited = FakeClient(), []

    def gone(payload: Any, **_: Any) -> int:
        waited.append(payload)
        raise NodeGone("no answer for 10 s")

    opened = client.session
    client.session = lambda **wanted: with_submit(opened(**wanted), gone)  # type: ignore[method-assign]
    deliver(client, results, texts(*"abcdefgh", sessions=4), sessions=4)
    assert waited == ["a"]
    assert [row["code"] for row in results.rows] == ["node_gone"] * 8


def test_a_node_that_does_not_answer_is_told_of_once_while_it_is_waited_for(results: Results) -> None:
    client, said = FakeClient(hold=5), list[str]()
    client.silent_s = 3.0
    client.fails = [NodeGone("no answer for 10 s")]
    delivery = Delivery(client, Wish(), results, told=lambda row, outcome: None, say=said.append)
    delivery.run((u, read(u)) for u in texts("a", "b"))
    assert said == ["the node does not answer; it is waited for, 10 s in all"]


def with_submit(session: FakeSession, submit: Any) -> FakeSession:
    session.submit = submit  # type: ignore[method-assign]
    return session


def test_a_session_the_node_refuses_leaves_the_folder_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "results.jsonl").write_text("of an earlier run")
    client, kept = FakeClient(), Results(tmp_path)

    def refuse(**_: Any) -> FakeSession:
        raise Rejected("bad_language", "nobody speaks xx")

    client.session = refuse  # type: ignore[method-assign]
    with pytest.raises(Rejected):
        deliver(client, kept, texts("a"))
    kept.close()
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("results.jsonl", "of an earlier run")]


def test_the_first_interrupt_stops_submitting_and_waits_for_what_is_in_flight(results: Results) -> None:
    client = FakeClient(hold=3)
    work = iter([*texts("a", "b"), *texts("never")])

    def interrupted() -> Iterator[Utterance]:
        yield next(work)
        yield next(work)
        os.kill(os.getpid(), signal.SIGINT)
        yield next(work)

    before = signal.getsignal(signal.SIGINT)
    said: list[str] = []
    delivery = Delivery(client, Wish(), results, told=lambda row, outcome: None, say=said.append)
    delivery.run((u, read(u)) for u in interrupted())
    assert delivery.interrupted
    assert [row["translation"] for row in results.rows] == ["a", "b"]
    assert "2 in flight" in said[0]
    assert signal.getsignal(signal.SIGINT) is before


def test_the_second_interrupt_stops_at_once(results: Results) -> None:
    client = FakeClient(hold=10**9)

    def twice() -> Iterator[Utterance]:
        yield from texts("a")
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        yield from texts("never")

    with pytest.raises(KeyboardInterrupt):
        Delivery(client, Wish(), results, told=lambda row, outcome: None, say=lambda line: None).run(
            (u, read(u)) for u in twice()
        )
    assert results.rows == []
