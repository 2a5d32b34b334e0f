"""Files are read ahead of the node, in order, within a bound, and a broken one is only itself broken."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from engine import media
from engine.commands import inputs
from engine.commands.inputs import UsageError, Utterance
from engine.commands.reading import ReadAhead, within
from engine.media import MediaError, TooLong


def sounds(folder: Path, *seconds: float) -> list[Path]:
    paths = []
    for number, duration in enumerate(seconds):
        paths.append(folder / f"{number}.wav")
        media.write_wav(paths[-1], np.full(int(duration * 16_000), number, np.int16), 16_000)
    return paths


def test_everything_comes_in_order_with_what_is_wrong_with_it(tmp_path: Path) -> None:
    files = sounds(tmp_path, 0.1, 0.2)
    (tmp_path / "odd.wav").write_bytes(b"no sound")
    (tmp_path / "t.txt").write_text("hello")
    files += [tmp_path / "odd.wav", tmp_path / "t.txt"]
    with ReadAhead(inputs.utterances(files, 1)) as ahead:
        found = [what for _, what in ahead]
    assert [len(f) for f in found[:2] if isinstance(f, np.ndarray)] == [1600, 3200]
    assert isinstance(found[2], MediaError)
    assert found[3] == "hello"


def test_it_is_known_before_anything_is_taken_that_no_file_is_sound(tmp_path: Path) -> None:
    odd = [tmp_path / "a.wav", tmp_path / "b.wav"]
    for path in odd:
        path.write_bytes(b"no sound")
    with ReadAhead(inputs.utterances(odd, 1)) as ahead:
        assert [error.code for error in ahead.nothing_but_errors()] == ["bad_audio", "bad_audio"]
    with ReadAhead(inputs.utterances([*odd, *sounds(tmp_path, 1, 1)], 1), ahead_bytes=1000) as ahead:
        assert ahead.nothing_but_errors() == []
        assert len(list(ahead)) == 4


def test_no_more_is_read_ahead_than_the_bound(tmp_path: Path) -> None:
    files = sounds(tmp_path, 1, 1, 1, 1, 1, 1)
    taken: list[int] = []
    third, fourth = threading.Event(), threading.Event()

    def counted() -> Iterator[Utterance]:
        for utterance in inputs.utterances(files, 1):
            taken.append(utterance.ordinal)
            if len(taken) >= 3:
                (third if len(taken) == 3 else fourth).set()
            yield utterance

    with ReadAhead(counted(), ahead_bytes=2 * 32_000) as ahead:
        assert third.wait(10)  # two fit, the third waits in the reader's hand
        assert not fourth.wait(0.3)
        assert len(list(ahead)) == 6


def test_one_that_is_larger_than_the_bound_passes(tmp_path: Path) -> None:
    with ReadAhead(inputs.utterances(sounds(tmp_path, 2, 2), 1), ahead_bytes=1000) as ahead:
        assert len(list(ahead)) == 2


def test_leaving_early_ends_the_reader(tmp_path: Path) -> None:
    with ReadAhead(inputs.utterances(sounds(tmp_path, 1, 1, 1, 1), 1), ahead_bytes=1000) as ahead:
        next(iter(ahead))
    assert not [t for t in threading.enumerate() if t.name == "reading"]


def test_what_the_list_of_files_raises_is_told(tmp_path: Path) -> None:
    (tmp_path / "old.txt").write_bytes(b"\xff\xfe\xfd")
    with ReadAhead(inputs.utterances([tmp_path / "old.txt"], 1)) as ahead, pytest.raises(UsageError):
        list(ahead)


def test_the_nodes_own_limit_is_the_one_that_is_told(tmp_path: Path) -> None:
    (path,) = sounds(tmp_path, 3)
    utterance = Utterance(0, 0, path)
    samples = media.read(path, 600).samples
    assert within(samples, utterance, 3) is samples
    late = within(samples, utterance, 2)
    assert isinstance(late, TooLong)
    assert "lasts 3.0 s, one utterance may last 2 s" in str(late)
    assert "may last 5 s" in str(within(TooLong("0.wav", 700.0, 600.0), utterance, 5))
    assert within("text", utterance, 2) == "text"


def test_raising_the_limit_is_advised_only_where_it_would_help() -> None:
    assert "raise node.max_utterance_s" in str(TooLong("0.wav", 130.0, 120.0))
    assert "raise" not in str(TooLong("0.wav", 660.0, 600.0))
    assert "raise" not in str(TooLong("0.wav", 660.0, 120.0))
