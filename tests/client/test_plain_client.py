"""The documented client in plain pyzmq and msgpack does what it says."""

from __future__ import annotations

import importlib.util
import threading
import wave
from pathlib import Path
from types import ModuleType

import pytest
from fake_node import FakeNode

from ipc.messages import Accepted, Ack, Busy, Close, Closed, Open, Outcome, Rejected, Resume, Skip, Submit

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "plain_client.py"


@pytest.fixture(scope="module")
def plain() -> ModuleType:
    spec = importlib.util.spec_from_file_location("plain_client", EXAMPLE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_gets_every_outcome_in_order_and_acknowledges(plain: ModuleType, node: FakeNode) -> None:
    node.share = 3
    heard = list(plain.translate(node.endpoint, [bytes(320)] * 10, source="en", target="de"))
    assert [outcome["index"] for outcome, _ in heard] == list(range(10))
    _wait_for(lambda: len(node.of(Close)) == 1)
    assert node.of(Ack)[-1].through == 9
    assert len(node.of(Open)) == 1 and all(s.nbytes == 320 for s in node.of(Submit))


def test_it_receives_samples_and_sends_texts(plain: ModuleType, node: FakeNode) -> None:
    node.answer = lambda m: (
        [(Outcome(m.session, m.index, "ok", dtype="s16le", nbytes=6, sample_rate=22_050), b"abcdef")]
        if isinstance(m, Submit) else None
    )  # fmt: skip
    assert [samples for _, samples in plain.translate(node.endpoint, ["hello"], "speak")] == [b"abcdef"]
    assert node.of(Submit)[0].text == "hello"


def test_it_sends_again_what_the_node_had_no_room_for(plain: ModuleType, node: FakeNode) -> None:
    refusals = [2]
    admitted: list[int] = []

    def answer(message: object) -> list | None:
        if not isinstance(message, Submit):
            return None
        if message.index != len(admitted) or (message.index == 2 and refusals[0]):
            refusals[0] -= message.index == 2
            return [Busy(message.session, message.index, "capacity", 1, 20, len(admitted))]
        admitted.append(message.index)
        return [Accepted(message.session, message.index), Outcome(message.session, message.index, "ok")]

    node.answer = answer
    heard = list(plain.translate(node.endpoint, ["word"] * 6))
    assert [outcome["index"] for outcome, _ in heard] == list(range(6)) == admitted


def test_a_rejected_utterance_is_skipped(plain: ModuleType, node: FakeNode, capsys: pytest.CaptureFixture[str]) -> None:
    node.answer = lambda m: (
        [Rejected("bad_text", "not here", m.session, 0)] if isinstance(m, Submit) and m.index == 0 else None
    )
    heard = [outcome["outcome"] for outcome, _ in plain.translate(node.endpoint, ["word"])]
    assert heard == ["skipped"] and len(node.of(Skip)) == 1
    assert "bad_text: not here" in capsys.readouterr().err


@pytest.mark.parametrize("remembers", [True, False])
def test_it_resumes_with_a_node_that_came_back(plain: ModuleType, node: FakeNode, remembers: bool) -> None:
    """Utterance 0 ends, 1 and 2 are accepted; then another life of the node answers."""
    node.answer = lambda m: (
        [Accepted(m.session, m.index)] + ([Outcome(m.session, 0, "ok")] if m.index == 0 else [])
        if isinstance(m, Submit) else None
    )  # fmt: skip
    heard: list[int] = []

    def use() -> None:
        heard.extend(outcome["index"] for outcome, _ in plain.translate(node.endpoint, ["a", "b", "c"]))

    user = threading.Thread(target=use)
    user.start()
    _wait_for(lambda: len(node.of(Submit)) == 3 and heard_ack(node, 0))
    for session in node.next_index:
        node.next_index[session] = 1
    before = len(node.heard)
    node.answer = lambda m: None
    node.restart(remembers=remembers)
    user.join(10)
    assert not user.is_alive() and heard == [0, 1, 2]
    later = node.heard[before:]
    assert [m.last_received for m in later if isinstance(m, Resume)][:1] == [0]
    assert [m.first_index for m in later if isinstance(m, Open)] == ([] if remembers else [1])
    assert [m.index for m in later if isinstance(m, Submit)] == [1, 2]


def test_it_notices_a_node_that_does_not_know_it_though_it_has_the_same_number(
    plain: ModuleType, node: FakeNode
) -> None:
    """The whole node began anew, or has parted with this connection, while everything was accepted."""
    node.answer = lambda m: [Accepted(m.session, m.index)] if isinstance(m, Submit) else None
    heard: list[int] = []

    def use() -> None:
        heard.extend(outcome["index"] for outcome, _ in plain.translate(node.endpoint, ["a", "b"], patience_s=60.0))

    user = threading.Thread(target=use, daemon=True)
    user.start()
    _wait_for(lambda: len(node.of(Submit)) == 2)
    node.answer = lambda m: None
    node.restart(remembers=False, silent=True)
    user.join(10)
    assert not user.is_alive() and heard == [0, 1]
    assert node.of(Resume)[0].last_received == -1 and len(node.of(Open)) >= 2


def test_it_says_when_the_session_is_gone_or_nobody_answers(plain: ModuleType, node: FakeNode) -> None:
    node.answer = lambda m: [Closed(m.session, "taken_over")] if isinstance(m, Submit) else None
    with pytest.raises(RuntimeError, match="taken_over"):
        list(plain.translate(node.endpoint, ["word"]))
    with pytest.raises(TimeoutError):
        list(plain.translate(f"{node.endpoint}.not-there", ["word"], patience_s=0.2))
    assert not node.of(Close)


def test_a_users_mistake_is_one_line(plain: ModuleType, node: FakeNode, tmp_path: Path) -> None:
    with wave.open(str(tmp_path / "fast.wav"), "wb") as file:
        file.setparams((1, 2, 44_100, 0, "NONE", ""))
        file.writeframes(bytes(100))
    (tmp_path / "broken.wav").write_bytes(b"no sound")
    node.answer = lambda m: [Closed(m.session, "taken_over")] if isinstance(m, Submit) else None
    for given, says in (
        ([], "usage"),
        ([node.endpoint, "full", "en", "de", str(tmp_path / "fast.wav")], "16 kHz"),
        ([node.endpoint, "full", "en", "de", str(tmp_path / "broken.wav")], "error"),
        ([node.endpoint, "full", "en", "de", str(tmp_path / "gone.wav")], "gone.wav"),
        ([node.endpoint, "full", "en", "de", "word"], "taken_over"),
        (["nowhere", "full", "en", "de", "word"], "error"),
    ):
        with pytest.raises(SystemExit, match=says) as left:
            plain.main(given)
        assert "\n" not in str(left.value)


def heard_ack(node: FakeNode, through: int) -> bool:
    return any(ack.through >= through for ack in node.of(Ack))


def _wait_for(condition) -> None:
    pause = threading.Event()
    for _ in range(500):
        if condition():
            return
        pause.wait(0.01)
    raise AssertionError("it did not happen within 5 s")
