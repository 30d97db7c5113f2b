"""curves.py: losses.csv, losses.png and TensorBoard's events, also of runs that were interrupted."""

import importlib.util
import shutil
import signal
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import QUICK, ROOT, check_error, run, start
from PIL import Image

import curves
from curves import LossCurves, read_losses

ROWS = {1: {"image_loss": 0.1 + 0.2, "local_loss": 4.0}, 2: {"image_loss": 1e-9, "local_loss": 3.5}}


def written(folder, rows=ROWS):
    made = LossCurves(folder)
    for epoch, losses in rows.items():
        made.add(epoch, losses)
    return made


def test_losses_are_those_of_the_checkpoints(trained):
    lines = (trained / "losses.csv").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "epoch,image_loss,local_loss" and len(lines) == 3
    expected = {epoch: torch.load(trained / f"epoch_{epoch}.pth", weights_only=True)["losses"] for epoch in (1, 2)}
    assert read_losses(trained) == expected
    with Image.open(trained / "losses.png") as picture:
        assert picture.format == "PNG" and np.asarray(picture.convert("L")).std() > 1


def test_all_digits_are_kept(tmp_path):
    written(tmp_path)
    assert (tmp_path / "losses.csv").read_bytes() == (
        b"epoch,image_loss,local_loss\n1,0.30000000000000004,4.0\n2,1e-09,3.5\n"
    )
    assert read_losses(tmp_path) == ROWS and [path.name for path in tmp_path.iterdir()] == ["losses.csv"]


def test_rows_of_epochs_that_were_not_saved_are_dropped(tmp_path):
    written(tmp_path)
    again = LossCurves(tmp_path, done=1)
    assert again.rows == {1: ROWS[1]} and again.missing == 0
    again.add(2, {"image_loss": 0.5, "local_loss": 3.0})
    assert read_losses(tmp_path)[2] == {"image_loss": 0.5, "local_loss": 3.0}
    assert LossCurves(tmp_path).rows == {}  # a run that starts anew


DAMAGE = {
    "none": None,
    "empty": b"",
    "binary": b"\xff\xfe\x00",
    "no header": b"1,0.3,4.0\n2,0.2,3.5\n",
    "not a number": b"epoch,image_loss\n1,a\n2,0.3\n",
    "too many fields": b"epoch,image_loss\n1,0.2,0.3\n2,0.3\n",
    "infinite": b"epoch,image_loss\n1,inf\n2,0.3\n",
    "epoch of words": b"epoch,image_loss\none,0.2\n",
    "quotes": b'epoch,image_loss\n1,"0.2\n2,0.3\n',
}


