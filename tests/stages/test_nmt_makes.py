"""NLLB and Marian models, and tokenizers of Hugging Face's library, as the nmt stage runs them: real CTranslate2."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from models.clockwork import nmt as clockwork
from stages import flores
from stages.base import Item, Longest, StageConfig, StageError
from stages.nmt import NmtStage

pytest.importorskip("ctranslate2")
pytest.importorskip("sentencepiece")
DIRECTION = {"source": "en", "target": "de"}


def opened(model: Path, **options: object) -> NmtStage:
    stage = NmtStage(StageConfig(model=str(model), options=options, max_batch=4))
    stage.load()
    stage.warm_up()
    return stage


@pytest.fixture(scope="module")
def nllb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clockwork.write_nllb(tmp_path_factory.mktemp("models") / "nllb")


@pytest.fixture(scope="module")
def marian(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clockwork.write_marian(tmp_path_factory.mktemp("models") / "opus-mt-en-de")


def item(text: str, source: str = "en", target: str = "de") -> Item:
    return Item("s", 0, 1, source=source, target=target, text=text)


def said(stage: NmtStage, *items: Item) -> list[str]:
    return [getattr(output, "code", output.text) for output in stage.run(items)]


# ---------------------------------------------------------------- NLLB


def test_an_nllb_translates_between_all_its_languages_by_the_codes_that_sessions_use(nllb: Path) -> None:
    assert NmtStage.describe(str(nllb), {}).languages == {"en", "de", "fr", "es", "zh"}
    stage = opened(nllb)
    pairs = [(a, b) for a in clockwork.LANGUAGES for b in clockwork.LANGUAGES if a != b]
    items = [item(" ".join(clockwork.WORDS[source]), source, target) for source, target in pairs]
    assert said(stage, *items) == [" ".join(clockwork.WORDS[target]) for _, target in pairs]


def test_its_pieces_may_be_cut_by_a_tokenizer_of_hugging_face(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    folder = clockwork.write_nllb(tmp_path / "model", tokenizer=True)
    assert not list(folder.glob("*.model"))
    texts = ["the fox said hello", "3 1 4 1 5", "Ελληνικά 😀", "Wait... what? Yes!"]
    assert said(opened(folder), *map(item, texts)) == [clockwork.translate_words(text, "de") for text in texts]


def test_scripts_of_one_language_are_told_apart() -> None:
    tokens = [
        "zho_Hans",
        "zho_Hant",
        "arb_Arab",
        "arb_Latn",
        "ace_Arab",
        "ace_Latn",
        "yue_Hant",
        "nob_Latn",
        "<s>",
        "__en__",
    ]
    assert flores.codes(tokens) == {
        "zh": "zho_Hans", "zh-Hant": "zho_Hant", "ar": "arb_Arab", "ar-Latn": "arb_Latn", "ace": "ace_Latn",
        "ace-Arab": "ace_Arab", "yue": "yue_Hant", "no": "nob_Latn",
    }  # fmt: skip
    assert len(set(flores.SHORT.values())) == len(flores.SHORT), "no two languages share a code"


# ---------------------------------------------------------------- Marian


def test_a_marian_model_translates_in_its_direction_and_in_no_other(marian: Path) -> None:
    facts = NmtStage.describe(str(marian), {})
    assert (facts.languages, facts.targets) == ({"en"}, {"de"}), "as the folder's name says"
    stage = opened(marian)
    english, german = " ".join(clockwork.WORDS["en"]), " ".join(clockwork.WORDS["de"])
    assert said(stage, item(english), item("the 3 birds, Anna"), item(english, "en-GB", "de-AT")) == [
        german, "der 3 birds, Anna", german,
    ]  # fmt: skip
    assert said(stage, item(german, "de", "en"), item(english, "en", "fr")) == ["bad_language"] * 2
    assert said(stage, item(german, "de", "de")) == [german]


@pytest.mark.parametrize("adds_end", [False, True])
def test_the_end_of_the_source_is_said_once_whoever_says_it(tmp_path: Path, adds_end: bool) -> None:
    folder = clockwork.write_marian(tmp_path / "model", adds_end=adds_end)
    assert json.loads((folder / "config.json").read_text())["add_source_eos"] is adds_end
    (output,) = opened(folder, **DIRECTION).run([item("the fox")])
    assert (output.text, output.degraded) == ("der Fuchs", "")


def test_a_direction_that_no_name_tells_must_be_given(tmp_path: Path, marian: Path) -> None:
    shutil.copytree(marian, tmp_path / "model")
    with pytest.raises(StageError, match=r'options = \{source = "en", target = "de"\}') as caught:
        NmtStage.describe(str(tmp_path / "model"), {})
    assert caught.value.code == "bad_model" and "\n" not in caught.value.text
    facts = NmtStage.describe(str(tmp_path / "model"), {"source": "fr", "target": "de"})
    assert (facts.languages, facts.targets) == ({"fr"}, {"de"})


def test_a_text_longer_than_its_positions_is_translated_to_its_end(marian: Path) -> None:
    text = "".join(f"{number} the fox said hello. " for number in range(100))
    stage = opened(marian)
    (output,) = stage.run([item(text)])
    assert output.text == text.replace("the fox", "der Fuchs").replace("hello", "hallo")
    (error,) = stage.run([item("x" * 450)])
    assert error.code == "bad_text" and "the model takes 400" in error.text


def test_its_memory_is_of_the_chunks_that_it_takes(marian: Path, nllb: Path) -> None:
    short, long = (
        NmtStage.memory(StageConfig(model=str(model), options=DIRECTION, max_batch=4), Longest(chars=4000))
        for model in (marian, nllb)
    )
    assert short is not None and long is not None
    assert short.workspace_bytes < long.workspace_bytes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "en"}, "go together"),
        ({"source": "English", "target": "de"}, "language code like en"),
        ({"source": "en", "target": 3}, "language code like en"),
    ],
)
def test_a_direction_is_two_codes(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NmtStage.check_options(options)


def several_targets(folder: Path) -> None:
    tokens = json.loads((folder / "shared_vocabulary.json").read_text())
    (folder / "shared_vocabulary.json").write_text(json.dumps([*tokens[:-1], ">>fra<<"]))


@pytest.mark.parametrize(
    ("spoil", "options", "message"),
    [
        (several_targets, DIRECTION, "into several languages"),
        (lambda folder: (folder / "target.spm").unlink(), DIRECTION, "0 SentencePiece models"),
        (lambda folder: (folder / "source.spm").write_bytes(b"rubbish"), DIRECTION, "cannot load"),
        (lambda folder: (folder / "config.json").write_text("{"), DIRECTION, "cannot read"),
    ],
)
def test_a_spoiled_model_is_one_line(
    marian: Path, tmp_path: Path, spoil: Callable[[Path], None], options: dict[str, str], message: str
) -> None:
    shutil.copytree(marian, tmp_path / "model")
    spoil(tmp_path / "model")
    with pytest.raises(StageError, match=message) as caught:
        opened(tmp_path / "model", **options)
    assert caught.value.code == "bad_model" and "\n" not in caught.value.text


def test_a_model_of_many_languages_has_no_direction(nllb: Path) -> None:
    with pytest.raises(StageError, match="no source or target"):
        NmtStage.describe(str(nllb), DIRECTION)
