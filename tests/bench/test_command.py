"""Every benchmark is called, explains its exit codes, and says at Ctrl-C what becomes of its figures, in one way."""

from __future__ import annotations

import importlib

import pytest

import run_node
from bench import command, fairness, overload
from engine.commands.bench import benchmarks


def call(*argv: str) -> int:
    try:
        return run_node.main(("bench", *argv))
    except SystemExit as exit:  # argparse's way of leaving
        return int(exit.code or 0)


@pytest.mark.parametrize("name", benchmarks())
def test_its_help_says_how_it_is_called_and_its_exit_codes(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(name, "--help") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert said.startswith(f"usage: run_node.py bench {name} ")
    codes = said.partition("exit codes: 0 ")[2]
    assert ", 1 " in codes and ", 2 usage, 130 Ctrl-C (" in codes


@pytest.mark.parametrize("name", benchmarks())
def test_ctrl_c_is_one_line(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib.import_module(f"bench.{name}"), "main", interrupted)
    assert call(name) == 130
    assert capsys.readouterr().err == "cut short: nothing is reported\n"


def test_ctrl_c_that_has_been_told_is_not_told_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(_: object) -> int:
        raise command.cut_short("half of it follows")

    monkeypatch.setattr("bench.load.main", interrupted)
    assert call("load") == 130
    assert capsys.readouterr().err == "cut short: half of it follows\n"


def test_seconds_may_have_a_fraction_and_rounds_may_not(capsys: pytest.CaptureFixture[str]) -> None:
    for bench in (fairness, overload):
        assert bench.parser().parse_args(["--seconds", "2.5"]).seconds == 2.5
    with pytest.raises(SystemExit):
        fairness.parser().parse_args(["--rounds", "2.5"])
    assert "argument --rounds: '2.5' is no whole number" in capsys.readouterr().err
