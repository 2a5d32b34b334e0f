"""Promises about what is decided before anything starts: rings that fit, one writer each, absent stages, languages."""

from __future__ import annotations

import os
from dataclasses import replace

import msgspec
import pytest

from engine.boot import Boot, GatewayBoot, WorkerBoot
from engine.config import Config, DeviceSection, NodeSection, StageSection, VariantSection
from engine.devices import EVERY_GPU, Device, HostMemory
from engine.supervisor import plan, rings
from engine.supervisor.survey import Survey, survey
from ipc.errors import ConfigError, DragomanError, MemoryTooSmall
from ipc.ring import BLOCK, blocks_for
from stages.base import ModelFacts

GIB = 2**30
CPU = Device("cpu", "", "cpu", 16 * GIB, "host", "CPU")
GPUS = [Device(f"cuda:{n}", f"GPU-{n}", "cuda", 24 * GIB, "nvml", "GPU") for n in range(2)]
MEMORY = HostMemory(16 * GIB, 8 * GIB)
LISTEN = StageSection(kind="simulated", options={"accepts": "audio"})
THINK = StageSection(kind="simulated", options={"translates": True})
SPEAK = StageSection(kind="simulated", options={"emits": "audio", "output_bytes": 300_000})
FULL = {"listen": LISTEN, "think": THINK, "speak": SPEAK}


def config(stages: dict[str, StageSection] | None = None, **sections: object) -> Config:
    stages = stages or FULL
    return Config(stages=stages, pipelines={"full": tuple(stages)}, **sections)  # type: ignore[arg-type]


def make(made: Config, devices: list[Device] | None = None, memory: HostMemory = MEMORY, cores: int = 8) -> plan.Plan:
    return plan.make(made, devices or [CPU], memory, cores, survey(made), "ipc:///tmp/x/client")


def test_without_a_gpu_every_stage_is_on_the_cpu_and_the_node_says_so() -> None:
    made = make(config())
    assert list(made.workers) == ["listen@cpu/0", "think@cpu/0", "speak@cpu/0"]
    assert "no GPU: every stage on the CPU" in made.scheduler.mode_reason
    assert set(made.uuids.values()) == {""}


def test_with_gpus_every_stage_is_on_each_of_them_and_sees_one() -> None:
    made = make(config(), [*GPUS, CPU])
    assert made.uuids["think@cuda:1/0"] == "GPU-1" and "think@cpu/0" not in made.workers
    assert made.workers["think@cuda:1/0"].library_device == "cuda"
    assert "no GPU" not in made.scheduler.mode_reason


def test_devices_are_chosen_by_name_or_uuid_and_a_wrong_one_is_named() -> None:
    stages = {"a": StageSection(kind="simulated", devices=("GPU-1", "cpu"), instances=2)}
    assert list(make(config(stages), [*GPUS, CPU]).workers) == ["a@cuda:1/0", "a@cuda:1/1", "a@cpu/0", "a@cpu/1"]
    with pytest.raises(ConfigError, match=r"stages\.a\.devices names 'cuda:7'.*cuda:0, cuda:1"):
        make(config({"a": StageSection(kind="simulated", devices=("cuda:7",))}), GPUS)


@pytest.mark.parametrize(
    ("wanted", "section", "workers"),
    [
        (("cuda:0", "cuda:1"), {}, ["a@cuda:0/0"]),
        (("GPU-0", "GPU-1"), {}, ["a@cuda:0/0"]),
        (("auto",), {}, ["a@cuda:0/0"]),
        (("cuda:1", "cpu"), {}, ["a@cpu/0"]),
        (("cuda:1",), {"cpu_fallback": True}, ["a@cpu/0"]),
        (("GPU-1",), {"cpu_fallback": True}, ["a@cpu/0"]),
    ],
)
def test_a_silent_gpu_is_nobody_s_and_its_stages_are_where_else_they_may_be(
    wanted: tuple[str, ...], section: dict[str, bool], workers: list[str]
) -> None:
    made = config({"a": StageSection(kind="simulated", devices=wanted, **section)})  # type: ignore[arg-type]
    planned = plan.make(made, [GPUS[0], CPU], MEMORY, 8, survey(made), "ipc:///x", None, {"cuda:1": "it is asleep"})
    assert [role for role in planned.workers if role.startswith(workers[0])] == workers
    assert not any("cuda:1" in role for role in planned.workers)


