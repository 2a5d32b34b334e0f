"""What a user names becomes utterances in their order, dealt out to sessions in turn."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.commands import inputs
from engine.commands.inputs import UsageError


def write(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")


def test_files_are_dealt_out_in_turn() -> None:
    files = [Path(f"{letter}.wav") for letter in "abcdefg"]
    dealt = [(u.path.stem, u.session) for u in inputs.utterances(files, 3)]
    assert dealt == [("a", 0), ("b", 1), ("c", 2), ("d", 0), ("e", 1), ("f", 2), ("g", 0)]


def test_one_line_is_one_utterance_and_all_lines_of_a_file_share_a_session(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("\ufefferste Zeile\n\n   \nzweite Zeile  \r\n", encoding="utf-8")
    (tmp_path / "two.txt").write_text("dritte", encoding="utf-8")
    found = list(inputs.utterances([tmp_path / "one.txt", tmp_path / "two.txt"], 2))
    assert [(u.text, u.session, u.line, u.ordinal) for u in found] == [
        ("erste Zeile", 0, 1, 0),
        ("zweite Zeile", 0, 4, 1),
        ("dritte", 1, 1, 2),
    ]
    assert found[1].name == f"{tmp_path / 'one.txt'}:4"


def test_only_line_ends_divide_lines(tmp_path: Path) -> None:
    (tmp_path / "odd.txt").write_text("a\u2028b\x0cc\n", encoding="utf-8")
    assert [text for _, text in inputs.lines(tmp_path / "odd.txt")] == ["a\u2028b\x0cc"]


def test_result_names_are_numbered_over_the_whole_run_and_never_clash() -> None:
    names = [u.wav_name for u in inputs.utterances([Path("a/talk.mp3"), Path("b/talk.wav")], 2)]
    assert names == ["000_talk.wav", "001_talk.wav"]


def test_a_folder_gives_its_sound_files_by_name_and_no_others(tmp_path: Path) -> None:
    write(tmp_path, "b.wav", "a.mp3", "sub/c.flac", "notes.txt", "results.jsonl", ".hidden.wav")
    assert [f.name for f in inputs.expand([str(tmp_path)], takes_text=False)] == ["a.mp3", "b.wav", "c.flac"]
    assert [f.name for f in inputs.expand([str(tmp_path)], takes_text=True)] == ["notes.txt"]


def test_files_keep_the_order_they_were_named_in(tmp_path: Path) -> None:
    write(tmp_path, "b.wav", "a.wav")
    named = [str(tmp_path / "b.wav"), str(tmp_path / "a.wav")]
    assert inputs.expand(named, takes_text=False) == [Path(n) for n in named]


@pytest.mark.parametrize(
    ("name", "takes_text", "says"),
    [
        ("missing.wav", False, "no file or folder"),
        ("lines.txt", False, "--pipeline translate-text"),
        ("talk.wav", True, "--pipeline full"),
        ("empty", False, "nothing to translate"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(tmp_path: Path, name: str, takes_text: bool, says: str) -> None:
    write(tmp_path, "lines.txt", "talk.wav")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=says) as caught:
        inputs.expand([str(tmp_path / name)], takes_text)
    assert "\n" not in str(caught.value)


def test_a_text_file_in_another_encoding_is_named(tmp_path: Path) -> None:
    (tmp_path / "old.txt").write_bytes("Füchse".encode("latin-1"))
    with pytest.raises(UsageError, match=r"old\.txt is not UTF-8"):
        list(inputs.utterances([tmp_path / "old.txt"], 1))
