"""The simulated stage: repeats exactly, carries its watermark, misbehaves only on cue."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.base import Item, Output, StageConfig, StageError
from stages.simulated import SimulatedStage, mark_samples, read_mark


def stage(**options) -> SimulatedStage:
    made = SimulatedStage(StageConfig(options=options))
    made.load()
    return made


@given(st.integers(0, 2**64 - 1), st.integers(4, 4000))
def test_a_mark_survives_reading_and_writing(mark, count):
    samples = mark_samples(mark, count)
    out = stage(accepts="text", emits="audio", output_bytes=800, mark=True).run(
        [Item("s.1", 0, 1, text=read_mark(samples))]
    )
    assert read_mark(out[0].audio) == read_mark(samples) == "mark:" + mark.to_bytes(8, "little").hex()


@given(st.integers(0, 2**64 - 1), st.integers(0, 999))
def test_one_foreign_sample_is_torn(mark, position):
    samples = mark_samples(mark, 1000)
    samples[position] ^= 1
    assert read_mark(samples) == "torn"


def test_marks_are_read_from_float_samples_too():
    samples = mark_samples(0x0123456789ABCDEF, 100).astype(np.float32)
    assert read_mark(samples) == "mark:efcdab8967452301"


def test_a_cue_matches_session_index_and_attempt():
    made = stage(cues=[{"index": 3, "attempt": 2, "session": "bad", "action": "fail", "code": "bad_output"}])
    items = [Item("bad.1", 3, 2, text="x"), Item("bad.1", 3, 1, text="x"), Item("good.1", 3, 2, text="x")]
    answers = made.run(items)
    assert isinstance(answers[0], StageError) and answers[0].code == "bad_output"
    assert [isinstance(a, Output) for a in answers] == [False, True, True]


@pytest.mark.parametrize(("action", "code"), [("kill", -9), ("segv", -11), ("exit", 0)])
def test_process_cues_end_the_process(action, code):
    script = (
        "from stages.base import Item, StageConfig; from stages.simulated import SimulatedStage\n"
        f"s = SimulatedStage(StageConfig(options={{'cues': [{{'index': 0, 'action': '{action}'}}]}}))\n"
        "s.run([Item('s.1', 0, 1, text='x')]); print('survived')"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert ended.returncode == code and "survived" not in ended.stdout


def test_the_spread_depends_on_seed_and_index_only():
    one, other = stage(sigma=0.6, seed=7), stage(sigma=0.6, seed=7)
    items = [Item(session, index, 1, text="x") for session in ("a.1", "b.2") for index in range(5)]
    assert [one._spread(i) for i in items] == [other._spread(i) for i in items]
    assert [one._spread(i) for i in items[:5]] == [one._spread(i) for i in items[5:]]


@pytest.mark.parametrize(
    "options", [{"accepts": "video"}, {"sleep": 3}, {"cues": [{"index": 0}]}, {"emits": "both"}, {"sleep_ms": "long"}]
)
def test_wrong_options_are_refused_in_one_line(options):
    with pytest.raises(ValueError, match=r"^(stage simulated|option)[^\n]*$"):
        SimulatedStage.check_options(options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"sleep_ms": "5"}, "option sleep_ms must be a number, not a string"),
        ({"seed": 1.5}, "option seed must be a whole number, not a fraction"),
        ({"burn": 1}, "option burn must be true or false, not a whole number"),
        ({"cues": {"index": 1}}, "option cues must be a list, not a table"),
        ({"cues": [{"index": "x", "action": "fail"}]}, "option cues[0].index must be a whole number, not a string"),
        ({"cues": [{"index": 1}]}, "option cues[0]: it lacks `action`"),
        ({"cues": [{"index": 1, "action": "fail", "when": 1}]}, "option cues[0]: it has an unknown field `when`"),
        ({"cues": [{"index": -5, "action": "fail"}]}, "option cues[0]: cue index is -5; the lowest is -2"),
        ({"gil_share": 2}, "option gil_share is 2; the highest is 1"),
    ],
)
def test_a_wrong_option_is_named_in_plain_words(options, said):
    with pytest.raises(ValueError) as caught:
        SimulatedStage.check_options(options)
    assert str(caught.value) == f"stage simulated: {said}"


def test_passing_on_hands_out_no_array():
    (answer,) = stage(accepts="audio", emits="same").run([Item("s.1", 0, 1, audio=np.zeros(8, np.int16))])
    assert answer.same and answer.audio is None
