"""Both clients against a whole node of simulated stages: the library, and the documented one in plain pyzmq."""

from __future__ import annotations

import subprocess
import sys
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rehearsal import Marks, assert_in_order, config, wait_until

from engine.client import Client, Rejected, SessionClosed
from engine.node import Node

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "docs" / "examples" / "plain_client.py"


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with Node(config(1.0)) as running:
        yield running


@pytest.fixture
def client(node: Node) -> Iterator[Client]:
    with node.client() as made:
        yield made


def test_a_thousand_submits_before_the_first_read_with_window_8(client: Client) -> None:
    marks = Marks()
    with client.session(source="en", target="de", window=8, tag="many") as session:
        for index in range(1000):
            session.submit(marks.make("many", index, samples=160))
        outcomes = list(session.outcomes(timeout_s=30))
    assert_in_order(outcomes)
    assert len(outcomes) == 1000 and all(o.ok for o in outcomes)
    for outcome in outcomes:
        marks.compare("many", outcome)
    assert marks.mixed_up == []


def test_results_carry_their_rate_their_texts_and_their_stages(client: Client) -> None:
    with client.session(source="en", target="de") as session:
        session.submit(Marks().make("x", 0))
        (outcome,) = session.outcomes(timeout_s=30)
    assert outcome.audio is not None and outcome.audio.dtype == np.int16 and outcome.sample_rate == 22_050
    assert outcome.transcript == outcome.repaired == outcome.translation != ""
    assert [record["stage"] for record in outcome.stages] == ["asr", "repair", "nmt", "tts"]


def test_any_rate_and_channel_count_is_taken(client: Client) -> None:
    tone = np.sin(np.arange(44_100) / 20).astype(np.float32)
    with client.session(pipeline="transcribe") as session:
        session.submit(np.stack([tone, tone], axis=1), sample_rate=44_100)
        session.submit(tone.astype(np.float64), sample_rate=8_000)
        assert [o.outcome for o in session.outcomes(timeout_s=30)] == ["ok", "ok"]


def test_what_the_node_rejects_has_its_end_in_order(client: Client) -> None:
    """A text for an audio pipeline: the library skips its index, so that nothing is held up for ``gap_s``."""
    with client.session(pipeline="transcribe") as session:
        session.submit(np.ones(1600, np.int16))
        session.submit("a text")
        session.submit(np.ones(1600, np.int16))
        outcomes = list(session.outcomes(timeout_s=30))
    assert [(o.index, o.outcome, o.code) for o in outcomes] == [
        (0, "ok", ""),
        (1, "rejected", "bad_text"),
        (2, "ok", ""),
    ]


def test_an_unknown_pipeline_names_those_there_are(client: Client) -> None:
    with pytest.raises(Rejected, match="accepted: full, transcribe") as caught:
        client.session(pipeline="nonsense")
    assert caught.value.code == "bad_pipeline"


def test_skip_and_cancel(client: Client) -> None:
    with client.session(pipeline="transcribe") as session:
        session.skip(0)
        session.submit(np.ones(1600, np.int16))
        session.submit(np.ones(1600, np.int16))
        session.cancel(2)
        outcomes = list(session.outcomes(timeout_s=30))
    assert_in_order(outcomes)
    assert [(o.outcome, o.code) for o in outcomes[:2]] == [("skipped", "gap"), ("ok", "")]
    assert (outcomes[2].outcome, outcomes[2].code) in {("skipped", "cancelled"), ("ok", "")}


def test_a_closed_session_is_forgotten_by_the_node(node: Node, client: Client) -> None:
    with client.session(pipeline="transcribe") as session:
        session.submit(np.ones(1600, np.int16))
    assert len(list(session.outcomes())) == 1
    client.pump(0.05)
    assert wait_until(lambda: node.stats()["gateway"].get("sessions") == 0)


def test_who_resumes_with_the_token_has_the_session(node: Node, client: Client) -> None:
    """The earlier connection is told, and stays away."""
    session = client.session(pipeline="transcribe")
    with node.client() as second:
        second.post([{"type": "Resume", "token": session.core.token, "last_received": -1}])
        second.pump(0.2)
        wait_until(lambda: client.pump(0.01) or session.core.failure)
    with pytest.raises(SessionClosed, match="taken_over"):
        session.submit(np.ones(1600, np.int16))


def test_the_plain_client_translates(node: Node, tmp_path: Path) -> None:
    path = tmp_path / "speech.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(Marks().make("plain", 0).tobytes())
    command = [sys.executable, str(EXAMPLE), node.endpoint, "full", "en", "de", *[str(path)] * 20]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [int(line.split()[0]) for line in lines] == list(range(20))
    assert all(" ok " in line and "64000 bytes at 22050 Hz" in line for line in lines)


def test_plain_clients_side_by_side_have_their_own_results(node: Node) -> None:
    code = (
        "import importlib.util, sys; spec = importlib.util.spec_from_file_location('p', sys.argv[1]);"
        "p = importlib.util.module_from_spec(spec); spec.loader.exec_module(p);"
        "mark = bytes([int(sys.argv[3]) + 1] * 8);"
        "got = list(p.translate(sys.argv[2], [mark * 2000] * 30, 'full', 'en', 'de'));"
        "assert [o['index'] for o, _ in got] == list(range(30)), got;"
        "assert all(bytes(s) == mark * (len(s) // 8) and s for o, s in got)"
    )
    running: list[Any] = [
        subprocess.Popen([sys.executable, "-c", code, str(EXAMPLE), node.endpoint, str(n)], stderr=subprocess.PIPE)
        for n in range(3)
    ]
    for one in running:
        _, errors = one.communicate(timeout=60)
        assert one.returncode == 0, errors.decode()
