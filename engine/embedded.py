"""The configurations that need no file: the demo models that come with Dragoman, and clockwork models.

``config`` is what runs when no file is given: four small trained models (``models/demo``, with a model card) that know
a traveller's phrase book in four languages. Recognition takes several times as long as the other three stages together
(Whisper pads everything to 30 s), so where there are two cores there are two recognisers: with one, the other stages
would mostly wait.

``clockwork`` is for tests and rehearsals: models of hand-set weights (``models.clockwork``) that say fixed words,
written into a folder once for each version of their construction: the default folder's name carries a digest of the
code that writes them. They are written beside it and moved into place, so two nodes starting at once cannot see half a
model.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import models
from engine import __version__
from engine.config import Config, StageSection
from ipc.errors import DragomanError

SAYING = (
    "no configuration file: using the embedded demo models (a phrase book, synthetic voices, not for use; "
    "docs/models.md: real ones)"
)
DEMO = Path(models.__file__).parent / "demo"
RESTORE = "in a checkout: git checkout models/demo; else install Dragoman again"
STAGES = ("asr", "repair", "nmt", "tts")
PIPELINES = {
    "full": STAGES,
    "transcribe": ("asr",),
    "translate-text": ("nmt",),
    "speak": ("tts",),
}
NEEDS = {"asr": "ctranslate2", "repair": "gguf", "nmt": "sentencepiece", "tts": "onnx"}

Synthesize = Callable[[str, Path], Path]


def config(cores: int = 0) -> Config:
    """The demo models on whatever devices there are; ``cores`` 0: this machine's. They may be missing: ``check``."""
    return _config({name: _model(DEMO, name) for name in STAGES}, cores)


def clockwork(folder: Path | None = None, synthesize: Synthesize | None = None, cores: int = 0) -> Config:
    """Clockwork models in ``folder`` (default: in the user's cache), made if they are not there.

    Raises DragomanError.
    """
    return _config(ensure_models(folder or cache_folder(os.environ), synthesize or _synthesize), cores)


def is_demo(model: str) -> bool:
    """Whether this is one of the models that come with Dragoman."""
    return Path(model).is_relative_to(DEMO)


def check(config: Config) -> None:
    """Raises DragomanError when a demo model that the configuration names is not there."""
    for section in config.stages.values():
        if is_demo(section.model) and not Path(section.model).exists():
            raise DragomanError(
                f"the demo model {section.model} is missing",
                RESTORE,
            )


def _config(paths: Mapping[str, Path], cores: int) -> Config:
    recognisers = min(2, cores or len(os.sched_getaffinity(0)))
    stages = {
        name: StageSection(
            model=str(paths[name]), required=name != "repair", instances=recognisers if name == "asr" else 1
        )
        for name in STAGES
    }
    return Config(stages=stages, pipelines=dict(PIPELINES))


def _model(folder: Path, stage: str) -> Path:
    """Where a stage's model lies in a folder of all four."""
    return folder / "repair.gguf" if stage == "repair" else folder / stage


def cache_folder(environ: Mapping[str, str]) -> Path:
    """Where the models are kept: in the user's cache, named by version and by the code that makes them."""
    base = Path(environ.get("XDG_CACHE_HOME") or Path(environ.get("HOME") or tempfile.gettempdir()) / ".cache")
    return base / "dragoman" / f"clockwork-{__version__}-{construction_digest()}"


def construction_digest() -> str:
    """Eight hex digits that change whenever the code that writes the models does."""
    import models.clockwork

    digest = hashlib.sha256()
    for file in sorted(Path(models.clockwork.__file__).parent.glob("*.py")):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:8]


def ensure_models(folder: Path, synthesize: Synthesize) -> dict[str, Path]:
    """Path of each stage's model, as the stage takes it. What is missing is made; repair may stay missing."""
    return {kind: _ensure(kind, folder, synthesize) for kind in STAGES}


def _ensure(kind: str, folder: Path, synthesize: Synthesize) -> Path:
    home = folder / kind
    if not home.is_dir():
        try:
            _make(kind, home, synthesize)
        except ImportError as error:
            if kind != "repair":  # without its model repair is absent, and its utterances skip it
                mend = f"pip install {NEEDS[kind]}"
                raise DragomanError(f"cannot make the embedded {kind} model: {error}", mend) from error
        except OSError as error:
            raise DragomanError(
                f"cannot write the embedded models to {folder}: {error}", "set XDG_CACHE_HOME"
            ) from error
    return home / "repair.gguf" if kind == "repair" else home


def _make(kind: str, home: Path, synthesize: Synthesize) -> None:
    home.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{kind}-", dir=home.parent))
    try:
        synthesize(kind, fresh)
        fresh.chmod(0o755)
        try:
            fresh.rename(home)
        except OSError:
            if not home.is_dir():  # another process was first: its bytes are the same
                raise
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _synthesize(kind: str, out: Path) -> Path:
    import models.clockwork

    return models.clockwork.synthesize(kind, out)