@pytest.mark.parametrize("content", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file_is_made_anew(tmp_path, content):
    if content is not None:
        (tmp_path / "losses.csv").write_bytes(content)
    again = LossCurves(tmp_path, done=2)
    assert again.rows == {} and again.missing == 2
    again.add(3, {"image_loss": 0.25})
    assert read_losses(tmp_path) == {3: {"image_loss": 0.25}}


@pytest.mark.parametrize("rows", [ROWS, {3: {"image_loss": 0.5}}, {n: {"a": 1 / n} for n in range(1, 80)}])
def test_pictures_of_one_epoch_and_of_many(tmp_path, rows):
    written(tmp_path, rows).finish()
    with Image.open(tmp_path / "losses.png") as picture:
        width, height = picture.size
    panels = 3 if rows is ROWS else 1  # two terms and their sum
    assert width == pytest.approx(panels * 504, abs=2) and height == pytest.approx(408, abs=2)


def test_losses_of_an_interrupted_run_are_complete(data, tmp_path, monkeypatch):
    """A checkpoint every second epoch; killed after the third epoch or later: the same files as without."""
    arguments = ("--train_data_path", data, "--save_freq", 2, *QUICK)
    assert run(monkeypatch, "train", *arguments, "--save_path", tmp_path / "whole", "--epoch", 5) == 0
    folder = tmp_path / "killed"
    process = start("train", *arguments, "--save_path", folder, "--epoch", 5000)
    while 3 not in read_losses(folder):
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    for path in folder.glob("epoch_*.pth"):
        if int(path.stem[6:]) > 2:
            path.unlink()
    assert max(read_losses(folder)) > 2 and not (folder / "losses.png").exists()
    assert run(monkeypatch, "train", *arguments, "--save_path", folder, "--epoch", 5, "--resume") == 0
    assert (folder / "losses.csv").read_bytes() == (tmp_path / "whole" / "losses.csv").read_bytes()
    assert list(read_losses(folder)) == [1, 2, 3, 4, 5]
    assert (folder / "losses.png").read_bytes() == (tmp_path / "whole" / "losses.png").read_bytes()


def test_a_run_whose_losses_were_deleted_says_so(data, trained, tmp_path, monkeypatch, capsys):
    shutil.copy(trained / "epoch_2.pth", tmp_path)
    arguments = ("--train_data_path", data, "--save_path", tmp_path, "--epoch", 3, "--resume", *QUICK)
    assert run(monkeypatch, "train", *arguments) == 0
    assert "losses.csv lacks 2 of the 2 epochs before" in capsys.readouterr().out
    assert list(read_losses(tmp_path)) == [3]


# TensorBoard


@pytest.mark.parametrize("found", [None, SimpleNamespace(origin=None)])
def test_tensorboard_that_is_not_there_is_said_before_anything_else(tmp_path, monkeypatch, capsys, found):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found)
    assert run(monkeypatch, "train", "--train_data_path", "nowhere", "--save_path", tmp_path, "--tensorboard") == 2
    message = r"error: --tensorboard needs tensorboard; pip install -r requirements/tensorboard\.txt$"
    check_error(capsys, message)
    assert not list(tmp_path.iterdir())
    assert "tensorboard>=" in (ROOT / "requirements" / "tensorboard.txt").read_text()


def test_what_is_given_to_tensorboard(data, tmp_path, monkeypatch):
    """With a stand-in for the library: a value for each term and epoch, and where those of lost epochs end."""
    noted = []

    class Writer:
        def __init__(self, folder, purge_step):
            noted.append((folder, purge_step))

        def add_scalar(self, name, value, epoch):
            noted.append((name, value, epoch))

        def flush(self):
            noted.append("flush")

        def close(self):
            noted.append("close")

    monkeypatch.setattr(curves.importlib.util, "find_spec", lambda name: SimpleNamespace(origin="here"))
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=Writer))
    arguments = ("--train_data_path", data, "--save_path", tmp_path, "--tensorboard", *QUICK)
    assert run(monkeypatch, "train", *arguments, "--epoch", 1) == 0
    rows = read_losses(tmp_path)
    first = [(f"loss/{name}", value, 1) for name, value in rows[1].items()]
    assert noted == [(tmp_path / "tensorboard", 1), *first, "flush", "close"]
    noted.clear()
    assert run(monkeypatch, "train", *arguments, "--epoch", 2, "--resume") == 0
    assert noted[0] == (tmp_path / "tensorboard", 2) and noted[1] == (
        "loss/image_loss",
        read_losses(tmp_path)[2]["image_loss"],
        2,
    )


def test_a_broken_tensorboard_is_one_line(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(curves.importlib.util, "find_spec", lambda name: SimpleNamespace(origin="here"))
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace())
    arguments = ("--train_data_path", data, "--save_path", tmp_path, "--tensorboard", "--epoch", 1, *QUICK)
    assert run(monkeypatch, "train", *arguments) == 2
    check_error(capsys, r"--tensorboard does not work here \(cannot import name .*\); pip install -r")


def test_events_that_tensorboard_reads(data, tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    arguments = ("--train_data_path", data, "--save_path", tmp_path, "--tensorboard", *QUICK)
    assert run(monkeypatch, "train", *arguments, "--epoch", 2) == 0
    (tmp_path / "epoch_2.pth").unlink()  # as if it had been killed before that was written
    assert run(monkeypatch, "train", *arguments, "--epoch", 3, "--resume") == 0
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    for name in ("image_loss", "local_loss"):
        found = [(event.step, event.value) for event in events.Scalars(f"loss/{name}")]
        assert [step for step, _ in found] == [1, 2, 3]
        assert [value for _, value in found] == pytest.approx([each[name] for each in read_losses(tmp_path).values()])
