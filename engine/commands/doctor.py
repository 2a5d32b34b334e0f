"""``doctor``: can this machine run the node, and what would mend what is missing?

``collect`` looks at the machine and says what it found, ``examine`` judges that and touches nothing, so a test can
put any machine before the doctor. A finding is *ok*, *note* (the node runs, but something is not as good as it could
be) or *bad* (the node could not run); every note and every bad finding has its mending command.

Model libraries are not imported here, except onnxruntime: which of its two distributions is in force is only known to
the module itself, since both own the same folder.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from engine.commands import FAILED, OK, asking, bundling, choosing, examining, finding, patience
from engine.commands.examining import Finding
from engine.commands.tables import nbytes, table
from ipc.errors import DragomanError

FLOORS: dict[str, tuple[str, str]] = {  # package -> least version ("" any), what it is for
    "numpy": ("", "arrays"),
    "pyzmq": ("", "messages"),
    "msgpack": ("1.2.1", "messages"),
    "msgspec": ("", "messages"),
    "nvidia-ml-py": ("", "GPU memory"),
    "sentencepiece": ("", "nmt"),
    "ctranslate2": ("4.8.1", "asr, nmt"),
    "faster-whisper": ("", "asr"),
    "av": ("", "reading sound files"),
    "piper-tts": ("", "tts"),
    "soxr": ("", "resampling in the client"),
    "tqdm": ("", "progress bars"),
    "gguf": ("", "making a clockwork repair model"),
    "onnx": ("", "making clockwork voices"),
}
OPTIONAL = {
    "gguf": "pip install gguf",
    "onnx": "pip install onnx",
    "tqdm": "pip install tqdm",
    "nvidia-ml-py": "pip install nvidia-ml-py",
}
LIBZMQ_FLOOR = "4.3.5"
AMD = "0x1002"  # its number as a maker of PCI devices
SOURCES = {  # what is to be said of a device's memory, by where it is read
    "mig": " (MIG instance)",
    "unified": " (unified: it is the machine's)",
    "declared": " (as declared: what is free is not read)",
}
PYTHONS = ((3, 11), (3, 14))  # from, below
KERNEL_FLOOR = "5.4"
COMFORT_BYTES = 2 * 2**30  # below this much free memory the embedded models already feel tight
ADVISED_BYTES = 12 * 10**9  # of GPU memory
CHECKOUT = Path(__file__).resolve().parents[2]
REPAIR_COMMAND = (
    "make repair" if (CHECKOUT / "Makefile").is_file() else "pip install 'llama-cpp-python>=0.3.16'"
) + " (builds for some minutes; needs a C++ compiler)"
GPU_COMMAND = "make env GPU=1 (or: pip install --force-reinstall --no-deps onnxruntime-gpu==1.26.*)"


@dataclass(frozen=True)
class Facts:
    """What there is on a machine."""

    python: tuple[int, int, int]
    system: str
    kernel: str
    cores: int
    packages: dict[str, str | None]  # distribution -> version, None: not installed
    libzmq: str | None
    onnx_dists: dict[str, str]  # of onnxruntime and onnxruntime-gpu: those installed
    onnx_version: str | None  # what ``import onnxruntime`` gives; None: it cannot be imported
    onnx_error: str = ""
    onnx_providers: tuple[str, ...] = ()
    memory_total: int = 0
    memory_available: int = 0
    devices: list[dict[str, Any]] = field(default_factory=list)  # name, kind, label, total_bytes, memory_source, ...
    device_error: str = ""
    device_mend: str = ""
    other_gpus: tuple[str, ...] = ()  # of makers whose GPUs the node does not use


def add(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "doctor",
        help="what is installed, what is missing, and the command that mends it",
        description="Look at this machine: Python, kernel, packages against their floors, devices, memory, and which\n"
        "onnxruntime is in force; then at the configuration: each stage's model and libraries, and whether\n"
        "the whole fits (what a running node holds counts as free). With --connect, at that node too.\n"
        "With --bundle, all of it in one archive for somebody who helps: the doctor's report, the configuration\n"
        "without secrets, versions, and the running node's statistics and last log lines.",
        epilog="examples:\n  run_node.py doctor\n  run_node.py doctor --config node.toml\n  run_node.py doctor --json\n"
        "  run_node.py doctor --bundle help.tar.gz\n"
        "\nexit codes: 0 all is well, 1 something that the node needs is missing, or (--connect) no node serves",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--bundle", metavar="FILE", help="write everything that a helper needs to see into FILE (.tar.gz)"
    )
    choosing.add_config(parser)
    parser.add_argument("--connect", metavar="CTL", nargs="?", const="", default=None,
                        help="look at a running node too (default: the one at the default endpoint)")  # fmt: skip


def run(args: argparse.Namespace) -> int:
    facts = collect()
    findings = examine(facts) + examining.configuration(args)
    if args.connect is not None:
        findings.append(look_at_node(args.connect))
    healthy = all(f.state != "bad" for f in findings)
    report = {"healthy": healthy, "findings": [asdict(f) for f in findings], "facts": asdict(facts)}
    members = bundling.gather(args, report) if args.bundle else {}
    bundle = bundling.written(Path(args.bundle), members) if args.bundle else None
    if args.json:
        print(json.dumps({**report, **({"bundle": str(bundle), "members": list(members)} if bundle else {})}))
    else:
        print(table(["", "what", "found", "mend with"], [[f.state, f.topic, f.text, f.mend] for f in findings]))
        print(f"\n{_verdict(findings)}")
        if bundle:
            print(f"\nwritten: {bundle}\n\n{members['README.txt'].partition(chr(10) * 2)[2]}", end="")
    return OK if healthy else FAILED


def _verdict(findings: list[Finding]) -> str:
    """The last line."""
    bad = {finding.topic for finding in findings if finding.state == "bad"}
    if not bad - {"node"}:
        return "a node can run here" + (", but none serves now: see the line node" if bad else "")
    return "a node cannot run here until the bad lines are mended"


# ---------------------------------------------------------------- judging


def examine(facts: Facts) -> list[Finding]:
    """Every finding about these facts, what the node stands on first."""
    return [
        _python(facts),
        _kernel(facts),
        *_packages(facts),
        _libzmq(facts),
        _repair(facts),
        _onnxruntime(facts),
        *_devices(facts),
        _memory(facts),
    ]


def _python(facts: Facts) -> Finding:
    text = ".".join(map(str, facts.python))
    low, high = PYTHONS
    if low <= facts.python[:2] < high:
        return Finding("ok", "python", text)
    return Finding("bad", "python", f"{text}; needs 3.11 to 3.13", "make env PYTHON=python3.11")


def _kernel(facts: Facts) -> Finding:
    text = f"{facts.system} {facts.kernel}, {facts.cores} cores"
    if facts.system != "Linux" or not at_least(facts.kernel, KERNEL_FLOOR):
        return Finding(
            "bad", "kernel", f"{text}; the node needs Linux {KERNEL_FLOOR} or later", "run it on such a machine"
        )
    return Finding("ok", "kernel", text)


def _packages(facts: Facts) -> list[Finding]:
    findings = []
    for name, (floor, purpose) in FLOORS.items():
        version = facts.packages.get(name)
        if version is None:
            state = "note" if name in OPTIONAL else "bad"
            mend = OPTIONAL.get(name, f"pip install '{name}{'>=' + floor if floor else ''}'")
            findings.append(Finding(state, name, f"not installed (for {purpose})", mend))
        elif floor and not at_least(version, floor):
            findings.append(
                Finding("bad", name, f"{version}; needs {floor} or later", f"pip install '{name}>={floor}'")
            )
        else:
            findings.append(Finding("ok", name, version))
    return findings


def _libzmq(facts: Facts) -> Finding:
    if facts.libzmq is None:
        return Finding("bad", "libzmq", "pyzmq cannot be imported", "pip install --force-reinstall pyzmq")
    if not at_least(facts.libzmq, LIBZMQ_FLOOR):
        text = f"{facts.libzmq}; needs {LIBZMQ_FLOOR} or later"
        return Finding("bad", "libzmq", text, "pip install --force-reinstall 'pyzmq>=26'")
    return Finding("ok", "libzmq", facts.libzmq)


def _repair(facts: Facts) -> Finding:
    version = facts.packages.get("llama-cpp-python")
    if version is None:
        return Finding("note", "llama-cpp-python", "not installed: the repair stage is skipped", REPAIR_COMMAND)
    return Finding("ok", "llama-cpp-python", version)


def _onnxruntime(facts: Facts) -> Finding:
    """Two distributions own one folder; the one on top decides, and without CUDA it runs on the CPU in silence."""
    topic, has_gpu = "onnxruntime", any(d["kind"] == "cuda" for d in facts.devices)
    if facts.onnx_version is None:
        if not facts.onnx_dists:
            return Finding("bad", topic, "not installed (for tts)", "pip install onnxruntime")
        cure = "pip install --force-reinstall --no-deps " + sorted(facts.onnx_dists)[-1]
        return Finding("bad", topic, f"installed, but cannot be imported: {facts.onnx_error}", cure)
    cuda = "CUDAExecutionProvider" in facts.onnx_providers
    text = f"{facts.onnx_version}, {'with' if cuda else 'without'} CUDA"
    if len(facts.onnx_dists) > 1:
        text += (
            "; both onnxruntime and onnxruntime-gpu are installed, in force is the "
            + ("GPU" if cuda else "CPU")
            + " one"
        )
    if has_gpu and not cuda:
        return Finding("note", topic, text + "; Piper voices will run on the CPU", GPU_COMMAND)
    return Finding("ok", topic, text)


def _devices(facts: Facts) -> list[Finding]:
    if facts.device_error:
        mend = facts.device_mend or "nvidia-smi (does the driver answer?)"
        return [Finding("note", "devices", facts.device_error, mend)]
    findings = [_device(d) for d in facts.devices]
    if gpus := [d["total_bytes"] for d in facts.devices if d["kind"] == "cuda" and d["total_bytes"]]:
        findings.append(_gpu_memory(max(gpus)))
    else:
        mend = "none needed; with an NVIDIA GPU: install its driver, or see why it does not answer: nvidia-smi"
        found = f"{', '.join(facts.other_gpus)}, which the node does not use" if facts.other_gpus else "none"
        if any(d["kind"] == "cuda" for d in facts.devices):
            found, mend = "none that answers", "nvidia-smi"
        findings.append(Finding("note", "GPU", f"{found}: every stage runs on the CPU", mend))
    return findings


def _device(row: dict[str, Any]) -> Finding:
    """One device; one that the node could not use is bad only for a configuration that names it: see ``plan``."""
    text = f"{row['label']}, {nbytes(row['total_bytes'])}{SOURCES.get(row.get('memory_source', ''), '')}"
    if row.get("mps"):
        text += "; an MPS daemon serves it: when one worker dies of a fault, all workers there start again"
    if row.get("trouble"):
        return Finding("note", row["name"], row["trouble"], row["mend"])
    return Finding("ok", row["name"], text)


def _gpu_memory(largest: int) -> Finding:
    """The advice on hardware, for recognition, repair, translation and voices of the usual sizes on one GPU."""
    text = f"the largest GPU has {nbytes(largest)}; 12 GB or more are advised, 16 GB recommended"
    if largest < ADVISED_BYTES:
        return Finding("note", "GPU memory", text, "none needed: models may take turns (see: placement), or be smaller")
    return Finding("ok", "GPU memory", text)


def _memory(facts: Facts) -> Finding:
    text = f"{nbytes(facts.memory_available)} free of {nbytes(facts.memory_total)}"
    if facts.memory_available < COMFORT_BYTES:
        return Finding("note", "memory", text, "free some, or raise the container's limit")
    return Finding("ok", "memory", text)


def at_least(version: str, floor: str) -> bool:
    """Whether a dotted version is ``floor`` or later; only leading numbers count."""
    return _numbers(version) >= _numbers(floor)


def _numbers(version: str) -> tuple[int, ...]:
    numbers = []
    for part in version.replace("-", ".").replace("+", ".").split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        numbers.append(int(digits))
    return tuple(numbers)


# ---------------------------------------------------------------- looking


def collect() -> Facts:
    """The facts about this machine."""
    onnx = _import_onnxruntime()
    memory, devices, device_error, device_mend = _hardware()
    return Facts(
        python=sys.version_info[:3],
        system=platform.system(),
        kernel=platform.release(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        packages={name: _version(name) for name in [*FLOORS, "llama-cpp-python"]},
        libzmq=_libzmq_version(),
        onnx_dists={n: v for n in ("onnxruntime", "onnxruntime-gpu") if (v := _version(n)) is not None},
        memory_total=memory[0],
        memory_available=memory[1],
        devices=devices,
        device_error=device_error,
        device_mend=device_mend,
        other_gpus=other_gpus(platform.system(), platform.machine()),
        **onnx,
    )


def look_at_node(given: str) -> Finding:
    """What a running node says of itself; "" is the one that is found without an address."""
    try:
        endpoint = finding.ctl_endpoint(given or None)
        stats = asking.ask(endpoint, "stats")
    except DragomanError as error:
        return Finding("bad", "node", error.text, error.mend)
    processes = stats.get("processes", [])
    late = [p["role"] for p in processes if (p.get("age_ms") or 0) > 3000]
    text = f"{stats.get('node', '?')} at {endpoint}, mode {stats.get('mode', '?')}, {len(processes)} processes"
    health = stats.get("health", {})
    if not health.get("ready", True):
        return Finding("bad", "node", f"{text}; not serving: {health['reason']}", "look into its log")
    if notes := health.get("notes"):
        return Finding("note", "node", f"{text}; {'; '.join(notes)}", "look into its log")
    if late:
        return Finding("note", "node", f"{text}; silent for over 3 s: {', '.join(late)}", "look into its log")
    return Finding("ok", "node", text)


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _libzmq_version() -> str | None:
    try:
        import zmq
    except ImportError:
        return None
    return zmq.zmq_version()


def _import_onnxruntime() -> dict[str, Any]:
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # it reports to its makers when it is imported
    try:
        import onnxruntime
    except Exception as error:  # a half-removed installation fails in many ways; which one is what helps
        return {"onnx_version": None, "onnx_error": str(error).split("\n")[0]}
    if not hasattr(onnxruntime, "get_available_providers"):  # an emptied folder still imports, as a namespace
        return {"onnx_version": None, "onnx_error": f"nothing in {list(getattr(onnxruntime, '__path__', []))}"}
    return {"onnx_version": onnxruntime.__version__, "onnx_providers": tuple(onnxruntime.get_available_providers())}


def other_gpus(system: str, machine: str, sys_folder: Path = Path("/sys")) -> tuple[str, ...]:
    """GPUs of makers whose libraries the stages do not come with, in a word each."""
    if system == "Darwin":
        return ("Apple GPU",) if machine == "arm64" else ()
    vendors = []
    for file in sys_folder.glob("class/drm/card*/device/vendor"):
        with suppress(OSError):
            vendors.append(file.read_text().strip())
    return ("AMD GPU",) if AMD in vendors else ()


def _hardware() -> tuple[tuple[int, int], list[dict[str, Any]], str, str]:
    if not Path("/proc/meminfo").exists():
        return (0, 0), [], "", ""
    from engine import devices

    memory = devices.host_memory()
    try:
        with patience.waiting(patience.DRIVER):
            found = devices.look(("auto",))
    except DragomanError as error:
        return (memory.total_bytes, memory.available_bytes), [], error.text, error.mend
    except Exception as error:  # a sick driver must not keep the doctor from the rest
        return (memory.total_bytes, memory.available_bytes), [], str(error).split("\n")[0], ""
    shown = [_shown(device, devices.complaint(device)) for device in found]
    return (memory.total_bytes, memory.available_bytes), shown, "", ""


def _shown(device: Any, complaint: DragomanError | None) -> dict[str, Any]:
    trouble = {"trouble": complaint.text, "mend": complaint.mend} if complaint is not None else {}
    return {
        "name": device.name,
        "kind": device.kind,
        "label": device.label,
        "total_bytes": device.total_bytes,
        "memory_source": device.memory_source,
        "mps": device.mps,
        **trouble,
    }
