"""What went wrong is told in few lines, and nothing that went wrong is left out of the count."""

from __future__ import annotations

from typing import Any

from engine.commands import complaints


def row(name: str, code: str = "", error: str = "", **more: Any) -> dict[str, Any]:
    return {"input": name, "outcome": "error" if code else "ok", "code": code, "error": error, "stages": [], **more}


def test_what_is_ok_is_not_mentioned() -> None:
    assert list(complaints.lines([row("a.wav")])) == []


def test_the_same_reason_is_told_once_with_the_number() -> None:
    rows = [row(f"{n}.wav", "node_gone", "no answer") for n in range(29)]
    assert list(complaints.lines(rows)) == ["0.wav and 28 more: error (node_gone) no answer"]


def test_after_the_nodes_end_it_is_said_what_there_is_and_what_to_do() -> None:
    rows = [row("a.wav"), row("b.wav", "failed", "broke"), row("c.wav", "node_gone", "no answer")]
    said = complaints.gone(rows, "OUT")
    assert "2 of 3 utterances have their outcome in OUT/results.jsonl, 1 have none" in said
    assert "run_node.py serve" in said
    assert complaints.gone(rows[:2], "OUT") == ""


def test_reasons_that_differ_in_detail_are_told_three_times_and_counted() -> None:
    rows = [row(f"{n}.wav", "bad_audio", f"{n}.wav is no sound") for n in range(10)] + [row("x", "failed", "broke")]
    said = list(complaints.lines(rows))
    assert said[:3] == [f"{n}.wav: error (bad_audio) {n}.wav is no sound" for n in range(3)]
    assert said[3:] == ["and 7 more: error (bad_audio); see results.jsonl", "x: error (failed) broke"]


def test_a_stage_the_node_does_without_is_named_and_one_left_out_on_purpose_is_not() -> None:
    def skipped(stage: str, reason: str) -> dict[str, Any]:
        return {"stage": stage, "state": "skipped", "reason": reason, "worker": None}

    stages = [skipped("repair", "not installed: llama_cpp"), skipped("nmt", "requested"),
              skipped("tts", "nothing was said")]  # fmt: skip
    assert complaints.left_out([row("a", stages=stages)] * 2) == "without repair (not installed: llama_cpp)"
