"""What the commands print: tables that line up, statistics that show what is there, a configuration that reads back."""

from __future__ import annotations

import tomllib

import msgspec

from engine import loading
from engine.commands import choosing, nodes, stats, tables, translate
from engine.config import Config, DeviceSection, NodeSection, StageSection

STATS = {
    "node": "5f3a09bc",
    "mode": "pipelined",
    "mode_reason": "stages overlap",
    "gpu_count": 0,
    "max_concurrent": 40,
    "active": 3,
    "queued": 1,
    "queue_usage": 0.1,
    "total": 12,
    "failed": 1,
    "rejected": 2,
    "oom_errors": 0,
    "success_rate": 0.9,
    "per_gpu": [{"device": "cpu", "requests": 9, "avg_time_s": 0.15, "request_queue": 1, "response_queue": 0}],
    "jobs": [{"session": "s0.1", "index": 4, "stages": {"asr": "completed", "nmt": "processing"}}],
    "leases": [
        {"lease": 1, "worker": "asr@cpu/0", "device": "cpu", "nbytes": 2**20, "state": "held", "measured_bytes": -1}
    ],
    "processes": [{"role": "gateway", "incarnation": 1, "pid": 77, "start_time": 5, "phase": "serving", "age_ms": 12}],
    "scheduler": {
        "concurrency": {"asr": 1},
        "utilisation": {"asr": 0.973},
        "bottleneck": "asr is the bottleneck: its workers were busy 97% of the last 30 s",
        "histogram_ms": [1, 3, 10, 30],
        "stages": {
            "asr": {
                "waiting": 2,
                "running": 1,
                "done": 8,
                "failed": 1,
                "avg_waiting_ms": 12.5,
                "waiting_histogram": [3, 2, 3, 0, 0],
                "avg_processing_ms": 150.0,
                "instances": {
                    "cuda:0": {"running": 2, "min": 1, "max": 3, "why": "asr@cuda:0/1 was called"},
                    "cuda:1": {"running": 1, "min": 1, "max": 1, "why": ""},
                    "cpu": {"running": 0, "min": 0, "max": 1, "why": ""},
                },
            }
        },
    },
    "arbiter": {"devices": {"cpu": {"total_bytes": 2**34, "free_bytes": 2**33, "grantable_bytes": 2**32}}},
}


def test_statistics_show_totals_stages_jobs_leases_and_processes() -> None:
    page = stats.page(STATS, "ipc://x/ctl")
    for shown in ("5f3a09bc", "active 3 and queued 1 of 40 taken in at most (10%)", "rejected 2", "success rate 90.0%",
                  "nmt:processing", "asr@cpu/0", "16.0 GiB", "gateway", "12.5",
                  "≤ 10", "97%", "asr is the bottleneck"):  # fmt: skip
        assert shown in page


def test_statistics_show_how_many_workers_there_are_where_there_may_be_more() -> None:
    (line,) = (line for line in stats.page(STATS, "ipc://x/ctl").splitlines() if "was called" in line)
    assert line.split() == ["asr", "cuda:0", "2", "1", "3", "asr@cuda:0/1", "was", "called"]
    assert "cuda:1" not in stats.page(STATS, "ipc://x/ctl")


def test_statistics_show_who_waits_for_memory_and_what_operators_unloaded() -> None:
    row = {"worker": "nmt@cuda:0/0#3", "device": "cuda:0", "needs_bytes": 3 * 2**30, "room_bytes": 2**30,
           "waited_s": 12.5, "reason": "asr@cuda:0/0 holds it"}  # fmt: skip
    unloaded = {"unloaded": ["tts@cpu/0", "tts@cpu/1"]}
    page = stats.page({"arbiter": {"waiting": [row], "waiting_total": 7}, "operators": unloaded}, "ipc://x/ctl")
    assert "Waiting for memory (7; the first 1" in page
    (line,) = (line for line in page.splitlines() if "nmt@cuda:0/0" in line)
    assert line.split() == ["nmt@cuda:0/0", "cuda:0", "3.0", "GiB", "1.0", "GiB", "12.5", *row["reason"].split()]
    assert "unloaded until there is work for them: tts@cpu/0, tts@cpu/1" in page
    assert "Waiting" not in stats.page(STATS, "ipc://x/ctl")


