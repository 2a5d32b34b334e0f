"""Without a configuration file there is one all the same: embedded models, made once, in the user's cache."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine import embedded
from ipc.errors import DragomanError


class Maker:
    """Stands in for the synthesis: writes one small file per kind and counts."""

    def __init__(self, **broken: Exception) -> None:
        self.made: list[str] = []
        self._broken = broken

    def __call__(self, kind: str, out: Path) -> Path:
        self.made.append(kind)
        (out / "half").write_text("half a model")
        if kind in self._broken:
            raise self._broken[kind]
        (out / ("repair.gguf" if kind == "repair" else "model")).write_text(kind)
        return out


def test_four_stages_four_pipelines_and_repair_may_be_missing(tmp_path: Path) -> None:
    config = embedded.clockwork(tmp_path, Maker())
    assert list(config.stages) == ["asr", "repair", "nmt", "tts"]
    assert [name for name, stage in config.stages.items() if not stage.required] == ["repair"]
    assert config.pipelines["full"] == ("asr", "repair", "nmt", "tts")
    assert set(config.pipelines) == {"full", "transcribe", "translate-text", "speak"}
    assert all(Path(stage.model).exists() for stage in config.stages.values())


def test_models_are_made_once(tmp_path: Path) -> None:
    maker = Maker()
    embedded.clockwork(tmp_path, maker)
    embedded.clockwork(tmp_path, maker)
    assert maker.made == ["asr", "repair", "nmt", "tts"]


def test_a_synthesis_that_broke_off_leaves_nothing_that_looks_like_a_model(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        embedded.clockwork(tmp_path, Maker(nmt=RuntimeError("power cut")))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["asr", "repair"]
    assert embedded.clockwork(tmp_path, Maker()).stages["nmt"].model == str(tmp_path / "nmt")


def test_without_gguf_the_node_goes_without_repair_but_not_without_another(tmp_path: Path) -> None:
    config = embedded.clockwork(tmp_path / "a", Maker(repair=ImportError("No module named 'gguf'")))
    assert not Path(config.stages["repair"].model).exists()
    with pytest.raises(DragomanError, match="pip install onnx"):
        embedded.clockwork(tmp_path / "b", Maker(tts=ImportError("No module named 'onnx'")))


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DragomanError, match="XDG_CACHE_HOME"):
        embedded.clockwork(tmp_path / "file", Maker())


def test_the_cache_folder_follows_the_user_and_the_code_that_makes_the_models() -> None:
    folder = embedded.cache_folder({"XDG_CACHE_HOME": "/c", "HOME": "/home/u"})
    assert folder.parent == Path("/c/dragoman")
    assert folder.name.startswith("clockwork-")
    assert folder.name.endswith(embedded.construction_digest())
    assert embedded.cache_folder({"HOME": "/home/u"}).parent == Path("/home/u/.cache/dragoman")


def test_the_slowest_stage_has_two_workers_where_there_are_two_cores(tmp_path: Path) -> None:
    assert [embedded.clockwork(tmp_path, Maker(), cores).stages["asr"].instances for cores in (1, 2, 64)] == [1, 2, 2]
