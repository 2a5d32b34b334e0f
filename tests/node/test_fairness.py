"""A client that never reads, one that floods, and a good one on one worker: the good one is served all the time."""

from __future__ import annotations

import itertools
import subprocess
import sys

from engine.node import Node
from tests.node.rehearsal import Marks, assert_in_order, config, wait_until

SLEEP_MS = 20.0
SESSIONS = 3

NEVER_READS = """
import sys, msgpack, zmq
socket = zmq.Context().socket(zmq.DEALER)
socket.connect(sys.argv[1])
say = lambda *messages, data=None: socket.send_multipart([msgpack.packb(list(messages))] + ([data] if data else []))
say({"type": "Hello", "version": 1})
say({"type": "Open", "tag": "deaf", "source": "en", "target": "de"})
session = None
while session is None:
    for message in msgpack.unpackb(socket.recv_multipart()[0]):
        session = message.get("session") if message["type"] == "Opened" else session
audio = bytes(32000)
for index in range(64):
    say({"type": "Submit", "session": session, "index": index, "dtype": "s16le", "nbytes": len(audio)}, data=audio)
print("flooded", flush=True)
sys.stdin.read()
"""

FLOODS = """
import sys
import numpy as np
from engine import Client
with Client(sys.argv[1]) as client:
    session = client.session(source="en", target="de", tag="flood")
    print("flooded", flush=True)
    for index in range(100000):
        session.submit(np.zeros(16000, np.int16))
"""


def start(script: str, endpoint: str) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", script, endpoint],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout is not None and process.stdout.readline() == b"flooded\n"
    return process


def test_a_good_client_is_served_beside_a_deaf_one_and_a_flood() -> None:
    with Node(config({"asr": SLEEP_MS}, options={"asr": {"mark": False}, "tts": {"mark": False}})) as node:
        others = [start(NEVER_READS, node.endpoint), start(FLOODS, node.endpoint)]
        try:
            marks = Marks()
            with node.client() as client, client.session(source="en", target="de", tag="good") as session:
                for index in range(40):
                    session.submit(marks.make("good", index, 16000))
                outcomes = list(session.outcomes(timeout_s=30))
        finally:
            for other in others:
                other.kill()
                other.wait()
        wait_until(lambda: node.stats()["total"] > 60)  # or the others were no load
    assert_in_order(outcomes)
    assert len(outcomes) == 40 and {o.outcome for o in outcomes} == {"ok"}
    ended = [max(record["ended_ns"] for record in o.stages) for o in outcomes]
    served = [(b - a) / 1e6 for a, b in itertools.pairwise(ended)]
    assert max(served) <= 4 * SLEEP_MS * SESSIONS, f"a gap of {max(served):.0f} ms"