@pytest.mark.parametrize("silent", ["cuda:1", EVERY_GPU])
def test_a_stage_that_only_silent_gpus_may_run_ends_the_start_with_the_reason(silent: str) -> None:
    made = config({"a": StageSection(kind="simulated", devices=("cuda:1",))})
    with pytest.raises(DragomanError, match=rf"stage a has no device.*stages\.a\.devices.*{silent}: it is asleep"):
        plan.make(made, [CPU], MEMORY, 8, survey(made), "ipc:///x", None, {silent: "it is asleep"})


def test_repair_has_a_worker_on_standby_on_the_cpu_beside_its_gpus() -> None:
    stages = {**FULL, "mend": StageSection(kind="simulated", required=False)}
    known = survey(config(stages))
    degrading = replace(known["mend"], declaration=replace(known["mend"].declaration, degrades_to_cpu=True))
    made = plan.make(config(stages), [*GPUS, CPU], MEMORY, 8, {**known, "mend": degrading}, "ipc:///tmp/x/client")
    mend = next(stage for stage in made.scheduler.stages if stage.name == "mend")
    assert [(w.role, w.standby) for w in mend.workers] == [
        ("mend@cuda:0/0", False), ("mend@cuda:1/0", False), ("mend@cpu/0", True),
    ]  # fmt: skip
    assert mend.optional and made.workers["mend@cpu/0"].library_device == "cpu"
    alone = plan.make(config(stages), [CPU], MEMORY, 8, {**known, "mend": degrading}, "ipc:///tmp/x/client")
    assert [w.standby for s in alone.scheduler.stages if s.name == "mend" for w in s.workers] == [False]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"listen": LISTEN}, r"stages\.listen\.skip_above is for a stage that mends the transcript"),
        ({"think": THINK}, r"stages\.think\.skip_above is for a stage that mends the transcript"),
        ({"speak": SPEAK}, r"stages\.speak\.skip_above is for a stage that mends the transcript"),
        (
            {"mend": StageSection(kind="simulated")},
            r"stages\.mend\.skip_above would skip a stage that no utterance can",
        ),
    ],
)
def test_sure_transcripts_skip_only_what_mends_them(changed: dict[str, StageSection], said: str) -> None:
    given = {
        name: msgspec.structs.replace(one, skip_above=-0.3, required=name == "mend") for name, one in changed.items()
    }
    with pytest.raises(ConfigError, match=said):
        make(config({**FULL, **given}))


def test_a_stage_that_mends_the_transcript_may_be_skipped_by_sure_ones() -> None:
    mend = StageSection(kind="simulated", required=False, skip_above=-0.3)
    made = make(config({"listen": LISTEN, "mend": mend}))
    assert [stage.skip_above for stage in made.scheduler.stages] == [0.0, -0.3]


def test_a_stage_on_auto_is_where_it_has_room_and_on_standby_elsewhere() -> None:
    stages = {name: StageSection(kind="simulated", estimate_bytes=12 * GIB) for name in ("a", "b", "c")}
    made = make(config(stages), [*GPUS, CPU])
    assert made.placement.verdict.value == "by turns", "a GPU of 24 GB gives 21.6"
    stages.pop("c")
    made = make(config(stages), [*GPUS, CPU])
    assert made.placement.verdict.value == "all resident"
    roles = {w.role: w.standby for stage in made.scheduler.stages for w in stage.workers}
    assert sorted(roles.values()) == [False, False, True, True] and not any("cpu" in role for role in roles)


def test_a_gpu_without_memory_of_its_own_is_one_memory_with_the_cpu_and_one_book_with_one_bound() -> None:
    unified = Device("cuda:0", "GPU-0", "cuda", 16 * GIB, "unified", "GPU")
    stages = {
        "a": StageSection(kind="simulated", estimate_bytes=5 * GIB),
        "b": StageSection(kind="simulated", estimate_bytes=5 * GIB, devices=("cpu",)),
    }
    roomy = HostMemory(16 * GIB, 16 * GIB)
    made = make(config(stages), [unified, CPU], roomy)
    assert made.placement.verdict.value == "all resident" and made.scheduler.books == {"cuda:0": "cpu"}
    assert [(one.name, one.book) for one in made.arbiter.devices] == [("cuda:0", "cpu"), ("cpu", "")]
    assert set(made.placement.left_bytes.values()) == {made.placement.left_bytes["cpu"]}
    tight = make(config(stages), [unified, CPU], HostMemory(16 * GIB, 10 * GIB))
    assert tight.placement.verdict.value == "by turns" and tight.placement.crowded == ("cpu",)
    for name in ("GPU-0", "cuda:0", "cpu"):
        bound = make(config(stages, devices=DeviceSection(max_bytes={name: 8 * GIB})), [unified, CPU], roomy)
        assert [one.ceiling_bytes for one in bound.arbiter.devices if not one.book] == [8 * GIB]
        assert bound.placement.verdict.value == "by turns"


