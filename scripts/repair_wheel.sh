#!/bin/bash
# Installs llama-cpp-python, the runtime of the optional repair stage, into the environment of the Python given.
#
# It comes as source and builds for minutes, so it is built once, trimmed (no server, tools, tests, TLS: 3 minutes
# instead of 9 on two cores) and for any machine with the same vector units instead of exactly this one, and the wheel
# is kept in the user's cache. When the build fails the node works without repair, and this says so and exits 0.
#
#   repair_wheel.sh PYTHON [gpu]      gpu: with CUDA, for the GPUs of this machine (or CUDAARCHS), where there is nvcc
set -uo pipefail

python=$1 gpu=${2:-}
version=0.3.36
cache=${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/dragoman/wheels
if grep -qw avx2 /proc/cpuinfo 2>/dev/null; then units=avx2; avx=ON; else units=plain; avx=OFF; fi
work= job=

on_the_cpu() {
    echo "== repair will run on the CPU: $1. With a CUDA toolkit: make repair GPU=1" >&2
    gpu=
}
nvcc=${CUDACXX:-$(command -v nvcc || ls /usr/local/cuda/bin/nvcc 2>/dev/null)}
# A wheel is for these architectures: another machine may have the same home and other GPUs.
archs=${CUDAARCHS:-$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | tr -d '. ' | sort -u | paste -sd ';')}
[ -z "$gpu" ] || [ -n "$nvcc" ] || on_the_cpu "there is no nvcc to build llama-cpp-python for the GPU"

installed() {
    "$python" -c "import importlib.metadata as m, sys; sys.exit(m.version('llama-cpp-python') != '$version')" 2>/dev/null || return 1
    [ -z "$gpu" ] || "$python" -c "import importlib.util as u, pathlib, sys
sys.exit(not list(pathlib.Path(u.find_spec('llama_cpp').origin).parent.glob('lib/*ggml-cuda*')))" 2>/dev/null
}
install() {
    "$python" -m pip install --disable-pip-version-check --quiet "$1" &&
        { [ -z "$gpu" ] || "$python" -m pip install --disable-pip-version-check --quiet --force-reinstall --no-deps "$1"; }
}
folder() { echo "$cache/$units${gpu:+-cuda-${archs//;/_}}"; }
kept() { ls "$(folder)"/llama_cpp_python-$version-*.whl 2>/dev/null | head -1; }

without_repair() {
    echo "== the repair stage is left out: $1; everything else works. Mend it and run: make repair" >&2
    exit 0
}

build() {
    local log started step
    work=$(mktemp -d)
    log=$(folder)/build.log
    mkdir -p "$(folder)"
    job=
    trap '[ -z "$job" ] || kill $job 2>/dev/null; rm -rf "$work"' EXIT # a background job does not hear Ctrl-C
    echo 'set(LLAMA_BUILD_COMMON OFF CACHE BOOL "" FORCE)' >"$work/trim.cmake"
    CMAKE_ARGS="-DCMAKE_PROJECT_llama.cpp_INCLUDE=$work/trim.cmake -DLLAVA_BUILD=OFF -DLLAMA_OPENSSL=OFF
        -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_SERVER=OFF
        -DGGML_NATIVE=OFF -DGGML_AVX2=$avx -DGGML_FMA=$avx -DGGML_F16C=$avx -DGGML_BMI2=$avx"
    if [ -n "$gpu" ]; then
        export CUDACXX=$nvcc CUDAARCHS=${archs:-native}
        CMAKE_ARGS="$CMAKE_ARGS -DGGML_CUDA=ON -DGGML_CUDA_NCCL=OFF"
    fi
    export CMAKE_ARGS=${CMAKE_ARGS//$'\n'/ }
    "$python" -m pip wheel --disable-pip-version-check --verbose --no-deps --no-binary llama-cpp-python \
        --wheel-dir "$work/wheel" "llama-cpp-python==$version" >"$log" 2>&1 &
    job=$!
    started=$SECONDS
    while kill -0 $job 2>/dev/null; do
        sleep 5
        (((SECONDS - started) % 15 < 5)) || continue
        step=$(grep -o '\[[0-9]*/[0-9]*\]' "$log" | tail -1)
        echo "   building llama-cpp-python: $((SECONDS - started)) s, ${step:+compiling }${step:-fetching its source and what builds it}"
    done
    if ! wait $job; then
        grep -iE '(error|fatal)[ :]|not found|no space' "$log" | tail -n 8 >&2 || tail -n 8 "$log" >&2
        return 1
    fi
    job=
    rm -f "$log"
    mv "$work"/wheel/llama_cpp_python-*.whl "$(folder)"/
}

build_said() {
    local took="about 3 minutes on two cores"
    [ -z "$gpu" ] || took="with CUDA, half an hour on two cores, some minutes on many"
    echo "== building llama-cpp-python $version for the repair stage: $took, once; kept in $(folder)"
    build
}

installed && exit 0
if [ -n "$gpu" ] && [ -z "$(kept)" ] && ! build_said; then
    on_the_cpu "llama-cpp-python did not build with CUDA (its errors stand above)"
    rm -rf "$work"
    installed && exit 0
fi
if [ -z "$(kept)" ]; then
    command -v g++ >/dev/null || command -v c++ >/dev/null ||
        without_repair "llama-cpp-python needs a C++ compiler (apt-get install g++)"
    build_said || without_repair "llama-cpp-python did not build (its errors stand above, all it said in $(folder)/build.log)"
fi
install "$(kept)" || without_repair "llama-cpp-python did not install"