def test_statistics_of_a_node_that_has_not_reported_yet_can_be_shown() -> None:
    assert "mode ?" in stats.page({}, "ipc://x/ctl")


def test_how_far_a_start_is_is_told_by_stage() -> None:
    rows = [("gateway", ""), ("asr@cpu/0", "loading"), ("asr@cpu/1", "waiting"), ("nmt@cpu/0", "loading"),
            ("tts@cpu/0", "waiting"), ("repair@cpu/0", "loaded"), ("repair@cpu/1", ""), ("more@cpu/0", "")]  # fmt: skip
    told = loading.words({"role": role, "phase": phase} for role, phase in rows)
    assert told == "loading asr, nmt; waiting for memory: tts; not begun: more; loaded: repair"
    assert loading.words([{"role": "asr@cpu/0", "phase": "loaded"}]) == ""


def test_columns_line_up_in_every_script() -> None:
    lines = tables.table(["a", "b"], [["狐狸", 1], ["fox", 200], [None, None]]).splitlines()
    assert {tables.width(line) for line in lines[1:4]} == {tables.width(lines[1])}
    assert lines[3].endswith("200")


def test_texts_are_shortened_by_the_columns_they_take() -> None:
    assert tables.shorten("敏捷的棕色狐狸", 7) == "敏捷的…"
    assert tables.shorten("fox", 3) == "fox"


def test_sizes_are_for_people() -> None:
    assert [tables.nbytes(n) for n in (None, 0, 1536, 24 * 2**30)] == ["-", "0 B", "1.5 KiB", "24.0 GiB"]


def test_the_printed_configuration_reads_back_as_the_same_one() -> None:
    config = Config(
        node=NodeSection(mode="serial", endpoints=("tcp://*:5",)),
        devices=DeviceSection(max_bytes={"cuda:0": 2**33}),
        stages={
            "asr": StageSection(model='C:\\odd "path"\\ü', options={"beam_size": 5, "vad_filter": False}),
            "sim": StageSection(
                kind="simulated", options={"cues": [{"index": 1, "action": "fail", "ms": 2.5}], "deep": {"a": [1]}}
            ),
        },
        pipelines={"full": ("asr", "sim"), "odd name": ("asr",)},
        rings={"gateway": 2**20},
        languages=("en", "de"),
    )
    read = tomllib.loads(choosing.as_toml(config))
    assert msgspec.convert(read, Config, strict=False) == config
    assert msgspec.convert(tomllib.loads(choosing.as_toml(Config())), Config) == Config()


def test_pipelines_take_what_their_first_stage_takes() -> None:
    assert [nodes.takes(p, {}) for p in ("full", "transcribe", "translate-text", "speak")] == [
        "audio",
        "audio",
        "text",
        "text",
    ]
    assert nodes.takes("mine", {"pipelines": {"mine": ["nmt", "tts"]}}) == "text"
    assert nodes.takes("mine", {"pipelines": {"mine": ["asr"]}}) == "audio"


def test_a_pipeline_without_translation_has_one_language() -> None:
    assert translate.languages("full", None, None) == ("en", "de")
    assert translate.languages("translate-text", "fr", "zh") == ("fr", "zh")
    assert translate.languages("transcribe", "fr", None) == ("fr", "")
    assert [translate.languages("speak", *pair) for pair in (("fr", None), (None, "fr"), ("de", "fr"))] == [
        ("fr", "")
    ] * 3


def test_a_private_node_is_used_when_all_its_workers_have_loaded_but_not_waited_for_for_ever() -> None:
    def processes(*phases: str) -> dict[str, list[dict[str, str]]]:
        workers = [{"role": f"asr@cpu/{n}", "phase": phase} for n, phase in enumerate(phases)]
        return {"processes": [{"role": "gateway", "phase": "serving"}, *workers]}

    looks = [processes("loaded", "started"), processes("loaded", "loading"), processes("running 1", "loaded")]
    left = iter(looks)
    loading.wait_for_all(lambda: next(left), limit_s=60)
    assert not list(left)
    loading.wait_for_all(lambda: processes("empty"), limit_s=0.0)