def test_a_stage_may_be_given_the_cpu_to_fall_back_to() -> None:
    stages = {"a": StageSection(kind="simulated", devices=("cuda:0",), cpu_fallback=True)}
    (a,) = make(config(stages), [*GPUS, CPU]).scheduler.stages
    assert [(w.role, w.standby) for w in a.workers] == [("a@cuda:0/0", False), ("a@cpu/0", True)]


def test_a_stage_that_no_gpu_can_ever_hold_is_on_its_spare_device_and_says_that_it_is_degraded() -> None:
    stages = {"a": StageSection(kind="simulated", cpu_fallback=True, options={"vram_bytes": 30 * GIB})}
    made = make(config(stages), [*GPUS, CPU])
    (a,) = made.scheduler.stages
    assert [(w.role, w.standby) for w in a.workers] == [("a@cpu/0", True)]


def test_a_stage_that_fits_nowhere_ends_the_start_unless_the_node_can_do_without_it() -> None:
    huge = StageSection(kind="simulated", estimate_bytes=30 * GIB)
    with pytest.raises(DragomanError, match=r"stage a fits nowhere: it needs 30\.0 GiB on cuda:0 or cuda:1.*21\.6 GiB"):
        make(config({"a": huge}), [*GPUS, CPU])
    with pytest.raises(ConfigError, match=r"^stages\.a\.estimate_bytes: stage a fits nowhere: .*; lower it, or "):
        make(config({"a": huge}), [*GPUS, CPU])
    by_its_files = StageSection(kind="simulated", options={"vram_bytes": 30 * GIB})
    with pytest.raises(DragomanError, match=r"^stage a fits nowhere") as raised:
        make(config({"a": by_its_files}), [*GPUS, CPU])
    assert not isinstance(raised.value, ConfigError)
    stages = {"a": msgspec.structs.replace(huge, required=False), "b": StageSection(kind="simulated")}
    made = make(config(stages), [*GPUS, CPU])
    assert "fits nowhere" in made.scheduler.stages[0].absent and "a@cuda:0/0" not in made.workers


def test_smaller_variants_are_surveyed_planned_and_told_to_their_workers() -> None:
    smaller = VariantSection(compute_type="int8", options={"vram_bytes": GIB})
    stages = {"a": StageSection(kind="simulated", options={"vram_bytes": 30 * GIB}, variants=(smaller,))}
    made = make(config(stages), [*GPUS, CPU])
    assert made.placement.verdict.value == "all resident when quantised"
    (a,) = made.scheduler.stages
    assert {w.variant for w in a.workers} == {w.best for w in a.workers} == {1}
    told = made.workers["a@cuda:0/0"].smaller[0]
    assert (told.compute_type, told.options["vram_bytes"]) == ("int8", GIB) and told.estimate_bytes < 2 * GIB


def test_cores_are_divided_among_the_workers_unless_said() -> None:
    stages = {**FULL, "speak": msgspec.structs.replace(SPEAK, threads=5)}
    threads = {role: body.threads for role, body in make(config(stages), cores=8).workers.items()}
    assert threads == {"listen@cpu/0": 2, "think@cpu/0": 2, "speak@cpu/0": 5}
    assert make(config(), cores=1).workers["think@cpu/0"].threads == 1


def test_extra_workers_are_planned_on_each_device_with_rings_and_cores_and_no_part_in_the_placement() -> None:
    more = {**FULL, "speak": msgspec.structs.replace(SPEAK, instances=2, max_instances=3)}
    made = make(config(more, node=NodeSection(ring_budget_bytes=64 * 2**20)), [*GPUS, CPU], cores=20)
    speak = next(stage for stage in made.scheduler.stages if stage.name == "speak")
    extras = {"speak@cuda:0/2", "speak@cuda:1/2"}
    assert {w.role for w in speak.workers if w.extra} == extras and not any(w.standby for w in speak.workers)
    assert [w.role for w in speak.workers][-2:] == sorted(extras), "behind those that stay"
    assert made.rings["speak@cuda:0/2"] == made.rings["speak@cuda:0/0"] == 512 // 6
    assert extras <= set(made.readers["gateway"]) and {made.uuids[role] for role in extras} == {"GPU-0", "GPU-1"}
    assert {role for role, body in made.workers.items() if body.priority == "low"} == extras
    assert made.workers["think@cuda:0/0"].threads == 20 // 10
    assert made.may_fail == extras, "a node starts without them"
    fewer = make(config(FULL | {"speak": msgspec.structs.replace(SPEAK, instances=2)}), [*GPUS, CPU])
    assert made.placement.places == fewer.placement.places


