"""utils.py: how scripts end, types of flags, files that appear whole or not at all."""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers import ROOT
from tqdm import tqdm

import utils


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (utils.InputError("flag is wrong; mend it"), 2, "error: flag is wrong; mend it"),
        (ModuleNotFoundError("no module", name="torch"), 2, "lacks the module torch; activate the scripts'"),
        (OSError(28, "No space left on device", "file"), 2, "error: file: No space left on device; check disk and"),
        (KeyboardInterrupt(), 130, "interrupted; what was finished is on disk"),
        (OSError(28, "No space left on device"), 2, "error: file system: No space left on device; check disk and"),
        (MemoryError(), 2, "error: out of memory (no more is left); lower --batch_size or --image_size"),
        (RuntimeError("CUDA out of memory. Tried"), 2, "error: out of memory (CUDA out of memory. Tried); lower"),
        (RuntimeError("DataLoader worker (pid 1) is killed by signal: Bus error."), 2, "--num_workers 0"),
        (RuntimeError("unable to open shared memory object </torch_1>"), 2, "--shm-size"),
    ],
)
def test_scripts_end_with_one_line(capsys, error, code, line):
    def main():
        raise error

    with pytest.raises(SystemExit) as end:
        utils.run_cli(main)
    message = capsys.readouterr().err
    assert end.value.code == code and line in message and message.count("\n") == 1


def test_what_nobody_foresaw_is_not_hidden():
    def main():
        raise RuntimeError("a fault of ours")

    with pytest.raises(RuntimeError, match="a fault of ours"):
        utils.run_cli(main)


@pytest.mark.parametrize("disguise", [RuntimeError("unexpected pos"), None])
def test_ctrl_c_is_noticed_whatever_a_library_makes_of_it(capsys, disguise):
    def main():
        with contextlib.suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        raise disguise or utils.InputError("too late")

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell ignores it
    try:
        with pytest.raises(SystemExit) as end:
            utils.run_cli(main)
        assert end.value.code == 130 and "interrupted" in capsys.readouterr().err
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (utils.positive_int, ("1", "12"), ("0", "-3", "1.5", "x", str(2**63))),
        (utils.nonnegative_int, ("0", "7", str(2**32 - 1)), ("-1", "", "1e3", str(2**32))),
        (utils.small_int, ("1", "518"), ("0", "1000000000")),
        (utils.nonnegative_float, ("0", "1e-3", "1e30"), ("-0.1", "inf", "nan", "x", "1e39")),
        (utils.small_float, ("0", "4"), ("-1", "1e6", "nan")),
    ],
)
def test_types_of_flags(kind, good, bad):
    for text in good:
        assert kind(text) == float(text)
    for text in bad:
        with pytest.raises((argparse.ArgumentTypeError, ValueError)):
            kind(text)


def test_an_empty_path_is_refused():
    assert utils.nonempty_path("a/b") == Path("a/b")
    with pytest.raises(argparse.ArgumentTypeError, match="empty"):
        utils.nonempty_path("")


@pytest.mark.parametrize("name", ["cpu:abc", "cpu:", "cpu:-1", "cpu:1", "tpu", "", "cuda:99", "cpu\n"])
def test_devices_that_are_none(name):
    with pytest.raises(utils.InputError, match="is not available here; use one of") as error:
        utils.pick_device(name)
    assert "\n" not in str(error.value)


def test_devices():
    assert utils.pick_device("cpu") == "cpu" and utils.pick_device("cpu:0") == "cpu:0"


@pytest.mark.parametrize(("device", "exact"), [(None, True), ("cuda:0", True), ("cpu", False), ("mps", False)])
def test_training_repeats_exactly_on_cuda(device, exact, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    try:
        utils.repeat_exactly(device)
        assert torch.are_deterministic_algorithms_enabled() is exact
        assert ("CUBLAS_WORKSPACE_CONFIG" in os.environ) is exact
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = True
        os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


def run_folder(folder):
    logger = utils.open_run(folder)
    logger.info("hello")
    return (folder / "log.txt").read_text(encoding="utf-8")


def test_a_run_has_its_folder_alone(tmp_path):
    """A second process is refused while the first lives; the lock goes when it dies, however it dies."""
    code = f"import utils, pathlib, time; utils.open_run(pathlib.Path({str(tmp_path)!r})); print('open', flush=True)"
    first = subprocess.Popen([sys.executable, "-c", f"{code}; time.sleep(60)"], cwd=ROOT, stdout=subprocess.PIPE)
    try:
        assert first.stdout.readline() == b"open\n"
        with pytest.raises(utils.InputError, match="is another run's, which has not ended; give another folder"):
            utils.open_run(tmp_path)
    finally:
        first.kill()
        first.wait()
    assert run_folder(tmp_path).endswith(" hello\n")


def test_what_a_killed_run_left_half_written_is_deleted(tmp_path):
    for name in (".table.md.123.tmp", "overlays/a/.x.png.7.tmp", "overlays/kept.png", ".mine.tmp", "other/.y.1.tmp"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    run_folder(tmp_path)
    left = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    assert left == [".mine.tmp", "log.txt", "other/.y.1.tmp", "overlays/kept.png"]


def test_an_error_stands_in_the_log_and_bars_end_before_it(tmp_path, capsys):
    def main():
        utils.open_run(tmp_path).warning("careful")
        bar = tqdm(total=3)
        bar.update()
        raise utils.InputError("the file is\nbroken")

    with pytest.raises(SystemExit):
        utils.run_cli(main)
    said = capsys.readouterr()
    assert said.err.endswith("\nerror: the file is broken\n") and "careful" in said.out
    log = (tmp_path / "log.txt").read_text(encoding="utf-8").splitlines()
    assert [line[18:] for line in log] == ["careful", "error: the file is broken"]


def test_names_that_are_not_text_are_written_all_the_same(tmp_path):
    utils.write_json(tmp_path / "a.json", {"path": "b\udcff"})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"path": "b\udcff"}
    utils.open_run(tmp_path).info("b\udcff")
    assert "b\\udcff" in (tmp_path / "log.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", ["folder", "pipe", "device"])
def test_only_files_are_replaced(tmp_path, kind):
    path = Path("/dev/null") if kind == "device" else tmp_path / kind
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    with pytest.raises(utils.InputError, match="is there and not a file"):
        utils.write_text(path, "text")
    assert os.path.lexists(path) and not path.is_file()


def test_a_full_disk_names_the_file(tmp_path):
    with pytest.raises(OSError, match="No space left") as error, utils.atomic_path(tmp_path / "a") as temporary:
        with open("/dev/full", "w") as full:
            temporary.touch()
            full.write("text")
            full.flush()
    assert error.value.filename == str(tmp_path / "a") and not list(tmp_path.iterdir())


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "file.json"
    utils.write_json(path, {"ü": [1]})
    assert json.loads(path.read_text(encoding="utf-8")) == {"ü": [1]} and "ü" in path.read_text(encoding="utf-8")
    with pytest.raises(KeyboardInterrupt), utils.atomic_path(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert json.loads(path.read_text(encoding="utf-8")) == {"ü": [1]}
    assert list(tmp_path.iterdir()) == [path]
