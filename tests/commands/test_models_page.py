"""docs/models.md is found by whoever has no model, and what it says to write is taken; links lead somewhere."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

import stages
from engine import config_file
from engine.commands import VERBS
from stages.base import StageError

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/models.md"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
KINDS = [kind for kind in stages.KINDS if kind != "simulated"]


@pytest.mark.parametrize("kind", KINDS)
def test_who_has_no_model_is_told_the_page(kind: str, tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"docs/models\.md") as caught:
        stages.find(kind).describe(str(tmp_path / "absent"), {})
    assert PAGE.is_file() and str(tmp_path / "absent") in caught.value.text


def test_the_configuration_on_the_page_is_taken() -> None:
    part = PAGE.read_text(encoding="utf-8").split("## In `node.toml`")[1].split("\n## ")[0]
    lines = [line[4:] for line in part.splitlines() if line.startswith("    ") or not line]
    config = config_file.from_dict(tomllib.loads("\n".join(lines)))
    assert list(config.stages) == KINDS and config.pipelines["full"] == tuple(KINDS)


def test_the_readmes_commands_can_be_typed_as_they_stand() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert not re.findall(r"(?<!\.venv/bin/python )run_node\.py [a-z]\w+", text)
    verbs = set(re.findall(r"\.venv/bin/python run_node\.py ([a-z]+)", text))
    assert verbs == set(VERBS)
    for clip in re.findall(r"models/demo/[\w./-]+", text):
        assert (ROOT / clip.rstrip(".")).exists(), clip


def headings(page: Path) -> set[str]:
    """Anchors of a page's headings, as the usual renderers make them."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" in link:
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file) if file else page
        assert target.exists(), f"{page.name}: {link}"
        assert not anchor or anchor in headings(target), f"{page.name}: {link}"
