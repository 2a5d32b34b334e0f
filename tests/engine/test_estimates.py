"""What a model is thought to need before it is loaded: never less when there is more to hold."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.estimates import MIB, RUNTIMES, START_FACTOR, estimate
from stages.base import Memory

LIBRARIES = st.sampled_from([*((name,) for name in RUNTIMES), (), ("unheard_of",)])


@given(
    weights=st.integers(0, 2**36),
    more=st.integers(0, 2**34),
    batch=st.integers(1, 32),
    libraries=LIBRARIES,
    kind=st.sampled_from(["cpu", "cuda"]),
    compute=st.sampled_from(["default", "int8", "float16", "float32", "int8_float16"]),
)
def test_an_estimate_covers_weights_and_grows_with_them_and_with_the_batch(
    weights, more, batch, libraries, kind, compute
):
    def of(weights_bytes: int, max_batch: int) -> int:
        return estimate(weights_bytes, kind=kind, libraries=libraries, compute_type=compute, max_batch=max_batch)

    assert of(weights, batch) >= weights * START_FACTOR - 1
    assert of(weights + more, batch) >= of(weights, batch)
    assert of(weights, batch + 1) >= of(weights, batch)


@pytest.mark.parametrize("library", RUNTIMES)
def test_on_a_gpu_the_context_is_counted_even_without_weights(library):
    assert estimate(0, kind="cuda", libraries=(library,)) >= RUNTIMES[library].context_bytes


def test_a_stage_without_a_runtime_needs_its_weights_and_its_process():
    assert estimate(0, kind="cuda") == 0
    assert 100 * MIB * START_FACTOR <= estimate(100 * MIB, kind="cpu") <= 200 * MIB


def test_a_library_that_converts_may_hold_half_precision_files_in_full_precision():
    small = estimate(1000 * MIB, kind="cuda", libraries=("ctranslate2",), compute_type="float16")
    large = estimate(1000 * MIB, kind="cuda", libraries=("ctranslate2",), compute_type="float32")
    assert large - small == 1200 * MIB
    on_cpu = estimate(1000 * MIB, kind="cpu", libraries=("ctranslate2",))
    assert on_cpu == estimate(1000 * MIB, kind="cpu", libraries=("ctranslate2",), compute_type="float32")


@pytest.mark.parametrize(
    ("library", "weights_mib", "low_gib", "high_gib"),
    [
        ("faster_whisper", 1600, 1, 3),
        ("ctranslate2", 900, 0.5, 2),
        ("onnxruntime", 60, 0.5, 1),
        ("llama_cpp", 2000, 2, 4),
    ],
)
def test_usual_models_come_out_in_the_range_known_for_their_stage(library, weights_mib, low_gib, high_gib):
    nbytes = estimate(weights_mib * MIB, kind="cuda", libraries=(library,))
    assert low_gib * 1024 * MIB <= nbytes <= high_gib * 1024 * MIB


@given(weights=st.integers(0, 2**36), workspace=st.integers(0, 2**34), libraries=LIBRARIES)
def test_what_a_models_files_say_goes_before_the_table(weights, workspace, libraries):
    """On the CPU it was measured and stands; on a GPU it is a guess."""
    told = Memory(weights, workspace)
    cpu, cuda = (estimate(0, kind=kind, libraries=libraries, memory=told) for kind in ("cpu", "cuda"))
    host = max([RUNTIMES[name].host_bytes for name in libraries if name in RUNTIMES], default=48 * MIB)
    assert 0 <= cpu - (weights + workspace + host) < MIB
    assert cuda >= (weights + workspace) * START_FACTOR - 1
