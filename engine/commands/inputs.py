"""What is to be translated: files become utterances, and utterances are dealt out to sessions.

One sound file is one utterance; a ``.txt`` file is one utterance a line, empty lines left out. Files are dealt out in
turn: file k goes to session k mod N, all lines of a text file to the same one: order within is kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ipc.errors import UsageError

__all__ = ["UsageError", "Utterance", "all_text", "expand", "lines", "utterances"]
TEXT_SUFFIX = ".txt"
TEXT_PIPELINES = frozenset({"translate-text", "speak"})
NOT_SOUND = frozenset({".json", ".jsonl", ".md", ".csv", ".tsv", ".log", ".toml", ".yaml", ".yml", ".py", ".pdf",
                       ".png", ".jpg", ".jpeg", ".html", ".xml", ".srt", ".vtt"})  # fmt: skip


@dataclass(frozen=True)
class Utterance:
    """One thing to submit. ``text`` None: the file's sound is the utterance. ``line`` counts from 1, 0 for sound."""

    ordinal: int  # over the whole run, from 0: names its WAV file
    session: int
    path: Path
    line: int = 0
    text: str | None = None

    @property
    def name(self) -> str:
        """What a user calls it: ``talk.mp3``, ``lines.txt:3``."""
        return f"{self.path}:{self.line}" if self.line else str(self.path)

    @property
    def wav_name(self) -> str:
        """Name of its result: ``004_talk.wav``, ``007_lines-3.wav``."""
        return f"{self.ordinal:03d}_{self.path.stem}{f'-{self.line}' if self.line else ''}.wav"


def check_there(given: Iterable[str]) -> None:
    """Raise UsageError for the first that does not exist."""
    for path in map(Path, given):
        if not path.is_dir() and not path.is_file():
            raise UsageError(f"there is no file or folder {path}", "give the sound or .txt files to translate")


def expand(given: Sequence[str], takes_text: bool) -> list[Path]:
    """Files in order; a folder gives its files by name, of the kind that fits, folders below included.

    Raises UsageError for what does not exist, for nothing at all, and for a file of the wrong kind named by itself.
    """
    files: list[Path] = []
    check_there(given)
    for path in map(Path, given):
        if path.is_dir():
            files += [f for f in sorted(path.rglob("*")) if f.is_file() and _fits(f, takes_text)]
        else:
            files.append(_checked(path, takes_text))
    if not files:
        kind = "a .txt file" if takes_text else "a sound file"
        raise UsageError(f"nothing to translate in {', '.join(given)}", f"give {kind}, or a folder that holds one")
    return files


def all_text(given: Iterable[str]) -> bool:
    """Whether every input named is a text file."""
    return all(Path(name).suffix.lower() == TEXT_SUFFIX for name in given)


def utterances(files: Sequence[Path], sessions: int) -> Iterator[Utterance]:
    """Every utterance in order, with its session."""
    ordinal = 0
    for k, path in enumerate(files):
        if path.suffix.lower() != TEXT_SUFFIX:
            yield Utterance(ordinal, k % sessions, path)
            ordinal += 1
            continue
        for line, text in lines(path):
            yield Utterance(ordinal, k % sessions, path, line, text)
            ordinal += 1


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a text file that say something, with their numbers. Raises UsageError when it is not UTF-8."""
    try:
        content = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text (byte {error.start})", "save it as UTF-8") from error
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}", "check its permissions") from error
    for number, line in enumerate(content.split("\n"), 1):
        if line.strip():
            yield number, line.strip()


def _fits(path: Path, takes_text: bool) -> bool:
    suffix = path.suffix.lower()
    if path.name.startswith("."):
        return False
    return suffix == TEXT_SUFFIX if takes_text else suffix not in NOT_SOUND | {TEXT_SUFFIX}


def _checked(path: Path, takes_text: bool) -> Path:
    is_text = path.suffix.lower() == TEXT_SUFFIX
    if is_text and not takes_text:
        raise UsageError(f"{path} is text and this pipeline takes sound", "use --pipeline translate-text or speak")
    if takes_text and not is_text:
        raise UsageError(f"{path} is not a .txt file and this pipeline takes text", "use --pipeline full or transcribe")
    return path
