"""The asr stage over clockwork models: transcripts, languages, and what it says when something is wrong."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from models.clockwork import asr as clockwork
from models.clockwork import tones
from stages.asr import AsrStage, confidence
from stages.asr_windows import said
from stages.base import Item, Longest, Output, StageConfig, StageError
from stages.faults import stage_error
from stages.places import is_path

pytest.importorskip("faster_whisper")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return clockwork.write(tmp_path_factory.mktemp("models") / "asr")


@pytest.fixture(scope="module")
def digits_folder(tmp_path_factory):
    return tones.write(tmp_path_factory.mktemp("models") / "tones")


def opened(model: Path, **options) -> AsrStage:
    stage = AsrStage(StageConfig(model=str(model), options=options))
    stage.load()
    stage.warm_up()
    return stage


@pytest.fixture(scope="module")
def stage(folder):
    stage = opened(folder)
    yield stage
    stage.close()


@pytest.fixture(scope="module")
def reader(digits_folder):
    return opened(digits_folder)


def sound(seconds=1.0, dtype=np.float32) -> np.ndarray:
    samples = np.random.default_rng(0).normal(0, 0.1, int(seconds * 16000))
    samples = (samples * 32767).astype(np.int16) if dtype == np.int16 else samples.astype(np.float32)
    samples.flags.writeable = False  # as in shared memory
    return samples


def item(audio, source="en", **fields) -> Item:
    return Item(
        **({"session": "s", "index": 0, "attempt": 1, "sample_rate": 16000} | fields), source=source, audio=audio
    )


@pytest.mark.parametrize("dtype", [np.float32, np.int16])
@pytest.mark.parametrize("language", clockwork.LANGUAGES)
def test_speech_becomes_text_in_the_sessions_language(stage, language, dtype):
    (output,) = stage.run([item(sound(dtype=dtype), language)])
    assert output.text == " ".join(clockwork.SENTENCES[language])
    assert (output.state, output.language, output.degraded) == ("completed", language, "")
    assert output.confidence is not None and -0.3 < output.confidence <= 0


@pytest.mark.parametrize("source", ["en", "auto"])
@pytest.mark.parametrize("audio", [np.zeros(16000, np.float32), np.zeros(16000, np.int16), np.zeros(100, np.float32)])
def test_silence_is_an_empty_transcript(stage, audio, source):
    (output,) = stage.run([item(audio, source)])
    assert (output.text, output.state, output.confidence) == ("", "completed", None)


def test_quiet_samples_are_quiet_in_either_form(stage):
    quiet = np.random.default_rng(0).normal(0, 0.004, 32000).astype(np.float32)
    as_integers = np.rint(quiet * 32767).astype(np.int16)
    assert [output.text for output in stage.run([item(quiet), item(as_integers)])] == ["", ""]


@pytest.mark.parametrize("source", ["", "auto"])
def test_a_language_not_given_is_found_and_named(stage, source):
    (output,) = stage.run([item(sound(), source)])
    assert (output.text, output.language) == (" ".join(clockwork.SENTENCES["en"]), "en")


def test_a_region_does_not_matter(stage):
    (output,) = stage.run([item(sound(), "de-AT")])
    assert output.text == " ".join(clockwork.SENTENCES["de"])


def test_a_bad_item_does_not_fail_its_batch(stage):
    batch = [item(sound()), item(sound(), "xx"), item(sound(), sample_rate=22050), item(None), item(sound(), "fr")]
    first, unknown, wrong_rate, no_audio, last = stage.run(batch)
    assert first.text == "the quick brown fox"
    assert unknown.code == "bad_language" and "de, en, es, fr, zh" in unknown.text
    assert wrong_rate.code == "failed" and "22050" in wrong_rate.text
    assert no_audio.code == "failed"
    assert last.text == " ".join(clockwork.SENTENCES["fr"])


def test_each_utterance_has_its_own_text(reader):
    """What comes out belongs to what went in, however often and in whatever order it is asked."""
    random = np.random.default_rng(3)
    spoken = ["".join(random.choice(list(tones.DIGITS), random.integers(1, 12))) for _ in range(12)]
    outputs = reader.run([item((tones.encode(digits) * 32767).astype(np.int16)) for digits in spoken])
    assert [output.text for output in outputs] == [tones.spell(digits) for digits in spoken]


def alike(one: Output | StageError, other: Output | StageError) -> bool:
    if isinstance(one, StageError) or isinstance(other, StageError):
        return type(one) is type(other) and (one.code, one.text) == (other.code, other.text)
    return (one.text, one.language, one.state) == (other.text, other.language, other.state)


def mixed() -> list[Item]:
    """Every kind of utterance there is."""
    return [
        item(sound(), "de"), item(sound(2.5), "auto"), item(np.zeros(16000, np.float32)), item(sound(), "xx"),
        item(sound(40.0), "fr"), item(np.zeros(0, np.float32)), item(sound(dtype=np.int16), "zh"), item(None),
    ]  # fmt: skip


def test_utterances_that_are_done_at_once_give_what_each_gives_by_itself(stage, folder):
    together = opened(folder, batched=True).run(mixed())
    assert [output.text for output in together[:3]] == ["der schnelle braune Fuchs", "the quick brown fox", ""]
    assert all(map(alike, together, stage.run(mixed())))


def test_each_utterance_has_its_own_text_and_sureness_among_others_at_once(reader, digits_folder):
    spoken = ["1", "123456789", "42", "007"]
    items = [item(tones.encode(digits)) for digits in spoken]
    together = opened(digits_folder, batched=True).run(items)
    assert [output.text for output in together] == [tones.spell(digits) for digits in spoken]
    alone = [reader.run([one])[0].confidence for one in items]
    assert [output.confidence for output in together] == pytest.approx(alone, abs=1e-4)


@pytest.mark.parametrize(
    ("tokens", "kept"),
    [
        ([5, 6, 7], [5, 6, 7]),  # no time stamps
        ([100, 5, 6, 140], [100, 5, 6, 140]),  # one at the very end: nothing after it
        ([100, 5, 120, 120, 6, 140], [100, 5, 120, 120, 6, 140]),
        ([100, 5, 120, 120, 6], None),  # another window from 0.4 s on
        ([100, 5, 120, 120], None),
        ([100, 5, 150, 150], [100, 5, 150]),  # a window's end is where its audio ends
        ([], []),
    ],
)
def test_time_stamps_say_whether_a_window_was_enough(tokens, kept):
    assert said(tokens, 100, 50) == kept


class Fails:
    """Windows that answer nothing, or raise."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error

    def transcribe(self, audios, languages):
        if self.error is not None:
            raise self.error
        return [None] * len(audios)