def test_a_stage_has_extra_workers_where_it_is_wanted_only() -> None:
    stages = {"a": StageSection(kind="simulated", devices=("cuda:0",), cpu_fallback=True, max_instances=2)}
    (a,) = make(config(stages), [*GPUS, CPU]).scheduler.stages
    found = [(w.role, w.standby, w.extra) for w in a.workers]
    assert found == [("a@cuda:0/0", False, False), ("a@cpu/0", True, False), ("a@cuda:0/1", False, True)]


def test_the_ring_budget_is_halved_between_the_gateway_and_the_workers_that_emit_arrays() -> None:
    two = {**FULL, "speak": msgspec.structs.replace(SPEAK, instances=2)}
    made = make(config(two, node=NodeSection(ring_budget_bytes=64 * 2**20)))
    assert made.rings == {"gateway": 512, "speak@cpu/0": 256, "speak@cpu/1": 256}
    assert {w.role: w.ring_blocks for s in made.scheduler.stages for w in s.workers}["speak@cpu/1"] == 256


def test_the_default_budget_is_the_lesser_of_256_mib_and_a_twentieth_of_the_memory() -> None:
    assert rings.default_budget(64 * GIB) == 256 * 2**20
    assert rings.default_budget(GIB) == GIB // 20


def test_where_nobody_has_set_a_budget_each_ring_holds_its_longest_array_however_many_there_are() -> None:
    speak = msgspec.structs.replace(SPEAK, instances=16, options=SPEAK.options | {"output_bytes": 20 * 2**20})
    many = config({**FULL, "speak": speak})
    made = make(many, memory=HostMemory(64 * GIB, 32 * GIB))
    longest = rings.longest_output_bytes(many, survey(many)["speak"])
    assert longest >= 20 * 2**20 > rings.default_budget(64 * GIB) / 2 / 16
    assert {made.rings[f"speak@cpu/{n}"] for n in range(16)} == {blocks_for(longest)}


def test_one_writer_a_ring_and_only_those_read_it_whose_input_lies_there() -> None:
    made = make(config({**FULL, "again": LISTEN}))
    descriptors = {name: (10 + n, 20 + n) for n, name in enumerate(made.rings)}
    boots = {role: boot_of(made, role, descriptors) for role in made.roles}
    grants = {role: {g.name: g.writable for g in boot.rings} for role, boot in boots.items()}
    assert grants == {
        "arbiter": {},
        "scheduler": {},
        "gateway": {"gateway": True, "speak@cpu/0": False},
        "listen@cpu/0": {"gateway": False},
        "think@cpu/0": {},
        "speak@cpu/0": {"speak@cpu/0": True},
        "again@cpu/0": {"gateway": False, "speak@cpu/0": False},
    }
    writable = [g.fd for boot in boots.values() for g in boot.rings if g.writable]
    assert all(fd < 20 for fd in writable) and len(writable) == len(set(writable)) == len(made.rings)


def boot_of(made: plan.Plan, role: str, descriptors: dict[str, tuple[int, int]]) -> Boot:
    boot = made.boot(role, 1, node="n", parent_pid=1, death_fd=3, endpoints={}, descriptors=descriptors, hooks={})
    return msgspec.msgpack.decode(msgspec.msgpack.encode(boot), type=Boot)


def test_a_boot_record_survives_its_journey() -> None:
    made = make(config())
    boot = boot_of(made, "speak@cpu/0", dict.fromkeys(made.rings, (1, 2)))
    assert isinstance(boot.body, WorkerBoot) and boot.body.options["output_bytes"] == 300_000
    gateway = boot_of(made, "gateway", dict.fromkeys(made.rings, (1, 2)))
    assert isinstance(gateway.body, GatewayBoot) and gateway.body.endpoints == ("ipc:///tmp/x/client",)


