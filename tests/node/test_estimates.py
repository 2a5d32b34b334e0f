"""A node that starts again asks for what its models were measured to take, and not for what their files made it think.

Nodes on the stand-in driver; what models take there is told by their options, what their files say by ``stated_bytes``.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import run_node
from bench.standin_driver import GIB, Driver, Gpu
from engine.corrections import ALLOWANCE, CONTEXT_ALLOWANCE
from engine.estimates import START_FACTOR
from engine.node import Node
from tests.node.rehearsal import Marks, config, kill, process_of, wait_until
from tests.node.test_standin_gpus import CONTEXT, MIB, gpus  # noqa: F401 - a fixture

needs_gcc = pytest.mark.skipif(shutil.which("gcc") is None, reason="the stand-in driver needs gcc")

RUN = 100 * MIB
LATER = int(RUN * START_FACTOR)
MORE = {"asr": {"vram_bytes": 3 * GIB, "vram_run_bytes": RUN, "stated_bytes": GIB}}  # than its file says
LESS = {"nmt": {"vram_bytes": GIB, "vram_run_bytes": RUN, "stated_bytes": 5 * GIB // 2}}


def on_a_gpu(options: dict[str, dict[str, Any]], **rest: Any) -> dict[str, Any]:
    stages = {name: {"devices": ["cuda:0"]} for name in options}
    return config(options=options, stages=stages, **rest)


def carry(node: Node, count: int = 5, pipeline: str = "full") -> None:
    marks = Marks()
    with node.client() as client, client.session("en", "de", pipeline, tag="t") as session:
        for index in range(count):
            session.submit(marks.make("t", index))
        assert {o.outcome for o in session.outcomes(timeout_s=60)} == {"ok"}


def rows(node: Node) -> dict[str, dict[str, Any]]:
    return {row["stage"]: row for row in node.stats()["estimates"]}


def all_measured(node: Node, times: int = 1) -> dict[str, dict[str, Any]] | None:
    """The rows, once each model's load was measured so often in all."""
    found = rows(node)
    return found if all(row["times"] >= times for row in found.values()) else None


def life(options: dict[str, dict[str, Any]], times: int = 1, utterances: int = 5) -> dict[str, dict[str, Any]]:
    """A node's life with these stages on the GPU: what it asked for, and what it measured."""
    with Node(on_a_gpu(options)) as node:
        if utterances:
            carry(node, utterances)
        return wait_until(lambda: all_measured(node, times))


@needs_gcc
def test_the_second_start_asks_for_what_was_measured_be_it_more_or_less_than_the_files_said(
    gpus: Callable[..., Driver],  # noqa: F811
) -> None:
    driver = gpus(Gpu(16 * GIB, context_bytes=CONTEXT))
    first = life(MORE | LESS)
    assert first["asr"]["estimate_bytes"] < 2 * GIB and first["nmt"]["estimate_bytes"] > 3 * GIB
    assert {row["source"] for row in first.values()} == {"files"}
    second = life(MORE | LESS, times=2)
    for stage, true in (("asr", 3 * GIB + CONTEXT), ("nmt", GIB + CONTEXT)):
        assert second[stage]["source"] == "measured" and second[stage]["last_measured_bytes"] == true
        least = true + LATER  # what a run of the largest batch takes is not seen in a load
        assert least <= second[stage]["estimate_bytes"] <= least + ALLOWANCE * true + MIB
    assert driver.get(0, "out_of_memory") == 0


