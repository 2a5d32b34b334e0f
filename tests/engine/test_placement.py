"""The plan before anything is loaded: models of real size on cards of real size, and what each verdict promises."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import placement
from engine import placement_words as words
from engine.arbiter.events import FromWorker, Send, Waits
from engine.arbiter.leases import Leases
from engine.arbiter.room import Reading
from engine.limits import Limits
from engine.placement import LOAD_BYTES_PER_S, Room, Variant, Verdict, Wish, plan
from engine.placement_words import GIB
from ipc.messages import Granted, LeaseRequest, Settled

MB = 10**6
# What the node asks for on a GPU (docs/vram.md), in MB: model and number format -> (needs, file).
REAL = {
    "whisper-large-v3 float16": (5218, 3087),
    "whisper-large-v3 int8_float16": (3365, 3087),
    "whisper-small float16": (1422, 484),
    "whisper-small int8_float16": (1132, 484),
    "m2m100-418m float16": (1985, 970),
    "m2m100-418m int8_float16": (1403, 970),
    "qwen2.5-3b Q4_K_M": (3430, 1928),
    "piper-medium float32": (1524, 63),
}
SMALL = {
    "asr": ("whisper-small float16", "whisper-small int8_float16"),
    "repair": ("qwen2.5-3b Q4_K_M",),
    "nmt": ("m2m100-418m float16", "m2m100-418m int8_float16"),
    "tts": ("piper-medium float32",),
}
LARGE = {**SMALL, "asr": ("whisper-large-v3 float16", "whisper-large-v3 int8_float16")}


def room(gib: float, number: int = 0, *, free: float | None = None, **limits) -> Room:
    total = int(gib * GIB)
    name = f"cuda:{number}"
    return Room(Limits(name, total, **limits), "cuda", total if free is None else int(free * GIB))


def real(model: str) -> Variant:
    needs, file = REAL[model]
    return Variant(model, {"cuda": needs * MB, "cpu": needs * MB}, file * MB / LOAD_BYTES_PER_S)


def pipeline(models: Mapping[str, tuple[str, ...]], rooms: list[Room], *, quantised: bool = True) -> list[Wish]:
    """The four stages on any of the GPUs, with their smaller variants or without."""
    names = tuple(one.name for one in rooms)
    return [
        Wish(stage, tuple(map(real, variants if quantised else variants[:1])), names)
        for stage, variants in models.items()
    ]


TABLE = [  # models, GPUs in GB, smaller variants allowed -> verdict, where each stage begins
    ("large", (16,), True, Verdict.RESIDENT, "asr:0 repair:0 nmt:0 tts:0"),
    ("large", (12,), True, Verdict.QUANTISED, "asr:0 repair:0 nmt:0 tts:0"),
    ("large", (12,), False, Verdict.TURNS, "asr:0 repair:0 nmt:0 tts:0"),
    ("large", (8,), True, Verdict.TURNS, "asr:0 repair:0 nmt:0 tts:0"),
    ("large", (6,), True, Verdict.TURNS, "asr:0 repair:0 nmt:0 tts:0"),
    ("large", (4,), True, Verdict.TURNS, "asr:0 repair:0 nmt:0 tts:0"),
    ("large", (3,), True, Verdict.NOWHERE, ""),
    ("large", (8, 8), True, Verdict.RESIDENT, "asr:0 repair:1 nmt:1 tts:0 tts:1"),
    ("large", (6, 6), True, Verdict.QUANTISED, "asr:1 repair:0 nmt:1 tts:0"),
    ("large", (24, 8), True, Verdict.RESIDENT, "asr:0 asr:1 repair:0 nmt:0 nmt:1 tts:0"),
    ("small", (16,), True, Verdict.RESIDENT, "asr:0 repair:0 nmt:0 tts:0"),
    ("small", (12,), True, Verdict.RESIDENT, "asr:0 repair:0 nmt:0 tts:0"),
    ("small", (8,), True, Verdict.QUANTISED, "asr:0 repair:0 nmt:0 tts:0"),
    ("small", (8,), False, Verdict.TURNS, "asr:0 repair:0 nmt:0 tts:0"),
    ("small", (6,), True, Verdict.TURNS, "asr:0 repair:0 nmt:0 tts:0"),
    ("small", (8, 8), True, Verdict.RESIDENT, None),
    ("small", (24, 8), True, Verdict.RESIDENT, None),
]


@pytest.mark.parametrize(("models", "gpus", "quantised", "verdict", "where"), TABLE)
def test_the_table_of_cards(
    models: str, gpus: tuple[int, ...], quantised: bool, verdict: Verdict, where: str | None
) -> None:
    rooms = [room(gib, number) for number, gib in enumerate(gpus)]
    found = plan(rooms, pipeline({"large": LARGE, "small": SMALL}[models], rooms, quantised=quantised))
    assert found.verdict is verdict
    if where is not None:
        assert " ".join(f"{one.stage}:{one.device[-1]}" for one in found.places) == where
    if verdict in (Verdict.RESIDENT, Verdict.QUANTISED):
        assert min(found.left_bytes.values()) >= 0 and not found.crowded and not found.added_s


def test_who_is_quantised_is_named_and_no_more_than_must_be() -> None:
    rooms = [room(12)]
    found = plan(rooms, pipeline(LARGE, rooms))
    assert words.headline(found) == "all resident when quantised: nmt with m2m100-418m int8_float16"
    assert [found.variant_of(stage) for stage in LARGE] == [0, 0, 1, 0]


def test_taking_turns_names_the_device_and_the_seconds_of_loading_it_adds() -> None:
    rooms = [room(6)]
    found = plan(rooms, pipeline(LARGE, rooms))
    loads = {stage: real(models[0]).load_s for stage, models in LARGE.items()}
    assert found.added_s == pytest.approx(sum(loads.values())), "the recogniser's turn costs all the others theirs"
    assert found.crowded == ("cuda:0",)
    assert f"adds about {found.added_s:.1f} s of loading" in words.headline(found)
    assert "by turns on cuda:0" in words.headline(found)


def test_a_device_that_is_crowded_by_number_alone_is_said_to_be() -> None:
    wishes = [wish(name, 1) for name in "abcd"]
    assert words.headline(plan([room(16, max_models=3)], wishes)).endswith("room for all, but devices.max_models is 3")
    assert "max_models" not in words.headline(plan([room(3)], wishes)), "bytes are too few as well"


def wish(stage: str, gib: float | tuple[float, ...], *devices: str, **fields) -> Wish:
    """``gib``: of each of its variants. One of them takes a second to load for each GiB."""
    sizes = gib if isinstance(gib, tuple) else (gib,)
    variants = tuple(Variant("", {"cuda": int(g * GIB), "cpu": int(g * GIB)}, load_s=g) for g in sizes)
    return Wish(stage, variants, devices or ("cuda:0",), **fields)


def test_a_device_that_cannot_hold_two_at_once_is_told_apart_from_one_where_some_take_turns() -> None:
    wishes = [wish("a", 4), wish("b", 4), wish("c", 1)]
    assert plan([room(4.5, safety_margin=0.0)], wishes[:2]).single == ("cuda:0",)
    assert plan([room(5.5, safety_margin=0.0)], wishes).single == (), "c stays beside either"
    assert plan([room(16, max_models=1)], wishes).single == ("cuda:0",)
    assert plan([room(8.5, safety_margin=0.0)], wishes[:2]).single == ()


def test_a_round_loads_what_optimal_replacement_would() -> None:
    """Room for two of three: one stays, and the two others change places, one load each a round."""
    found = plan([room(8, safety_margin=0.0)], [wish("a", 4), wish("b", 4), wish("c", 4)])
    assert found.verdict is Verdict.TURNS and found.added_s == pytest.approx(8.0)


def test_a_model_that_never_leaves_is_loaded_in_no_round() -> None:
    found = plan([room(8, safety_margin=0.0)], [wish("a", 3, pinned=True), wish("b", 4), wish("c", 4)])
    assert found.verdict is Verdict.TURNS and found.added_s == pytest.approx(8.0), "b and c change places"
    found = plan([room(16, free=6, safety_margin=0.0)], [wish("a", 4, pinned=True), wish("b", 4)])
    assert found.verdict is Verdict.TURNS and found.added_s == 0.0, "b waits for other programs, and then both stay"


def test_beside_other_programs_a_stage_that_takes_turns_begins_with_what_fits_now() -> None:
    found = plan([room(16, free=6, safety_margin=0.0)], [wish("a", (8, 3)), wish("b", 5)])
    assert found.verdict is Verdict.TURNS and (found.variant_of("a"), found.best["a"]) == (1, 0)
    found = plan([room(16, free=2, safety_margin=0.0)], [wish("a", (8, 3)), wish("b", 5)])
    assert found.variant_of("a") == 0 and [lack.stage for lack in found.waits] == ["a", "b"], "none fits: it waits"


def test_a_stage_that_takes_turns_begins_with_what_fits_beside_models_that_never_leave() -> None:
    found = plan([room(8, safety_margin=0.0)], [wish("a", (5, 3)), wish("p", 4, pinned=True), wish("b", 3)])
    assert found.verdict is Verdict.TURNS and found.variant_of("a") == 1
    found = plan([room(16, free=8, safety_margin=0.0)], [wish("a", (6, 4)), wish("p", 3, pinned=True), wish("b", 5)])
    assert found.verdict is Verdict.TURNS and found.variant_of("a") == 1, "and beside other programs too"


def test_turns_are_spread_over_the_devices() -> None:
    rooms, names = [room(8, 0), room(8, 1)], ("cuda:0", "cuda:1")
    found = plan(rooms, [wish(stage, 5, *names) for stage in "abcd"])
    assert found.verdict is Verdict.TURNS and found.crowded == names
    assert sorted(place.device for place in found.places) == ["cuda:0", "cuda:0", "cuda:1", "cuda:1"]
    found = plan(rooms, [wish("a", 4, *names), wish("b", 4, *names), wish("c", 7, *names)])
    assert found.crowded == found.devices_of("a") == found.devices_of("b") != found.devices_of("c"), "the largest first"


def test_a_stage_that_may_choose_takes_turns_where_those_that_may_not_are_not() -> None:
    rooms, names = [room(8, 0), room(8, 1)], ("cuda:0", "cuda:1")
    named = [wish(stage, 4, "cuda:0", everywhere=True) for stage in "bc"]
    assert plan(rooms, [wish("a", 5, *names), *named]).devices_of("a") == ("cuda:1",)
    named = [wish(stage, 4, *names, everywhere=True) for stage in "bc"]
    assert plan(rooms, named).devices_of("b") == plan(rooms, named).devices_of("c") == names, "those are on all"


def test_a_better_variant_is_worth_a_turn_on_a_fuller_device() -> None:
    rooms = [room(12, 0, safety_margin=0.0), room(5, 1, safety_margin=0.0)]
    found = plan(rooms, [wish("a", 10), wish("b", (6, 4), "cuda:0", "cuda:1"), wish("c", 5, "cuda:1")])
    assert found.verdict is Verdict.TURNS and (found.variant_of("b"), found.devices_of("b")) == (0, ("cuda:0",))


def test_measured_loads_take_the_place_of_guesses() -> None:
    found = plan([room(8, safety_margin=0.0)], [wish("a", 4), wish("b", 4), wish("c", 4)])
    assert placement.measured(found, {"a": 0.5, "b": 0.5, "c": 0.5}).added_s == pytest.approx(1.0)
    assert placement.measured(found, {}).added_s == found.added_s


def test_a_search_without_an_end_in_sight_ends() -> None:
    """Eight GPUs that all differ, and models of which no two fit together."""
    rooms = [room(8 + number / 10, number) for number in range(8)]
    names = tuple(one.name for one in rooms)
    found = plan(rooms, [wish(f"s{number}", 5 + number / 100, *names) for number in range(9)])
    assert found.verdict is Verdict.TURNS


def test_a_stage_that_fits_nowhere_is_named_with_the_bytes_needed_and_there() -> None:
    found = plan([room(6)], [wish("asr", 8), wish("nmt", 1)])
    assert found.verdict is Verdict.NOWHERE
    said = words.headline(found)
    assert said == "stage asr fits nowhere: it needs 8.0 GiB on cuda:0, which can give at most 5.4 GiB"


def test_a_stage_that_the_node_can_do_without_stops_nothing() -> None:
    found = plan([room(6)], [wish("asr", 2), wish("repair", 8, dispensable=True)])
    assert found.verdict is Verdict.RESIDENT and found.devices_of("repair") == ()
    assert "its utterances skip it" in words.lines(found)[-1]


def test_a_spare_device_serves_where_no_other_ever_can() -> None:
    cpu = Room(Limits("cpu", 32 * GIB), "cpu", 30 * GIB)
    found = plan([room(6), cpu], [wish("asr", 2), wish("repair", 8, spare="cpu")])
    assert found.verdict is Verdict.RESIDENT and found.devices_of("repair") == ("cpu",)


def test_other_programs_memory_is_not_ours_and_who_waits_for_it_is_said() -> None:
    found = plan([room(16, free=9)], [wish("a", 4), wish("b", 4)])
    assert found.verdict is Verdict.RESIDENT
    found = plan([room(16, free=8)], [wish("a", 4), wish("b", 4)])
    assert found.verdict is Verdict.TURNS and not found.waits
    found = plan([room(16, free=4)], [wish("a", 4), wish("b", 2)])
    assert [lack.stage for lack in found.waits] == ["a"]
    assert "stage a needs 4.0 GiB, 3.6 GiB can be granted now: it waits for other programs" in words.lines(found)[-1]


def test_devices_that_share_a_memory_are_counted_together() -> None:
    cpu = Room(Limits("cpu", 16 * GIB), "cpu", 16 * GIB)
    gpu = Room(Limits("cuda:0", 16 * GIB), "cuda", 16 * GIB, book="cpu")
    assert plan([gpu, cpu], [wish("a", 7), wish("b", 7, "cpu")]).verdict is Verdict.RESIDENT
    found = plan([gpu, cpu], [wish("a", 8), wish("b", 8, "cpu")])
    assert found.verdict is Verdict.TURNS and found.crowded == ("cpu",) and found.added_s == pytest.approx(16.0)


def test_the_configured_bounds_are_kept() -> None:
    wishes = [wish("a", 2), wish("b", 2)]
    assert plan([room(16, ceiling_bytes=4 * GIB)], wishes).verdict is Verdict.TURNS
    assert plan([room(16, reserve_bytes=13 * GIB)], wishes).verdict is Verdict.TURNS
    assert plan([room(16, max_models=1)], wishes).verdict is Verdict.TURNS
    assert plan([room(16)], wishes).verdict is Verdict.RESIDENT


def test_a_stage_is_on_all_the_devices_it_names_and_on_one_at_least_of_those_it_may_choose() -> None:
    rooms = [room(8, 0), room(8, 1)]
    named = wish("a", 4, "cuda:0", "cuda:1", everywhere=True)
    free = wish("b", 3, "cuda:0", "cuda:1")
    found = plan(rooms, [named, free])
    assert found.devices_of("a") == ("cuda:0", "cuda:1") and found.devices_of("b") == ("cuda:0", "cuda:1")
    found = plan(rooms, [named, free, wish("c", 3, "cuda:0", "cuda:1")])
    assert found.verdict is Verdict.RESIDENT and sorted(found.devices_of("b") + found.devices_of("c")) == [
        "cuda:0", "cuda:1",
    ]  # fmt: skip


def test_models_that_never_leave_may_leave_no_room_for_another() -> None:
    found = plan([room(8)], [wish("a", 4, pinned=True), wish("b", 4)])
    assert found.verdict is Verdict.NOWHERE and found.nowhere[0].stage == "b"
    assert found.nowhere[0].there_bytes == room(8).limits.most_bytes - 4 * GIB
    assert words.headline(found).endswith("which can give at most 3.2 GiB beside a, which is pinned")
    assert words.mend(found).startswith("unpin stages.a.pinned = false, or use a smaller model")
    assert plan([room(8)], [wish("a", 4), wish("b", 4)]).verdict is Verdict.TURNS


def test_who_fits_nowhere_beside_pinned_models_by_their_number_alone_is_told_that_number() -> None:
    found = plan([room(16, max_models=1)], [wish("a", 2, pinned=True), wish("b", 2)])
    assert words.headline(found) == "stage b fits nowhere: devices.max_models is 1, and on cuda:0 is a, which is pinned"
    assert words.mend(found) == "raise devices.max_models to 2, or unpin stages.a.pinned = false"


def test_the_mend_of_turns_is_the_number_of_models_where_there_is_room_for_all() -> None:
    found = plan([room(16, max_models=1)], [wish("a", 2), wish("b", 2)])
    assert words.mend(found) == "for all at once: devices.max_models = 2"
    assert "smaller models" in words.mend(plan([room(6)], [wish("a", 4), wish("b", 4)]))


def test_who_fits_nowhere_because_of_max_bytes_is_told_so() -> None:
    found = plan([room(16, ceiling_bytes=4 * GIB)], [wish("a", 4)])
    assert words.headline(found).endswith("can give at most 3.6 GiB within devices.max_bytes")
    assert words.mend(found).startswith("raise devices.max_bytes, or use a smaller model")


@pytest.mark.parametrize(
    ("limits", "setting"),
    [({"reserve_bytes": 14 * GIB}, "devices.reserve_bytes"), ({"safety_margin": 0.9}, "devices.safety_margin")],
)
def test_who_fits_nowhere_because_of_what_is_kept_free_is_told_so(limits: dict[str, Any], setting: str) -> None:
    found = plan([room(16, **limits)], [wish("a", 4)])
    assert words.headline(found).endswith(f" within {setting}")
    assert words.mend(found).startswith(f"lower {setting}, or use a smaller model")
    assert "devices." not in words.mend(plan([room(16)], [wish("a", 16)])), "the margin that everybody has"


def test_a_device_that_a_stage_names_and_that_can_never_hold_it_is_told() -> None:
    rooms = [room(8), room(4, 1)]
    found = plan(rooms, [wish("a", 5, "cuda:0", "cuda:1", everywhere=True)])
    assert found.verdict is Verdict.RESIDENT and found.devices_of("a") == ("cuda:0",)
    assert words.lines(found)[-1] == "  stage a is not on cuda:1: it needs 5.0 GiB, cuda:1 can give at most 3.6 GiB"
    assert "stages.a.devices" in words.mend(found)
    anywhere = plan(rooms, [wish("a", 5, "cuda:0", "cuda:1")])
    assert words.mend(anywhere) == "" and "is not on" not in "".join(words.lines(anywhere))


def test_a_device_that_can_give_nothing_crowds_nobody() -> None:
    rooms = [room(16, reserve_bytes=GIB, ceiling_bytes=2**20), room(16, 1)]
    found = plan(rooms, [wish("a", 4, "cuda:0", "cuda:1")])
    assert found.verdict is Verdict.RESIDENT and found.devices_of("a") == ("cuda:1",)


# ---------------------------------------------------------------- the arbiter keeps what the plan promises


@given(
    parts=st.lists(st.integers(1, 100), min_size=1, max_size=6),
    fill=st.integers(70, 100),
    free=st.integers(1024, 24 * 1024),
    foreign=st.integers(0, 8 * 1024),
    ceiling=st.one_of(st.just(0), st.just(0), st.integers(1024, 24 * 1024)),
    reserve=st.sampled_from([0, 0, 500, 2048]),
    shares=st.lists(st.floats(0.0, 1.0), min_size=6, max_size=6),
    order=st.randoms(),
)
def test_where_all_are_resident_the_arbiter_grants_all_in_any_order(
    parts: list[int], fill: int, free: int, foreign: int, ceiling: int, reserve: int, shares: list[float], order
) -> None:
    """``parts``, ``fill``: of what is free, how much the models need. ``shares``: of its lease, what each one takes."""
    mib = 2**20
    sizes = [part * free * fill // 100 // sum(parts) for part in parts]
    limits = Limits("cuda:0", (free + foreign) * mib, ceiling * mib, reserve * mib, max_models=6)
    wishes = [wish(f"s{number}", size / 1024) for number, size in enumerate(sizes)]
    found = plan([Room(limits, "cuda", free * mib)], wishes)
    if found.verdict is not Verdict.RESIDENT:
        return
    book, taken = Leases([limits], Waits()), 0
    places = list(enumerate(found.places))
    order.shuffle(places)
    for now, (number, place) in enumerate(places, 1):
        book.handle(Reading("cuda:0", limits.total_bytes, free * mib - taken, now - 0.5), float(now))
        peer = f"{place.stage}@cuda:0/0#1"
        answers = book.handle(
            FromWorker(peer, LeaseRequest(1, place.stage, "cuda:0", place.nbytes, place.stage)), float(now)
        )
        granted = [
            one.message
            for one in answers
            if isinstance(one, Send) and one.peer == peer and type(one.message) is Granted
        ]
        assert granted, f"{place} is not granted: {answers}"
        taken += int(place.nbytes * shares[number])
        book.handle(FromWorker(peer, Settled(granted[0].lease)), now + 0.1)


def test_the_plan_as_a_document_says_what_its_lines_say() -> None:
    rooms = [room(8)]
    found = plan(rooms, pipeline(LARGE, rooms))
    document = words.document(found)
    assert document["verdict"] == "by turns" and document["added_s"] > 0
    assert {row["stage"] for row in document["places"]} == set(LARGE)
    assert document["text"] in words.lines(found)[0]
