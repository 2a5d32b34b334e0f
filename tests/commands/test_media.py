"""Sound of any codec becomes mono 16 kHz int16; what is no sound, or too long, says so."""

from __future__ import annotations

import wave
from pathlib import Path

import av
import numpy as np
import pytest

from engine import media
from engine.media import MediaError

ASSETS = Path(__file__).resolve().parents[3] / "shared" / "assets"


def sine(seconds: float, rate: int, hz: float = 440.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def encode(path: Path, codec: str, samples: np.ndarray, rate: int, layout: str = "mono") -> None:
    """Write ``samples`` (float32, shape (n,), the same in every channel) with FFmpeg."""
    channels = 2 if layout == "stereo" else 1
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout=layout)
        data = np.ascontiguousarray(np.repeat(media.to_int16(samples), channels).reshape(1, -1))
        frame = av.AudioFrame.from_ndarray(data, format="s16", layout=layout)
        frame.sample_rate = rate
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)


def pitch(samples: np.ndarray) -> float:
    """Frequency in Hz of the strongest tone of 16 kHz samples."""
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(np.argmax(spectrum) * media.RATE_HZ / len(samples))


@pytest.mark.parametrize(
    ("name", "codec", "rate", "layout"),
    [
        ("a.wav", "pcm_s16le", 16_000, "mono"),
        ("a.wav", "pcm_s16le", 44_100, "stereo"),
        ("a.flac", "flac", 48_000, "stereo"),
        ("a.aiff", "pcm_s16be", 22_050, "mono"),
        ("a.mp3", "libmp3lame", 44_100, "stereo"),
        ("a.ogg", "libopus", 48_000, "mono"),
    ],
)
def test_any_codec_rate_and_channels(tmp_path: Path, name: str, codec: str, rate: int, layout: str) -> None:
    try:
        encode(tmp_path / name, codec, sine(1.5, rate), rate, layout)
    except (av.error.FFmpegError, av.codec.codec.UnknownCodecError) as error:
        pytest.skip(f"this FFmpeg does not write {codec}: {error}")
    sound = media.read(tmp_path / name, 120)
    assert sound.samples.dtype == np.int16
    assert sound.samples.ndim == 1
    assert sound.duration_s == pytest.approx(1.5, abs=0.1)  # mp3 and opus pad
    assert pitch(sound.samples) == pytest.approx(440, abs=5)
    assert np.abs(sound.samples).max() == pytest.approx(0.5 * 32767, rel=0.15)


def test_a_16_khz_mono_file_comes_back_bit_for_bit(tmp_path: Path) -> None:
    samples = np.random.default_rng(0).integers(-32768, 32767, 20_000).astype(np.int16)
    media.write_wav(tmp_path / "a.wav", samples, 16_000)
    assert np.array_equal(media.read(tmp_path / "a.wav", 120).samples, samples)


def test_a_written_wav_says_what_it_is_and_floats_are_clipped(tmp_path: Path) -> None:
    media.write_wav(tmp_path / "a.wav", np.array([0.0, 2.0, -2.0, 0.5], np.float32), 22_050)
    with wave.open(str(tmp_path / "a.wav")) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, 22_050)
        assert np.frombuffer(file.readframes(9), "<i2").tolist() == [0, 32767, -32767, 16384]


def test_the_longest_utterance_is_taken_and_one_second_more_is_not(tmp_path: Path) -> None:
    media.write_wav(tmp_path / "fits.wav", np.zeros(3 * 16_000, np.int16), 16_000)
    media.write_wav(tmp_path / "over.wav", np.zeros(4 * 16_000, np.int16), 16_000)
    assert media.read(tmp_path / "fits.wav", 3).duration_s == 3
    with pytest.raises(MediaError, match=r"over\.wav lasts 4\.0 s, one utterance may last 3 s") as caught:
        media.read(tmp_path / "over.wav", 3)
    assert caught.value.code == "audio_too_long"


def test_hours_of_sound_are_refused_without_decoding_them(tmp_path: Path) -> None:
    media.write_wav(tmp_path / "hours.wav", np.zeros(60 * 16_000, np.int16), 16_000)
    with pytest.raises(MediaError) as caught:
        media.read(tmp_path / "hours.wav", 3)
    assert caught.value.code == "audio_too_long"


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"this is not sound at all\n" * 50, "bad_audio"),
        (b"", "bad_audio"),
        (b"RIFF\x00\x00\x00\x00WAVEfmt ", "bad_audio"),
    ],
)
def test_what_is_no_sound_says_so_in_one_line(tmp_path: Path, content: bytes, code: str) -> None:
    (tmp_path / "odd.wav").write_bytes(content)
    with pytest.raises(MediaError, match=r"odd\.wav") as caught:
        media.read(tmp_path / "odd.wav", 120)
    assert caught.value.code == code
    assert "\n" not in str(caught.value)


def test_a_file_without_samples_is_empty(tmp_path: Path) -> None:
    media.write_wav(tmp_path / "none.wav", np.zeros(0, np.int16), 16_000)
    with pytest.raises(MediaError) as caught:
        media.read(tmp_path / "none.wav", 120)
    assert caught.value.code in ("empty_audio", "bad_audio")


def test_a_missing_file_is_bad_audio_too(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="No such file") as caught:
        media.read(tmp_path / "gone.wav", 120)
    assert caught.value.code == "bad_audio"


@pytest.mark.skipif(not ASSETS.is_dir(), reason="no test recordings beside this checkout")
@pytest.mark.parametrize("kind", ["speech/encodings", "speech/faster-whisper", "speech/librispeech"])
def test_real_recordings_in_every_encoding(kind: str) -> None:
    for path in sorted((ASSETS / kind).iterdir()):
        sound = media.read(path, 120)
        assert sound.duration_s > 0.3, path.name
        assert np.abs(sound.samples).max() > 300, path.name


@pytest.mark.skipif(not ASSETS.is_dir(), reason="no test recordings beside this checkout")
def test_odd_and_broken_files_are_read_or_refused_but_never_crash() -> None:
    for path in sorted((ASSETS / "wav-corpus").rglob("*.wav")):
        try:
            assert len(media.read(path, 120).samples) > 0
        except MediaError as error:
            assert error.code in ("bad_audio", "empty_audio")