@needs_gcc
def test_a_context_is_measured_at_the_first_start_and_counts_for_a_model_that_is_new_there(
    gpus: Callable[..., Driver],  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    gpus(Gpu(16 * GIB, name="A card", context_bytes=CONTEXT))
    old, new = {"asr": {"vram_bytes": GIB}}, {"nmt": {"vram_bytes": GIB // 2}}
    assert life(old, utterances=0)["asr"]["last_measured_bytes"] == GIB + CONTEXT
    asked = life(new, utterances=0)["nmt"]
    assert asked["estimate_bytes"] == int(GIB / 2 * START_FACTOR / MIB + 1) * MIB + int(
        CONTEXT * (1 + CONTEXT_ALLOWANCE)
    )
    assert asked["source"] == "files"
    assert run_node.main(["estimates"]) == 0
    shown = capsys.readouterr().out
    assert any(line.split()[:3] == ["none", "A", "card"] and "300.0 MiB" in line for line in shown.splitlines()), shown
    assert run_node.main(["estimates", "--json"]) == 0
    (context,) = json.loads(capsys.readouterr().out)["contexts"]
    assert context == {"library": "", "device": "A card", "nbytes": [CONTEXT, CONTEXT], "loads": 2}


@needs_gcc
def test_growth_beyond_the_lease_raises_it(gpus: Callable[..., Driver]) -> None:  # noqa: F811
    gpus(Gpu(16 * GIB, context_bytes=CONTEXT))
    grows = {"asr": {"vram_bytes": GIB, "vram_run_bytes": 2 * GIB}}
    surprising = {"estimate_bytes": GIB + CONTEXT}  # the first start was told so
    with Node(config(options=grows, stages={"asr": {"devices": ["cuda:0"], **surprising}})) as node:
        carry(node)
        peak = wait_until(lambda: (row := rows(node)["asr"])["peak_bytes"] > 2 * GIB and row)
        assert peak["source"] == "configured" and peak["estimate_bytes"] == GIB + CONTEXT
    asked = life(grows, times=2, utterances=0)["asr"]
    assert asked["estimate_bytes"] >= 3 * GIB + CONTEXT and asked["source"] == "measured"


@needs_gcc
def test_where_the_driver_lists_no_processes_more_is_believed_at_once_and_less_when_two_loads_agree(
    gpus: Callable[..., Driver],  # noqa: F811
) -> None:
    gpus(Gpu(16 * GIB, context_bytes=CONTEXT)).set_process_figures(0, "not_available")
    life(MORE, utterances=0)
    assert life(MORE, times=2, utterances=0)["asr"]["estimate_bytes"] >= 3 * GIB + CONTEXT + LATER
    asked = [life(LESS, times=times, utterances=0)["nmt"]["estimate_bytes"] for times in (1, 2, 3)]
    assert asked[0] == asked[1] > 3 * GIB
    true = GIB + CONTEXT
    assert true + LATER <= asked[2] <= true + LATER + ALLOWANCE * true + MIB


@needs_gcc
@pytest.mark.parametrize("change", ["grows", "falls"])
def test_another_program_that_changes_while_a_model_loads_lowers_nothing(
    change: str,
    gpus: Callable[..., Driver],  # noqa: F811
) -> None:
    driver = gpus(Gpu(16 * GIB, context_bytes=CONTEXT))
    driver.set_process_figures(0, "not_available")
    slow = {"nmt": {**LESS["nmt"], "load_ms": 700}}
    guess = life(slow, utterances=0)["nmt"]["estimate_bytes"]
    driver.set_foreign(0, GIB)
    node = Node(on_a_gpu(slow))
    starting = threading.Thread(target=node.start)
    starting.start()
    try:
        wait_until(lambda: driver.truth(0) > 0)  # it loads
        driver.set_foreign(0, GIB + GIB // 2 if change == "grows" else 0)
        starting.join(60)
        assert not starting.is_alive()
        assert wait_until(lambda: all_measured(node, 2))["nmt"]["estimate_bytes"] == guess
    finally:
        starting.join(60)
        node.close()
    assert life(slow, times=3, utterances=0)["nmt"]["estimate_bytes"] >= guess


@needs_gcc
def test_a_load_beside_a_neighbour_at_work_lowers_nothing(gpus: Callable[..., Driver]) -> None:  # noqa: F811
    driver = gpus(Gpu(16 * GIB, context_bytes=CONTEXT))
    driver.set_process_figures(0, "not_available")
    options = {"asr": {**MORE["asr"], "stated_bytes": 4 * GIB}, "nmt": {**LESS["nmt"], "load_ms": 500}}
    with Node(on_a_gpu(options)) as node:
        guess = wait_until(lambda: all_measured(node))["nmt"]["estimate_bytes"]
        kill(process_of(node, "nmt@cuda:0/0")["pid"])
        while rows(node)["nmt"]["times"] < 2:
            carry(node, 3, "transcribe")
        assert rows(node)["nmt"]["last_measured_note"]
    with Node(on_a_gpu(options)) as node:
        assert rows(node)["nmt"]["estimate_bytes"] >= guess


def test_on_the_cpu_a_process_measures_itself_and_its_peak() -> None:
    options = {
        "asr": {"ballast_bytes": 320 * MIB, "stated_bytes": 512 * MIB},
        "nmt": {"ballast_bytes": 192 * MIB, "stated_bytes": MIB},
    }
    asked = []
    for times in (1, 2):
        with Node(config(options=options)) as node:
            carry(node)
            asked.append(wait_until(lambda node=node, times=times: all_measured(node, times)))
    first, second = asked
    assert first["asr"]["estimate_bytes"] > 512 * MIB and first["nmt"]["estimate_bytes"] < 64 * MIB
    for stage, true in (("asr", 320 * MIB), ("nmt", 192 * MIB)):
        assert second[stage]["source"] == "measured" and second[stage]["last_measured_exact"]
        assert true <= second[stage]["estimate_bytes"] <= 1.2 * true + 16 * MIB


def test_what_is_configured_goes_before_and_off_keeps_nothing(tmp_path: Path) -> None:
    options, kept = {"asr": {"ballast_bytes": 64 * MIB}}, tmp_path / "kept.json"
    devices = {"use": ["cpu"], "estimates_file": str(kept)}
    with Node(config(options=options, devices=devices)) as node:
        wait_until(lambda: all_measured(node))
    before = kept.read_bytes()
    stages = {"asr": {"estimate_bytes": 99 * MIB}}
    with Node(config(options=options, stages=stages, devices={**devices, "estimates_file": "off"})) as node:
        assert wait_until(lambda: all_measured(node))["asr"]["source"] == "configured"
        assert rows(node)["asr"]["estimate_bytes"] == 99 * MIB
    assert kept.read_bytes() == before and sorted(os.listdir(tmp_path)) == ["kept.json", "kept.json.lock"]
    with Node(config(options=options, stages=stages, devices=devices)) as node:
        found = rows(node)["asr"]
        assert (found["source"], found["estimate_bytes"]) == ("configured", 99 * MIB)
        assert found["last_measured_bytes"] >= 64 * MIB  # by the first of these nodes


def test_a_damaged_history_and_a_place_that_cannot_be_written_stop_no_node(tmp_path: Path) -> None:
    (tmp_path / "damaged.json").write_text("{")
    (tmp_path / "file").write_text("")
    os.mkfifo(tmp_path / "pipe")
    places = ("damaged.json", "is damaged"), ("file/below/a/file.json", "cannot be"), ("pipe", "not kept")
    for place, said in places:
        log = tmp_path / "log"
        devices = {"use": ["cpu"], "estimates_file": str(tmp_path / place)}
        with Node(config(devices=devices), log_file=log) as node:
            wait_until(lambda node=node: all_measured(node))
            carry(node)
        assert sum(said in line or "be kept in" in line for line in log.read_text().splitlines()) == 1
        log.unlink()
    models = json.loads((tmp_path / "damaged.json").read_text())["models"]
    assert (tmp_path / "pipe").is_fifo() and not (tmp_path / "pipe.lock").exists()
    assert len(models) == 3  # of the four, two have the same options: one model


def test_the_command_shows_what_was_measured_and_forgets_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "node.toml"
    file.write_text(
        '[devices]\nuse = ["cpu"]\nestimates_file = "kept.json"\n[pipelines]\nfull = ["asr", "nmt"]\n'
        '[stages.asr]\nkind = "simulated"\noptions = { accepts = "audio", ballast_bytes = 67108864 }\n'
        '[stages.nmt]\nkind = "simulated"\n'
    )

    def shown(*argv: str) -> dict[str, Any]:
        assert run_node.main(["estimates", "--config", str(file), "--json", *argv]) == 0
        return json.loads(capsys.readouterr().out)

    assert shown() == {"file": str(tmp_path / "kept.json"), "version": 1, "forgotten": 0, "models": [], "contexts": []}
    with Node(file) as node:
        wait_until(lambda: all_measured(node))
    asr, nmt = shown()["models"]
    assert (asr["stage"], asr["device"], asr["loads"], asr["last_measured_proven"]) == ("asr", "cpu", 1, True)
    with Node(file) as node:
        assert rows(node)["asr"]["estimate_bytes"] == asr["estimate_bytes"] >= 64 * MIB
        wait_until(lambda: all_measured(node, 2))
    assert run_node.main(["estimates", "--config", str(file)]) == 0
    assert "asr" in (page := capsys.readouterr().out) and "kept.json" in page
    assert [row["stage"] for row in shown("--forget", "asr")["models"]] == ["nmt"]
    assert run_node.main(["estimates", "--config", str(file), "--forget", "asr"]) == 1
    assert "nothing was measured of 'asr'; there is nmt" in capsys.readouterr().err.replace(": there", "; there")
    assert shown("--forget", "all")["models"] == [] and nmt["key"]
    with Node(file) as node:
        assert rows(node)["asr"]["source"] == "files"