@pytest.mark.parametrize(
    ("sections", "knob"),
    [
        ({"node": NodeSection(ring_budget_bytes=2**20)}, "node.ring_budget_bytes"),
        ({"rings": {"gateway": BLOCK}}, "rings.gateway"),
        ({"rings": {"speak": BLOCK}}, "rings.speak"),
    ],
)
def test_a_ring_that_cannot_hold_its_longest_array_is_refused_naming_the_knob(sections: dict, knob: str) -> None:
    with pytest.raises(ConfigError, match=knob) as caught:
        make(config(**sections))
    assert "\n" not in str(caught.value)


def test_a_ring_may_be_set_to_two_slots() -> None:
    small = config(node=NodeSection(max_utterance_s=1.0), rings={"gateway": 2 * BLOCK, "speak": 10 * BLOCK})
    assert make(small).rings == {"gateway": 2, "speak@cpu/0": 10}


def test_an_address_that_other_machines_reach_is_refused_also_in_a_config_made_by_hand() -> None:
    with pytest.raises(ConfigError, match=r"node\.endpoints has 'tcp://0\.0\.0\.0:5999'"):
        make(config(node=NodeSection(endpoints=("tcp://0.0.0.0:5999",))))


def test_a_missing_model_is_the_configuration_s_fault_and_names_the_field() -> None:
    with pytest.raises(ConfigError, match=r"^stages\.asr\.model cannot be used"):
        survey(config({"asr": StageSection(model="/nowhere/asr")}), installed=lambda module: True)