@pytest.mark.parametrize("windows", [Fails(), Fails(RuntimeError("no reason"))])
def test_what_cannot_be_done_at_once_is_done_one_by_one(folder, windows):
    stage = opened(folder, batched=True)
    stage._windows = windows
    first, bad, last = stage.run([item(sound(), "de"), item(sound(), "xx"), item(sound(), "fr")])
    assert (first.text, last.text) == ("der schnelle braune Fuchs", " ".join(clockwork.SENTENCES["fr"]))
    assert bad.code == "bad_language"


def test_too_many_at_once_for_the_memory_is_said_so_that_fewer_are_tried(folder):
    stage = opened(folder, batched=True)
    stage._windows = Fails(RuntimeError("CUDA failed with error out of memory"))
    with pytest.raises(StageError) as refused:
        stage.run([item(sound()), item(sound())])
    assert refused.value.code == "oom"
    assert stage.run([item(sound())])[0].text == "the quick brown fox"


def test_many_at_once_need_memory_for_each_and_one_by_one_for_one(folder):
    def workspace(max_batch: int, **options) -> int:
        config = StageConfig(model=str(folder), options=options, max_batch=max_batch)
        memory = AsrStage.memory(config, Longest(audio_s=20.0))
        assert memory is not None
        return memory.workspace_bytes

    assert workspace(1) == workspace(8) < workspace(8, batched=True)
    assert workspace(8, batched=True, vad_filter=True) == workspace(8)


def test_a_minute_is_one_text(reader):
    digits = "".join(np.random.default_rng(4).choice(list(tones.DIGITS), 300))
    assert reader.run([item(tones.encode(digits))])[0].text == tones.spell(digits)


@pytest.mark.parametrize(
    "options", [{"beam_size": 5}, {"temperature": 0.2}, {"hotwords": "Bob", "initial_prompt": "my"}]
)
def test_options_reach_the_library(folder, options):
    (output,) = opened(folder, **options).run([item(sound())])
    assert output.text == "the quick brown fox"


def test_the_voice_filter_takes_noise_for_silence(folder):
    assert opened(folder, vad_filter=True).run([item(sound())])[0].text == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beams": 5}, "no option 'beams'; it has: beam_size"),
        ({"beam_size": 0}, "nearest valid value is 1"),
        ({"beam_size": 2.5}, "must be a number"),
        ({"beam_size": True}, "must be a number"),
        ({"temperature": 3}, "nearest valid value is 1.0"),
        ({"vad_filter": "yes"}, "must be true or false"),
        ({"hotwords": 7}, "must be a text"),
    ],
)
def test_a_bad_option_is_named_with_what_would_be_right(options, message):
    with pytest.raises(ValueError, match=message):
        AsrStage.check_options(options)


