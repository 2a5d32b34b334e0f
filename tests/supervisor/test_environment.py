"""Promise: a worker sees exactly one device, its thread count, and nothing secret."""

from __future__ import annotations

import os
import subprocess
import sys

from engine.supervisor import environment
from engine.supervisor.children import command

UUID = "GPU-11111111-2222-3333-4444-555555555555"


def compose(base: dict[str, str] | None = None, **options: object) -> dict[str, str]:
    return environment.compose(base or {}, node="0123abcd", root="/opt/x", **options)  # type: ignore[arg-type]


def test_a_gpu_worker_sees_its_device_alone() -> None:
    env = compose({"CUDA_VISIBLE_DEVICES": "0,1,2", "CUDA_DEVICE_ORDER": "FASTEST_FIRST"}, device_uuid=UUID)
    assert env["CUDA_VISIBLE_DEVICES"] == UUID
    assert env["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"


def test_a_cpu_worker_sees_no_gpu() -> None:
    assert compose({"CUDA_VISIBLE_DEVICES": "0"})["CUDA_VISIBLE_DEVICES"] == ""


def test_every_library_gets_the_same_number_of_threads_and_waits_passively() -> None:
    env = compose({"OMP_NUM_THREADS": "64"}, threads=3)
    assert {env[name] for name in environment.THREAD_COUNTS} == {"3"}
    assert env["OMP_WAIT_POLICY"] == "PASSIVE"


def test_ctranslate2_packs_no_second_copy_of_its_weights_unless_the_user_wants_it() -> None:
    assert compose()["CT2_USE_MKL"] == "0"
    assert compose({"CT2_USE_MKL": "1"})["CT2_USE_MKL"] == "1"


def test_nothing_secret_is_passed_on() -> None:
    secrets = {
        "HF_TOKEN": "hf_x", "AWS_SECRET_ACCESS_KEY": "x", "OPENAI_API_KEY": "x", "DRAGOMAN_TOKEN": "x",
        "SSH_AUTH_SOCK": "/x", "https_proxy": "http://user:word@proxy:1",
    }  # fmt: skip
    env = compose({**secrets, "PATH": "/bin", "https_proxy": secrets["https_proxy"]})
    assert not env.keys() & secrets.keys()
    assert env["PATH"] == "/bin"
    assert compose({"https_proxy": "http://proxy:1"})["https_proxy"] == "http://proxy:1"


def test_the_hub_stays_offline_only_if_the_user_said_so() -> None:
    assert "HF_HUB_OFFLINE" not in compose()
    assert compose({"HF_HUB_OFFLINE": "1"})["HF_HUB_OFFLINE"] == "1"


def test_library_folders_come_before_the_users_own() -> None:
    env = compose({"LD_LIBRARY_PATH": "/mine"}, library_folders=["/a/nvidia/cublas/lib"])
    assert env["LD_LIBRARY_PATH"] == "/a/nvidia/cublas/lib:/mine"
    assert compose({"LD_LIBRARY_PATH": "/mine"})["LD_LIBRARY_PATH"] == "/mine"


def test_pip_s_cuda_libraries_are_found(tmp_path) -> None:
    for name in ("cublas", "cudnn"):
        (tmp_path / "nvidia" / name / "lib").mkdir(parents=True)
    found = environment.nvidia_library_folders([str(tmp_path), "", str(tmp_path)])
    assert found == [f"{tmp_path}/nvidia/cublas/lib", f"{tmp_path}/nvidia/cudnn/lib"]


def test_our_modules_are_found_from_any_folder_even_with_one_of_the_same_name_there(tmp_path) -> None:
    (tmp_path / "engine").mkdir()
    (tmp_path / "engine" / "__init__.py").write_text("raise SystemExit('the wrong engine')")
    env = environment.compose(os.environ, node="0123abcd", root=environment.package_root())
    ran = subprocess.run(
        command("engine.process"), cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60
    )  # fmt: skip
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.args[0] == sys.executable


def test_every_process_carries_its_node() -> None:
    assert compose()["DRAGOMAN_NODE"] == "0123abcd"


def test_no_library_reports_home():
    env = compose()
    assert env["ORT_DISABLE_TELEMETRY"] == env["HF_HUB_DISABLE_TELEMETRY"] == "1"