def test_rings_larger_than_what_is_free_are_refused() -> None:
    with pytest.raises(MemoryTooSmall, match="are available"):
        make(config(node=NodeSection(ring_budget_bytes=GIB)), memory=HostMemory(16 * GIB, GIB // 2))


@pytest.mark.parametrize(
    ("total", "each", "ceilings"),
    [
        (24, {}, [16, 8, 0]),
        (24, {"cuda:0": 4 * GIB}, [4, 8, 0]),
        (24, {"GPU-0": 4 * GIB, "cuda:1": 12 * GIB}, [4, 8, 0]),
        (36, {}, [0, 0, 0]),
        (0, {"cuda:1": 5 * GIB}, [0, 5, 0]),
    ],
)
def test_all_gpus_together_have_a_ceiling_that_each_has_a_part_of_by_its_size(
    total: int, each: dict[str, int], ceilings: list[int]
) -> None:
    gpus = [GPUS[0], replace(GPUS[1], total_bytes=12 * GIB)]
    section = DeviceSection(max_total_bytes=total * GIB, max_bytes=each)
    made = make(config(devices=section), [*gpus, CPU])
    assert [device.ceiling_bytes // GIB for device in made.arbiter.devices] == ceilings


def test_a_ceiling_of_all_gpus_is_seen_by_the_plan_and_bounds_one_s_part_of_shared_ones() -> None:
    big = {"a": StageSection(kind="simulated", estimate_bytes=10 * GIB, devices=("cuda:0",))}
    assert make(config(big, devices=DeviceSection(share=True, max_total_bytes=30 * GIB)), [*GPUS, CPU]).workers
    with pytest.raises(DragomanError, match=r"needs 10\.0 GiB on cuda:0, which can give at most"):
        make(config(big, devices=DeviceSection(max_total_bytes=16 * GIB)), [*GPUS, CPU])


def test_the_least_ceiling_of_all_gpus_is_one_and_is_named() -> None:
    some = {"a": StageSection(kind="simulated", estimate_bytes=GIB, devices=("cuda:0",))}
    for nbytes in (1, GIB):
        with pytest.raises(DragomanError, match=r"within devices\.max_total_bytes; raise devices\.max_total_bytes"):
            make(config(some, devices=DeviceSection(max_total_bytes=nbytes)), [*GPUS, CPU])
    with pytest.raises(DragomanError, match=r"within devices\.max_bytes; raise devices\.max_bytes"):
        make(config(some, devices=DeviceSection(max_bytes={"cuda:0": GIB})), [*GPUS, CPU])


def test_a_stage_without_any_device_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"stages\.a\.devices is empty"):
        make(config({"a": StageSection(kind="simulated", devices=())}), [*GPUS, CPU])


def test_a_stage_falls_back_to_no_cpu_that_the_node_does_not_use() -> None:
    stages = {"a": StageSection(kind="simulated", devices=("cuda:0",), cpu_fallback=True)}
    assert make(config(stages), [*GPUS, CPU]).workers
    with pytest.raises(ConfigError, match=r'stages\.a\.cpu_fallback .* devices\.use leaves out the CPU; add "cpu"'):
        make(config(stages), GPUS)


def test_a_ceiling_may_be_given_by_name_or_uuid() -> None:
    made = make(config(devices=DeviceSection(max_bytes={"cuda:0": 8 * GIB, "GPU-1": 9 * GIB})), [*GPUS, CPU])
    assert [d.ceiling_bytes for d in made.arbiter.devices] == [8 * GIB, 9 * GIB, 0]


def test_a_stage_that_is_not_installed_is_absent_if_the_node_can_do_without() -> None:
    stages = {"asr": LISTEN, "repair": StageSection(model="x.gguf")}
    made = config(stages)
    found = survey(made, installed=lambda module: module != "llama_cpp")
    planned = plan.make(made, [CPU], MEMORY, 2, found, "ipc://x")
    repair = planned.scheduler.stages[1]
    assert repair.absent == "not installed: llama_cpp" and repair.workers == ()


def test_a_pipeline_of_absent_stages_alone_is_left_out_and_a_node_without_any_other_does_not_start() -> None:
    made = Config(
        stages={"asr": LISTEN, "repair": StageSection(model="x.gguf")},
        pipelines={"full": ("asr", "repair"), "fix": ("repair",)},
    )
    found = survey(made, installed=lambda module: module != "llama_cpp")
    planned = plan.make(made, [CPU], MEMORY, 2, found, "ipc://x")
    assert set(planned.gateway.pipelines) == set(planned.scheduler.pipelines) == {"full"}
    with pytest.raises(DragomanError, match=r"no pipeline can run.*repair: not installed: llama_cpp"):
        plan.make(replace_pipelines(made, {"fix": ("repair",)}), [CPU], MEMORY, 2, found, "ipc://x")


def replace_pipelines(made: Config, pipelines: dict[str, tuple[str, ...]]) -> Config:
    return msgspec.structs.replace(made, pipelines=pipelines)


def test_a_stage_that_is_needed_and_not_installed_ends_the_start_with_the_command_that_mends_it() -> None:
    made = config({"tts": StageSection(model="x.onnx")})
    with pytest.raises(DragomanError, match=r"stage tts cannot run: not installed: .*; pip install"):
        survey(made, installed=lambda module: False)


def test_a_wrong_kind_or_option_is_named() -> None:
    with pytest.raises(ConfigError, match=r"stages\.a: no stage of kind 'asrr'"):
        survey(config({"a": StageSection(kind="asrr")}))
    with pytest.raises(ConfigError, match=r"stages\.a: .*snooze"):
        survey(config({"a": StageSection(kind="simulated", options={"snooze": 1})}))


def spoken(listen: str | None, think: str | None, speak: str | None, *only: str) -> tuple:
    made = config(languages=only)
    surveys: dict[str, Survey] = survey(made)
    for name, codes in (("listen", listen), ("think", think), ("speak", speak)):
        known = frozenset(codes.split()) if codes is not None else None
        surveys[name] = replace(surveys[name], facts=ModelFacts(languages=known))
    return plan.languages(made, "full", surveys)


def test_a_pipeline_takes_the_languages_that_all_its_models_know() -> None:
    assert spoken("en de fr", "en de fr es", "de es") == (("de", "en", "fr"), ("de", "es"))
    assert spoken(None, "en de", None) == (("de", "en"), ("de", "en"))
    assert spoken(None, None, None) == ((), ())
    assert spoken("en de fr", "en de fr", None, "en", "fr") == (("en", "fr"), ("en", "fr"))
    with pytest.raises(ConfigError, match="pipeline full: no language"):
        spoken("en", "de fr", None)
    with pytest.raises(ConfigError, match="pipeline full: no language"):
        spoken("en", "de fr", None, "en")


def test_where_the_configured_languages_are_none_of_the_models_that_field_is_named() -> None:
    with pytest.raises(
        ConfigError, match=r"^languages names xx, and pipeline full takes none of them; it takes de, en$"
    ):
        spoken("en de", "en de fr", None, "xx")
    with pytest.raises(
        ConfigError, match=r"^languages names en, and pipeline full translates into none .* into de, fr$"
    ):
        spoken("en", "en de fr", "de fr", "en")


def test_a_worker_s_process_is_told_its_threads() -> None:
    made = make(config(), cores=os.cpu_count() or 1)
    assert made.threads("think@cpu/0") == made.workers["think@cpu/0"].threads
    assert made.threads("gateway") == 1