def test_good_options_pass():
    AsrStage.check_options(
        {"beam_size": 5, "temperature": 0, "vad_filter": True, "hotwords": "", "initial_prompt": "x"}
    )


def test_languages_and_size_are_known_without_loading(folder):
    facts = AsrStage.describe(str(folder), {})
    assert facts.languages == set(clockwork.LANGUAGES)
    assert facts.weights_bytes == (folder / "model.bin").stat().st_size


def test_a_model_without_the_empty_token_speaks_english_only(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "en")
    tokens = json.loads((folder / "vocabulary.json").read_text())
    (tmp_path / "en" / "vocabulary.json").write_text(json.dumps([token or "x" for token in tokens]))
    assert AsrStage.describe(str(tmp_path / "en"), {}).languages == {"en"}


@pytest.mark.parametrize("missing", ["tokenizer.json", "model.bin", "config.json", "vocabulary.json"])
def test_a_missing_file_is_named_before_anything_is_loaded(folder, tmp_path, missing):
    shutil.copytree(folder, tmp_path / "model")
    (tmp_path / "model" / missing).unlink()
    for look in (lambda: AsrStage.describe(str(tmp_path / "model"), {}), lambda: opened(tmp_path / "model")):
        with pytest.raises(StageError, match=missing) as caught:
            look()
        assert caught.value.code == "bad_model" and "\n" not in caught.value.text
        assert "models synthesize asr" in caught.value.text


@pytest.mark.parametrize("content", [b"", b"rubbish", b"\x06\x00\x00\x00" + b"\xff" * 64])
def test_a_broken_model_is_one_line(folder, tmp_path, content):
    shutil.copytree(folder, tmp_path / "model")
    (tmp_path / "model" / "model.bin").write_bytes(content)
    with pytest.raises(StageError) as caught:
        opened(tmp_path / "model")
    assert caught.value.code == "bad_model" and "\n" not in caught.value.text


def test_a_compute_type_the_cpu_lacks_is_one_line(folder):
    with pytest.raises(StageError) as caught:
        AsrStage(StageConfig(model=str(folder), compute_type="float16")).load()
    assert caught.value.code == "bad_model" and "float16" in caught.value.text


def test_no_model_and_no_such_folder_are_said():
    for model in ("", "./nowhere", "/nowhere/at/all", "models/nowhere"):
        with pytest.raises(StageError) as caught:
            AsrStage.describe(model, {})
        assert caught.value.code == "bad_model"
    assert AsrStage.describe("small", {}).languages is None


def test_names_and_paths_are_told_apart(folder):
    assert all(map(is_path, (str(folder), "./x", "~/x", "a/b/c", "models/asr")))
    assert is_path(f"{folder.name}/model", folder.parent)
    assert not is_path("small") and not is_path("owner/whisper-tiny")


def test_confidence_counts_tokens():
    long, short = SimpleNamespace(avg_logprob=-0.1, tokens=[1] * 9), SimpleNamespace(avg_logprob=-1.1, tokens=[1])
    assert confidence([long, short]) == pytest.approx(-0.2)
    assert confidence([]) is None


@pytest.mark.parametrize("error", [RuntimeError("CUDA failed with error out of memory"), MemoryError()])
def test_running_out_of_memory_may_be_tried_again(stage, monkeypatch, error):
    class Full:
        def transcribe(self, *_args, **_options):
            raise error

    monkeypatch.setattr(stage, "_model", Full())
    (result,) = stage.run([item(sound())])
    assert (result.code, result.retry) == ("oom", True)


def test_any_other_failure_is_one_line():
    result = stage_error("failed", "asr", RuntimeError("line one\n  line two"))
    assert (result.code, result.text, result.retry) == ("failed", "asr: line one line two", True)
    assert not stage_error("failed", "asr", ValueError("no")).retry


def test_importing_the_stage_imports_no_library():
    libraries = ("faster_whisper", "ctranslate2", "onnxruntime")
    assert _python(f"import stages.asr, sys; print([m for m in {libraries} if m in sys.modules])") == "[]"


def test_a_process_that_used_it_ends_cleanly(folder):
    code = (
        "import sys, numpy as np; from stages.asr import AsrStage; from stages.base import Item, StageConfig\n"
        "stage = AsrStage(StageConfig(model=sys.argv[1])); stage.load(); stage.warm_up()\n"
        "audio = np.random.default_rng(0).normal(0, 0.1, 16000).astype(np.float32)\n"
        "print(stage.run([Item('s', 0, 1, source='en', audio=audio, sample_rate=16000)])[0].text); stage.close()"
    )
    assert _python(code, str(folder)) == "the quick brown fox"


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


def test_results_are_outputs_or_errors(stage):
    assert stage.run([]) == []
    assert isinstance(stage.run([item(sound())])[0], Output)
