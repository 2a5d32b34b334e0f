"""The speech stage, with tone voices: what comes out can be read back."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.clockwork import tts as clockwork
from stages.base import Item, Output, StageConfig, StageError
from stages.tts import SIZE, TtsStage, find_voices, speakable, to_int16

pytest.importorskip("piper", reason="piper-tts is not installed")

ROOT = Path(__file__).resolve().parents[2]
STUB_VOICE = ROOT.parent / "shared" / "assets" / "models" / "piper-stub" / "test_voice.onnx"


def item(text: str, target: str = "en", source: str = "") -> Item:
    return Item("s", 0, 1, source=source, target=target, text=text)


@pytest.fixture(scope="module")
def voices(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clockwork.write(tmp_path_factory.mktemp("voices"))


@pytest.fixture(scope="module")
def stage(voices: Path) -> Iterator[TtsStage]:
    stage = opened(voices)
    stage.warm_up()
    yield stage
    stage.close()


def opened(path: Path, **options: Any) -> TtsStage:
    stage = TtsStage(StageConfig(model=str(path), threads=1, options=options))
    stage.load()
    return stage


def run(stage: TtsStage, text: str, target: str = "en", source: str = "") -> Output:
    result = stage.run([item(text, target, source)])[0]
    assert isinstance(result, Output), result
    return result


def refused(stage: TtsStage, text: str, target: str = "en") -> StageError:
    result = stage.run([item(text, target)])[0]
    assert isinstance(result, StageError), result
    return result


def heard(output: Output, language: str, length_scale: float = 1.0) -> str:
    assert output.audio is not None
    assert (output.audio.dtype, output.audio.ndim) == (np.int16, 1)
    return clockwork.spoken_digits(output.audio, output.sample_rate, language, length_scale)


# --- speech -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("language", clockwork.LANGUAGES)
def test_the_digits_of_the_text_are_in_the_sound(stage: TtsStage, language: str) -> None:
    assert heard(run(stage, "3 1 4 1 5 9 2 6 5 0", language), language) == "3141592650"


def test_all_sentences_are_in_one_array_in_order(stage: TtsStage) -> None:
    assert heard(run(stage, "1 2. 3 4! 5 6?"), "en") == "123456"


def test_the_voice_is_chosen_by_target_then_by_source(stage: TtsStage) -> None:
    assert heard(run(stage, "7 8", "de", "fr"), "de") == "78"
    assert heard(run(stage, "7 8", "", "fr"), "fr") == "78"
    assert heard(run(stage, "7 8", "de-AT"), "de") == "78"
    assert heard(run(stage, "7 8", "zh_CN"), "zh") == "78"


def test_an_unknown_language_is_refused_by_name(stage: TtsStage) -> None:
    error = refused(stage, "hello", "tlh")
    assert error.code == "bad_language"
    assert "'tlh'" in error.text
    assert "de, en, es, fr, zh" in error.text
    assert refused(stage, "hello", "").code == "bad_language"


def test_a_single_voice_needs_no_language(voices: Path) -> None:
    stage = opened(voices / "es.onnx")
    assert heard(run(stage, "4 2", ""), "es") == "42"
    assert refused(stage, "4 2", "de").code == "bad_language"


@pytest.mark.parametrize("text", ["", "  ", "...", "\u3002\uff01"])
def test_nothing_to_say_is_skipped(stage: TtsStage, text: str) -> None:
    assert run(stage, text) == Output(state="skipped", reason="nothing to say")


def test_one_bad_item_does_not_fail_its_batch(stage: TtsStage) -> None:
    results = stage.run([item("1"), item("2", "tlh"), item("\ud800"), item("4")])
    assert [r.code if isinstance(r, StageError) else heard(r, "en") for r in results] == [
        "1",
        "bad_language",
        "bad_text",
        "4",
    ]


@pytest.mark.parametrize("length_scale", [0.5, 2.0])
def test_length_scale_changes_the_length_and_not_the_words(stage: TtsStage, voices: Path, length_scale: float) -> None:
    scaled, plain = run(opened(voices, length_scale=length_scale), "3 1 4"), run(stage, "3 1 4")
    assert scaled.audio is not None
    assert plain.audio is not None
    assert scaled.audio.size == plain.audio.size * length_scale
    assert heard(scaled, "en", length_scale) == "314"


def test_a_speaker_is_passed_on(tmp_path: Path) -> None:
    folder = clockwork.write(tmp_path, languages=["en"], speakers=2)
    first, second = (run(opened(folder, speaker=speaker), "hello").audio for speaker in (0, 1))
    assert first is not None
    assert second is not None
    ids = clockwork.decode(first, clockwork.RATE_HZ)
    assert clockwork.decode(second, clockwork.RATE_HZ, speaker=1) == ids


def test_full_width_punctuation_ends_sentences_and_is_not_spoken(stage: TtsStage) -> None:
    wide = run(stage, "\u4f60\u597d\uff0c\u4e16\u754c\u3002\u518d\u89c1\uff1f", "zh")
    narrow = run(stage, "\u4f60\u597d, \u4e16\u754c. \u518d\u89c1?", "zh")
    assert wide.audio is not None
    assert narrow.audio is not None
    assert np.array_equal(wide.audio, narrow.audio)


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("a [[bc]] d", "a [ [bc] ] d"),
        ("[[[[a]]]]", "[ [ [ [a] ] ] ]"),
        ("a\x00b\nc", "a b c"),
        ("\u4f60\u597d\uff01", "\u4f60\u597d!"),
        ("\U0001f600 \u0645\u0631", "\U0001f600 \u0645\u0631"),
    ],
)
def test_text_becomes_speakable(text: str, same: str) -> None:
    assert speakable(text) == same


@pytest.mark.parametrize(
    "text",
    [
        "a\x00b",
        "[[",
        "]] [[x",
        "\u202e\u0645\u0631\u062d\u0628\u0627",
        "\U0001f3f3\ufe0f\u200d\U0001f308",
        "<a&b>",
        "%%%",
    ],
)
def test_odd_text_gives_an_output(stage: TtsStage, text: str) -> None:
    run(stage, text)


# --- what a voice may return ------------------------------------------------------------------------------------


class OddVoice:
    """Stands for a voice whose graph returns ``samples`` for each sentence."""

    def __init__(self, samples: np.ndarray, sentences: int = 1) -> None:
        import piper

        self.config = type("Config", (), {"sample_rate": 22_050})()
        self._chunks = [piper.AudioChunk(22_050, 2, 1, samples, [], [])] * sentences

    def synthesize(self, text: str, config: object) -> Iterator[Any]:
        yield from self._chunks


def saying(voice: OddVoice) -> TtsStage:
    stage = TtsStage(StageConfig())
    stage._voices = {"en": voice}
    return stage


@pytest.mark.parametrize("samples", [[], [0.1, float("nan")], [float("inf")]])
def test_output_that_is_no_sound_is_bad_output(samples: list[float]) -> None:
    error = refused(saying(OddVoice(np.array(samples, np.float32))), "a")
    assert (error.code, error.retry) == ("bad_output", True)


def test_a_graph_without_samples_is_bad_output(stage: TtsStage, voices: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = opened(voices / "en.onnx")
    monkeypatch.setattr(mine._voices["en"], "phoneme_ids_to_audio", lambda *a, **k: np.zeros(0, np.float32))
    assert refused(mine, "a").code == "bad_output"


def test_speech_longer_than_its_slot_is_an_error_and_stops_early() -> None:
    room = SIZE.bound(0, 1) // 2
    assert run(saying(OddVoice(np.zeros(room // 4, np.float32), sentences=4)), "a").audio is not None
    error = refused(saying(OddVoice(np.zeros(room // 4, np.float32), sentences=5)), "a")
    assert error.code == "output_too_long"


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("zh", "\u6211\u4eec\u4eca\u5929\u53bb\u516c\u56ed\u6563\u6b65\uff0c\u5929\u6c14\u975e\u5e38\u597d\u3002" * 20),
        ("de", "777777"),
        ("en", "W W W W W W W W W W"),
        ("fr", "99 99 99 99"),
        ("en", "\U0001f3f3\ufe0f\u200d\U0001f308"),
    ],
)
def test_ordinary_speech_fits_its_slot(stage: TtsStage, language: str, text: str) -> None:
    run(stage, text, language)


def test_samples_become_int16_of_the_same_shape() -> None:
    assert to_int16(np.array([-1.0, 0.0, 0.5, 1.0], np.float32)).tolist() == [-32767, 0, 16384, 32767]


@pytest.mark.skipif(not STUB_VOICE.exists(), reason="no ../shared/assets beside the checkout")
def test_a_voice_from_elsewhere_speaks_one_second_a_sentence() -> None:
    stage = opened(STUB_VOICE)
    output = run(stage, "Hello there. And again.", "en")
    assert output.audio is not None
    assert (output.audio.size, output.sample_rate) == (2 * 22_050, 22_050)


# --- the voices' files ------------------------------------------------------------------------------------------


def test_describe_reads_languages_and_sizes_without_the_libraries(voices: Path) -> None:
    facts = TtsStage.describe(str(voices), {})
    assert facts.languages == frozenset(clockwork.LANGUAGES)
    assert facts.weights_bytes == sum(path.stat().st_size for path in voices.glob("*.onnx"))
    code = (
        "import sys, stages.tts as t; t.TtsStage.describe(sys.argv[1], {}); "
        "assert not {'piper', 'onnxruntime', 'onnx'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(voices)], cwd=ROOT, check=True, timeout=60)


def altered(voices: Path, folder: Path, name: str, **changes: Any) -> Path:
    """A copy of the English voice called ``name``; a change to None removes that key."""
    onnx = folder / f"{name}.onnx"
    shutil.copy(voices / "en.onnx", onnx)
    config = json.loads((voices / "en.onnx.json").read_text(encoding="utf-8")) | changes
    (folder / f"{name}.onnx.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    return onnx


@pytest.mark.parametrize(
    ("name", "changes", "language", "locale"),
    [
        ("x", {"language": {"code": "pt_BR", "family": "pt"}}, "pt", "pt-br"),
        ("x", {"language": None, "espeak": {"voice": "cmn"}}, "zh", "cmn"),
        ("x", {"language": None, "espeak": {"voice": "en-us"}}, "en", "en-us"),
        ("it_IT-paola-medium", {"language": None, "espeak": {"voice": ""}}, "it", "it-it"),
        ("nl", {"language": {}, "espeak": {"voice": ""}}, "nl", "nl"),
    ],
)
def test_a_voices_language(
    voices: Path, tmp_path: Path, name: str, changes: dict[str, Any], language: str, locale: str
) -> None:
    voice = find_voices(str(altered(voices, tmp_path, name, **changes)))[0]
    assert (voice.language, voice.locale) == (language, locale)


def test_of_two_voices_of_a_language_the_locale_decides(voices: Path, tmp_path: Path) -> None:
    for name, code, rate in (("en_GB", "en_GB", 16_000), ("en_US", "en_US", 22_050)):
        altered(voices, tmp_path, name, language={"code": code}, audio={"sample_rate": rate})
    stage = opened(tmp_path)
    assert [run(stage, "a", target).sample_rate for target in ("en-US", "en_GB", "en", "en-AU")] == [
        22_050,
        16_000,
        16_000,
        16_000,
    ]


def test_files_that_are_no_voice_say_what_is_wrong(voices: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare.onnx"
    shutil.copy(voices / "en.onnx", bare)
    empty = tmp_path / "empty"
    empty.mkdir()
    torn = altered(voices, tmp_path, "torn")
    text = altered(voices, tmp_path, "text")
    text.write_text("version https://git-lfs.github.com/spec/v1")
    Path(f"{torn}.json").write_text("{")
    cases = {
        tmp_path / "absent": "models synthesize tts",
        empty: "holds no .onnx files",
        bare: "no bare.onnx.json beside it",
        torn: "cannot read",
        text: "not an ONNX graph.*git lfs pull",
        altered(voices, tmp_path, "thin", phoneme_id_map=None): "no 'phoneme_id_map'",
        altered(voices, tmp_path, "han", phoneme_type="pinyin"): "'pinyin'",
    }
    for path, said in cases.items():
        with pytest.raises(StageError, match=said) as caught:
            TtsStage.describe(str(path), {})
        assert caught.value.code == "bad_model"
        assert "\n" not in caught.value.text


def test_a_broken_graph_or_an_unknown_espeak_voice_is_a_bad_model(voices: Path, tmp_path: Path) -> None:
    broken = altered(voices, tmp_path, "broken")
    broken.write_bytes(b"not a graph")
    mute = altered(voices, tmp_path, "mute", espeak={"voice": "tlh"})
    for path in (broken, mute):
        with pytest.raises(StageError, match=path.name) as caught:
            opened(path)
        assert caught.value.code == "bad_model"
        assert "\n" not in caught.value.text


def test_a_speaker_the_voice_does_not_have_is_refused_before_loading(voices: Path) -> None:
    with pytest.raises(StageError, match="1 speaker") as caught:
        TtsStage.describe(str(voices), {"speaker": 1})
    assert caught.value.code == "bad_model"


def test_cuda_that_comes_up_as_cpu_is_refused(voices: Path) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    with pytest.raises(StageError, match="onnxruntime-gpu") as caught:
        TtsStage(StageConfig(model=str(voices), device="cuda")).load()
    assert caught.value.code == "bad_model"


# --- options ----------------------------------------------------------------------------------------------------


def test_good_options_pass() -> None:
    TtsStage.check_options(
        {"length_scale": 1, "noise_scale": 0.0, "noise_w": 0.8, "speaker": 0, "gpu_mem_limit_mib": 512}
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"speed": 1}, "has no option 'speed'"),
        ({"length_scale": 5}, "nearest valid value is 2.0"),
        ({"length_scale": "1"}, "must be a number"),
        ({"noise_w": True}, "must be a number"),
        ({"speaker": 1.0}, "must be a number"),
        ({"speaker": -1}, "nearest valid value is 0"),
    ],
)
def test_a_bad_option_is_named(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        TtsStage.check_options(options)
