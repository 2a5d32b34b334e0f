"""The environment of a child: composed here and nowhere else, from nothing but the arguments.

Theory: a process sees **exactly one device** (or none), so every library's device index is 0 and llama.cpp cannot take
memory on a second GPU. These variables must stand before ``exec``: the CUDA driver, OpenMP and the dynamic loader read
them once. Of the user's own environment only what a library may need is passed on, by name; tokens, keys and everything
else this file has not heard of stay behind.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

PASSED = frozenset(
    {"PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TZ", "TMPDIR", "TERM", "LD_LIBRARY_PATH", "LD_PRELOAD",
     "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_ENDPOINT", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE",
     "PYTHONPATH", "PYTHONHOME", "PYTHONWARNINGS", "PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX", "PYTHONUTF8",
     "VIRTUAL_ENV", "CUDA_HOME", "CUDA_PATH", "CUDA_CACHE_PATH", "CUDA_MPS_PIPE_DIRECTORY", "NVIDIA_VISIBLE_DEVICES",
     "NVIDIA_DRIVER_CAPABILITIES", "COVERAGE_PROCESS_START", "STANDIN_NVML_STATE"}
)  # fmt: skip
PASSED_PREFIXES = ("LC_", "XDG_", "CT2_", "GGML_", "MALLOC_")
PROXIES = frozenset({"http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"})
THREAD_COUNTS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS",
                 "RAYON_NUM_THREADS")  # fmt: skip
USUAL = {  # unless the user has said otherwise
    "CT2_USE_MKL": "0",  # with it each weight lies twice in the CPU's memory (docs/decisions/0029)
}
COOKIE = "DRAGOMAN_NODE"


def compose(
    base: Mapping[str, str],
    *,
    node: str,
    root: str,
    device_uuid: str = "",
    threads: int = 1,
    library_folders: Sequence[str] = (),
) -> dict[str, str]:
    """The whole environment of a child.

    base: the supervisor's own environment. node: the node's id (every process of a node carries it as DRAGOMAN_NODE).
    root: folder that holds the ``engine`` package. device_uuid: the one GPU or MIG device it may see, "" for none.
    threads: CPU threads its libraries may use. library_folders: put before LD_LIBRARY_PATH.
    """
    env = USUAL | {name: value for name, value in base.items() if _is_passed(name, value)}
    env.update(dict.fromkeys(THREAD_COUNTS, str(threads)))
    env.update(
        {
            COOKIE: node,
            "PYTHONPATH": _joined([root, *_entries(base, "PYTHONPATH")]),
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
            "CUDA_VISIBLE_DEVICES": device_uuid,
            "CUDA_MODULE_LOADING": "LAZY",  # kernels are loaded when used: less memory per context
            # Memory of freed buffers stays with the process: else each utterance pays for its pages anew.
            "MALLOC_MMAP_THRESHOLD_": str(64 * 2**20),
            "MALLOC_TRIM_THRESHOLD_": str(64 * 2**20),
            "OMP_WAIT_POLICY": "PASSIVE",  # waiting threads give the core to the other workers
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "ORT_DISABLE_TELEMETRY": "1",  # since 1.31 onnxruntime reports to its makers when it is imported
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }
    )
    if library_folders:
        env["LD_LIBRARY_PATH"] = _joined([*library_folders, *_entries(base, "LD_LIBRARY_PATH")])
    return env


def nvidia_library_folders(search_path: Iterable[str]) -> list[str]:
    """Folders of the CUDA libraries that pip installed (``nvidia/*/lib``), which the dynamic loader would not find."""
    found = (folder for entry in search_path if entry for folder in sorted(Path(entry).glob("nvidia/*/lib")))
    return list(dict.fromkeys(str(folder) for folder in found))


def package_root() -> str:
    """The folder that holds the ``engine`` package, so that ``-m engine.…`` works from any working folder."""
    return str(Path(__file__).resolve().parents[2])


def _is_passed(name: str, value: str) -> bool:
    if name in PROXIES:
        return "@" not in value  # an address with a password in it is a secret
    return name in PASSED or name.startswith(PASSED_PREFIXES)


def _entries(base: Mapping[str, str], name: str) -> list[str]:
    return [entry for entry in base.get(name, "").split(os.pathsep) if entry]


def _joined(entries: Sequence[str]) -> str:
    return os.pathsep.join(dict.fromkeys(entries))
