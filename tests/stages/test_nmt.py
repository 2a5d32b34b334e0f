"""The nmt stage over the clockwork M2M100: translations, batches, languages, long texts, and what goes wrong."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.clockwork import nmt as clockwork
from stages.base import Item, StageConfig, StageError
from stages.nmt import LONGEST_SOURCE, NmtStage, divide

pytest.importorskip("ctranslate2")
pytest.importorskip("sentencepiece")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return clockwork.write(tmp_path_factory.mktemp("models") / "nmt")


def opened(model: Path, **options) -> NmtStage:
    stage = NmtStage(StageConfig(model=str(model), options=options))
    stage.load()
    stage.warm_up()
    return stage


@pytest.fixture(scope="module")
def stage(folder):
    stage = opened(folder)
    yield stage
    stage.close()


def item(text, source="en", target="de", index=0) -> Item:
    return Item("s", index, 1, source=source, target=target, text=text)


@pytest.mark.parametrize("source", clockwork.LANGUAGES)
@pytest.mark.parametrize("target", clockwork.LANGUAGES)
def test_every_pair_of_languages_is_translated(stage, source, target):
    (output,) = stage.run([item(" ".join(clockwork.WORDS[source]), source, target)])
    assert output.text == " ".join(clockwork.WORDS[target])
    assert output.state == ("skipped" if source == target else "completed")
    assert output.degraded == ""


@pytest.mark.parametrize(
    "text", ["3 1 4 1 5", "  Anna,  42!  ", "Ελληνικά 😀", "a\nb", "</s> __fr__", "Wait... what? Yes!"]
)
def test_digits_names_and_blanks_come_through_unchanged(stage, text):
    assert stage.run([item(text)])[0].text == text


def test_a_batch_of_mixed_languages_keeps_its_order(stage):
    random = [
        (number, *pair) for number, pair in enumerate([("en", "de"), ("de", "fr"), ("zh", "en"), ("es", "zh")] * 4)
    ]
    batch = [item(f"{clockwork.WORDS[source][0]} {number}", source, target) for number, source, target in random]
    assert [output.text for output in stage.run(batch)] == [
        f"{clockwork.WORDS[target][0]} {number}" for number, _, target in random
    ]


def test_a_bad_item_does_not_fail_its_batch(stage):
    texts = [
        item("the"),
        item("the", target="xx"),
        item("the", source=""),
        item("a\ud800"),
        item("", "xx", ""),
        item("fox"),
    ]
    good, target, source, surrogate, empty, last = stage.run(texts)
    assert (good.text, last.text) == ("der", "Fuchs")
    assert target.code == source.code == "bad_language"
    assert "target 'xx'" in target.text and "de, en, es, fr, zh" in target.text
    assert surrogate.code == "bad_text" and not surrogate.retry
    assert (empty.text, empty.state) == ("", "completed")


def test_blanks_only_are_an_empty_text(stage):
    assert [stage.run([item(text)])[0].text for text in ("", " ", "\n\t")] == ["", "", ""]


def test_a_region_does_not_matter(stage):
    assert stage.run([item("the fox", "en-GB", "de_AT")])[0].text == "der Fuchs"


def test_a_text_longer_than_the_model_is_translated_to_its_end(stage):
    text = "".join(f"{number} the fox said hello. " for number in range(300))
    assert len(stage._encode(text)) > 3 * LONGEST_SOURCE
    (output,) = stage.run([item(text)])
    assert output.text == text.replace("the fox", "der Fuchs").replace("hello", "hallo")
    assert output.degraded == ""


def test_a_sentence_longer_than_the_model_is_refused(stage):
    (error,) = stage.run([item("x" * 2000)])
    assert error.code == "bad_text" and "2001 pieces" in error.text and not error.retry


@given(st.text(alphabet="ab .!?\n\u3002\uff01", max_size=80), st.integers(30, 60))
def test_parts_are_whole_sentences_and_the_text_again_when_joined(text, limit):
    try:
        parts = divide(text, len, limit)
    except StageError as error:
        assert error.code == "bad_text"
        return
    assert "".join(parts) == text
    assert all(len(part) <= limit for part in parts)
    assert all(part.rstrip().endswith((".", "!", "?", "\u3002", "\uff01")) for part in parts[:-1] if part.strip())


def test_a_batch_that_fails_is_tried_one_by_one(stage, monkeypatch):
    """One utterance that the library cannot stand costs the others nothing."""

    class Picky:
        def __init__(self, model):
            self.model = model

        def translate_batch(self, sources, **options):
            if any("\u2581bad" in "".join(source) for source in sources):
                raise RuntimeError("cannot\nstand it")
            return self.model.translate_batch(sources, **options)

    monkeypatch.setattr(stage, "_translator", Picky(stage._translator))
    first, error, last = stage.run([item("the"), item("bad"), item("fox")])
    assert (first.text, last.text) == ("der", "Fuchs")
    assert (error.code, error.text, error.retry) == ("failed", "nmt: cannot stand it", True)


def test_running_out_of_memory_may_be_tried_again(stage, monkeypatch):
    def full(*_args, **_options):
        raise RuntimeError("CUDA failed with error out of memory")

    monkeypatch.setattr(stage, "_translator", SimpleNamespace(translate_batch=full))
    (error,) = stage.run([item("the")])
    assert (error.code, error.retry) == ("oom", True)


@pytest.mark.parametrize(
    ("said", "text", "degraded"),
    [(["\u2581", "x"] * 9, "x x x x x x x x x", "did not end"), ([], "", "no translation")],
)
def test_a_translation_that_runs_on_or_is_missing_says_so(stage, monkeypatch, said, text, degraded):
    answer = SimpleNamespace(hypotheses=[["__de__", *said, *([] if said else ["</s>"])]])
    monkeypatch.setattr(stage, "_translator", SimpleNamespace(translate_batch=lambda *_args, **_options: [answer]))
    (output,) = stage.run([item("the")])
    assert output.text == text and degraded in output.degraded


def test_beams_are_passed_on(folder):
    assert opened(folder, beam_size=5).run([item("the 3 fox")])[0].text == "der 3 Fuchs"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beam": 5}, "no option 'beam'; it has: beam_size"),
        ({"beam_size": 0}, "nearest valid value is 1"),
        ({"beam_size": "2"}, "whole number"),
    ],
)
def test_a_bad_option_is_named_with_what_would_be_right(options, message):
    with pytest.raises(ValueError, match=message):
        NmtStage.check_options(options)
    NmtStage.check_options({"beam_size": 4})


def test_languages_and_size_are_known_without_loading(folder):
    facts = NmtStage.describe(str(folder), {})
    assert facts.languages == set(clockwork.LANGUAGES)
    assert facts.weights_bytes == (folder / "model.bin").stat().st_size


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "model.bin").unlink(), "CTranslate2 folder"),
        (lambda folder: (folder / "sentencepiece.bpe.model").unlink(), "0 SentencePiece models"),
        (lambda folder: (folder / "shared_vocabulary.json").unlink(), "no language tokens"),
        (lambda folder: (folder / "shared_vocabulary.json").write_text(json.dumps(["a", "b"])), "no language tokens"),
        (lambda folder: (folder / "shared_vocabulary.json").write_text("{"), "cannot read the shared vocabulary"),
        (lambda folder: (folder / "sentencepiece.bpe.model").write_bytes(b"rubbish"), "cannot load"),
        (lambda folder: (folder / "model.bin").write_bytes(b"rubbish"), "is not a translation model"),
        (lambda folder: (folder / "model.bin").write_bytes(b"version https://git-lfs.github.com/x"), "git lfs pull"),
        (lambda folder: (folder / "model.bin").write_bytes(b"\6\0\0\0\x0c\0WhisperSpec\0"), "not a translation model"),
        (lambda folder: os.truncate(folder / "model.bin", 20_000), "cannot load"),
    ],
)
def test_a_spoiled_model_is_one_line(folder, tmp_path, spoil, message):
    shutil.copytree(folder, tmp_path / "model")
    spoil(tmp_path / "model")
    with pytest.raises(StageError, match=message) as caught:
        opened(tmp_path / "model")
    assert caught.value.code == "bad_model" and "\n" not in caught.value.text


def test_the_sentencepiece_model_may_have_another_name(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "model")
    (tmp_path / "model" / "sentencepiece.bpe.model").rename(tmp_path / "model" / "spm.128k.model")
    assert opened(tmp_path / "model").run([item("fox")])[0].text == "Fuchs"


def test_importing_the_stage_imports_no_library():
    code = "import stages.nmt, sys; print([m for m in ('ctranslate2', 'sentencepiece') if m in sys.modules])"
    assert _python(code) == "[]"


def test_a_process_that_used_it_ends_cleanly(folder):
    code = (
        "import sys; from stages.nmt import NmtStage; from stages.base import Item, StageConfig\n"
        "stage = NmtStage(StageConfig(model=sys.argv[1])); stage.load(); stage.warm_up()\n"
        "print(stage.run([Item('s', 0, 1, source='en', target='de', text='the fox')])[0].text); stage.close()"
    )
    assert _python(code, str(folder)) == "der Fuchs"


def _python(code: str, *arguments: str) -> str:
    """Standard output of a fresh interpreter that must end with 0 and say nothing on standard error."""
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr.decode()) == (0, "")
    return done.stdout.decode().strip()
