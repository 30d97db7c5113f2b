"""torchrun with two processes on the CPU: the same numbers as one process, and an error when one of them dies."""

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
import torch
from helpers import QUICK, ROOT, check_error, run

import parallel


def torchrun(script: str, *arguments) -> list[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    return [*launcher, str(ROOT / f"{script}.py"), *map(str, arguments)]


def test_two_processes_give_the_numbers_of_one(data, tmp_path, monkeypatch):
    # 12 images in batches of 5: shares of 3 and 2 images, and a last batch of 2. Adam's first steps depend on the sign
    # of gradients alone, also of those that are mere rounding; small steps keep that out of the comparison.
    common = ("--train_data_path", data, "--epoch", 2, "--batch_size", 5, "--cache", "none", *QUICK)
    common += ("--learning_rate", 1e-4)
    assert run(monkeypatch, "train", *common, "--save_path", tmp_path / "one") == 0
    disk = ("--cache_dir", tmp_path / "cache", "--save_path", tmp_path / "two", "--cache", "disk")
    done = subprocess.run(torchrun("train", *common, *disk), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    for epoch in (1, 2):
        files = [tmp_path / name / f"epoch_{epoch}.pth" for name in ("one", "two")]
        losses = [torch.load(file, weights_only=True)["losses"] for file in files]
        assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert len(list((tmp_path / "cache").iterdir())) == 1
    assert (tmp_path / "two" / "log.txt").read_text().count("epoch 1/2") == 1

    common = ("--data_path", data, "--checkpoint_path", tmp_path / "one" / "epoch_2.pth", "--batch_size", 4)
    check_test(tmp_path / "trained", monkeypatch, *common)
    few_shot = ("--method", "winclip", "--k_shot", 1, "--model", "tiny", "--batch_size", 5)
    check_test(tmp_path / "few_shot", monkeypatch, "--data_path", data, *few_shot)


def check_test(folder, monkeypatch, *common):
    common += ("--num_workers", 0, "--device", "cpu")
    assert run(monkeypatch, "test", *common, "--save_path", folder / "tested_by_one") == 0
    two = torchrun("test", *common, "--save_path", folder / "tested_by_two")
    done = subprocess.run(two, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    one, two = (json.loads((folder / f"tested_by_{name}" / "metrics.json").read_text()) for name in ("one", "two"))
    assert one["classes"].keys() == two["classes"].keys()
    for class_name, metrics in one["classes"].items():
        assert two["classes"][class_name] == pytest.approx(metrics, abs=1e-6)


@pytest.mark.skipif(os.name != "posix", reason="kills a process by its number")
def test_a_process_that_dies_ends_the_job(data, tmp_path):
    arguments = ("--train_data_path", data, "--epoch", 100_000, "--save_path", tmp_path / "run", *QUICK)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    launcher = subprocess.Popen(torchrun("train", *arguments), **pipes)
    try:
        end = time.monotonic() + 200
        while not (tmp_path / "run" / "epoch_2.pth").exists():
            assert launcher.poll() is None and time.monotonic() < end
            time.sleep(0.1)
        second = [child for child in psutil.Process(launcher.pid).children() if child.environ().get("RANK") == "1"]
        second[0].send_signal(signal.SIGKILL)
        _, errors = launcher.communicate(timeout=100)
    finally:
        launcher.kill()
    assert launcher.returncode == 1 and "SIGKILL" in errors and "rank      : 1" in errors


def test_shares_cover_each_batch_once(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    for length in (1, 2, 3, 7):
        shares = []
        for rank in range(3):
            monkeypatch.setenv("RANK", str(rank))
            rows, weight = parallel.own_share(torch.arange(length))
            assert len(rows) > 0 and (weight or rows.tolist() == [0])
            shares += [(row, weight / len(rows)) for row in rows.tolist() if weight]
        assert sorted(row for row, _ in shares) == list(range(length))
        assert all(weight == pytest.approx(3 / length) for _, weight in shares)


def test_more_processes_than_gpus(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    arguments = ("--train_data_path", data, "--save_path", tmp_path, *QUICK, "--device", "cuda")
    assert run(monkeypatch, "train", *arguments) == 2
    check_error(capsys, "machine with 1 GPUs; lower --nproc_per_node")
