"""train.py run for real: what a run leaves behind, resuming, kinds of data and loss, bad data and bad flags."""

import json
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from helpers import QUICK, assert_same_checkpoint, check_error, check_help, make_data, run, start
from PIL import Image

import AnomalyCLIP_lib


def test_training_leaves_checkpoints_arguments_and_log(trained):
    assert sorted(path.name for path in trained.iterdir()) == ["args.json", "epoch_1.pth", "epoch_2.pth", "log.txt"]
    record = json.loads((trained / "args.json").read_text())
    assert record["arguments"]["epoch"] == 2 and record["training"]["seed"] == 111
    assert re.fullmatch("[0-9a-f]{64}", record["training"]["data_checksum"])
    assert record["versions"]["torch"] == torch.__version__.split("+")[0]
    checkpoint = torch.load(trained / "epoch_2.pth", weights_only=True)
    assert checkpoint["settings"] == record["settings"] and checkpoint["training"] == record["training"]
    sizes = {"model": "tiny", "features_list": [6], "n_ctx": 12, "depth": 4, "t_n_ctx": 4, "dpam_layer": 6}
    assert sizes.items() <= checkpoint["settings"].items() and checkpoint["versions"] == record["versions"]
    losses = re.findall(r"epoch (\d)/2: image_loss ([\d.]+), local_loss ([\d.]+)", (trained / "log.txt").read_text())
    assert [epoch for epoch, *_ in losses] == ["1", "2"]
    assert float(losses[1][2]) < float(losses[0][2])


def test_resume_ends_in_the_same_checkpoint(data, trained, tmp_path, monkeypatch):
    arguments = ("--train_data_path", data, "--save_path", tmp_path / "run", *QUICK)
    assert run(monkeypatch, "train", *arguments, "--epoch", 1) == 0
    assert run(monkeypatch, "train", *arguments, "--epoch", 2, "--resume") == 0
    assert_same_checkpoint(trained / "epoch_2.pth", tmp_path / "run" / "epoch_2.pth")
    monkeypatch.delattr(AnomalyCLIP_lib.AnomalyCLIP, "encode_image")  # a finished run encodes nothing
    assert run(monkeypatch, "train", *arguments, "--epoch", 2, "--resume") == 0


@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGINT])
def test_killed_training_resumes_to_the_same_checkpoint(data, trained, tmp_path, monkeypatch, kill):
    """Killed in the second epoch: everything on disk is whole, and going on gives what an uninterrupted run gives."""
    folder = tmp_path / "run"
    arguments = ("--train_data_path", data, "--save_path", folder, *QUICK)
    process = start("train", *arguments, "--epoch", 5000)
    while not (folder / "epoch_1.pth").exists():
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.01)
    process.send_signal(kill)
    output = process.communicate(timeout=60)[0]
    if kill == signal.SIGINT:
        assert process.returncode == 130 and "Traceback" not in output
        assert not list(folder.glob(".*"))
    for path in folder.glob("epoch_*.pth"):
        if int(path.stem[6:]) > 1:
            path.unlink()
    assert run(monkeypatch, "train", *arguments, "--epoch", 2, "--resume") == 0
    assert_same_checkpoint(trained / "epoch_2.pth", folder / "epoch_2.pth")


def test_data_without_masks_trains_on_the_global_loss_and_has_no_pixel_metrics(trained, tmp_path, monkeypatch, capsys):
    data, folder = make_data(tmp_path / "data", masks=False), tmp_path / "run"
    assert run(monkeypatch, "train", "--train_data_path", data, "--save_path", folder, "--epoch", 1, *QUICK) == 0
    assert "training with the global loss alone" in capsys.readouterr().out
    arguments = ("--data_path", data, "--checkpoint_path", folder / "epoch_1.pth", "--save_path", folder)
    assert run(monkeypatch, "test", *arguments, "--num_workers", 0) == 0
    results = json.loads((folder / "metrics.json").read_text())
    assert results["mean"]["pixel_auroc"] is None and results["mean"]["image_auroc"] is not None
    assert (folder / "table.md").read_text().splitlines()[2].split("|")[2].strip() == "-"


def test_masks_that_mark_nothing_are_counted(data, trained, tmp_path, monkeypatch, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(data, copy)
    Image.new("L", (80, 60)).save(copy / "tile" / "masks" / "1.png")
    arguments = ("--train_data_path", copy, "--save_path", tmp_path / "run", "--epoch", 2, *QUICK)
    assert run(monkeypatch, "train", *arguments) == 0
    warning = r"the masks of 1 anomalous images mark no pixel at 96 x 96 \(first: tile/test/1 ö.png\); correct them"
    assert len(re.findall(warning, capsys.readouterr().out)) == 1
    arguments = ("--data_path", copy, "--save_path", tmp_path / "run", "--num_workers", 0)
    assert run(monkeypatch, "test", *arguments, "--checkpoint_path", trained / "epoch_2.pth") == 0
    assert re.search("tile: " + warning, capsys.readouterr().out)


def bad_image(data: Path, content: bytes) -> None:
    (data / "tile" / "test" / "3 ö.png").write_bytes(content)


def edit_meta(data: Path, **changes) -> None:
    meta = json.loads((data / "meta.json").read_text())
    for key, value in changes.items():
        meta["test"]["tile"][1][key] = value
    (data / "meta.json").write_text(json.dumps(meta))


BAD_DATA = {
    "missing root": (lambda data: shutil.rmtree(data), r"No such file"),
    "no meta.json": (lambda data: (data / "meta.json").unlink(), r"generate_dataset_json"),
    "not json": (lambda data: (data / "meta.json").write_text("{"), r"not valid JSON"),
    "outside": (lambda data: edit_meta(data, img_path="../../etc/passwd"), r"outside the root"),
    "missing image": (lambda data: edit_meta(data, img_path="tile/none.png"), r"does not exist"),
    "zero bytes": (lambda data: bad_image(data, b""), r"3 ö\.png.*cannot be read"),
    "truncated": (
        lambda data: bad_image(data, (data / "tile/test/1 ö.png").read_bytes()[:900]),
        r"3 ö\.png.*cannot be",
    ),
}


@pytest.mark.parametrize(("case", "workers"), [(case, 0) for case in BAD_DATA] + [("zero bytes", 2), ("truncated", 2)])
def test_bad_data_is_one_line_and_exit_code_2(data, tmp_path, monkeypatch, capsys, case, workers):
    spoil, message = BAD_DATA[case]
    copy = tmp_path / "copy"
    shutil.copytree(data, copy)
    spoil(copy)
    arguments = ("--train_data_path", copy, "--save_path", tmp_path / "run", "--epoch", 1, *QUICK)
    assert run(monkeypatch, "train", *arguments, "--num_workers", workers) == 2
    check_error(capsys, message)
    assert not list((tmp_path).glob("run/epoch_*"))


def test_a_run_folder_is_not_overwritten_or_resumed_with_other_flags(data, trained, monkeypatch, capsys):
    arguments = ("--train_data_path", data, "--save_path", trained, "--epoch", 3, *QUICK)
    assert run(monkeypatch, "train", *arguments) == 2
    check_error(capsys, "add --resume")
    assert run(monkeypatch, "train", *arguments, "--resume", "--learning_rate", "0.1") == 2
    check_error(capsys, r"learning_rate is 0\.1 now but was 0\.001")
    assert not (trained / "epoch_3.pth").exists()


BAD_FLAGS = [
    (["--prompt", "hand-written"], "nothing to train"),
    (["--no_global_loss", "--no_local_loss"], "nothing to train on"),
    (["--image_size", "100"], "use 96"),
    (["--features_list", "7"], "between 1 and 6"),
    (["--features_list", "3", "6", "--feature_map_layer", "2"], "leaves nothing"),
    (["--dpam_layer", "8"], "vision tower has 6"),
    (["--depth", "5"], "text tower has 4"),
    (["--n_ctx", "90"], "takes 77"),
    (["--model", "RN50", "--pretrained", "openai"], "RN50.*ResNet"),
    (["--model", "tiny", "--pretrained", "openai"], "its own weights"),
    (["--device", "tpu"], "not available"),
    (["--save_path", "/proc/nowhere"], "cannot be written"),
    (["--learning_rate", "1e30"], r"the loss is (nan|inf) in epoch 1, batch \d"),
]


@pytest.mark.parametrize(("flags", "message"), BAD_FLAGS)
def test_bad_flags_are_one_line_and_exit_code_2(data, tmp_path, monkeypatch, capsys, flags, message):
    arguments = ["--train_data_path", data, "--save_path", tmp_path / "run", "--epoch", 1, *QUICK]
    assert run(monkeypatch, "train", *arguments, *flags) == 2
    check_error(capsys, message)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--train_data_path", "nowhere"], "nowhere: No such file"),
        (["--save_path", "/proc/nowhere"], "cannot be written"),
        (["--prompt", "hand-written"], "nothing to train"),
        (["--no_global_loss", "--no_local_loss"], "nothing to train on"),
    ],
)
def test_what_needs_no_model_is_said_before_one_is_loaded(data, tmp_path, monkeypatch, capsys, flags, message):
    def load(*_, **__):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(AnomalyCLIP_lib.backbones, "load", load)
    assert run(monkeypatch, "train", "--train_data_path", data, "--save_path", tmp_path / "run", *flags) == 2
    check_error(capsys, message)


def test_the_number_of_threads_is_chosen_for_the_tower_and_recorded(data, tmp_path):
    """One process may use one core and the other two: the same bytes."""
    arguments = ("--train_data_path", data, "--epoch", 2, *QUICK)
    for threads in ("1", "2"):
        process = start(
            "train", *arguments, "--save_path", tmp_path / threads, environment={"OMP_NUM_THREADS": threads}
        )
        output = process.communicate(timeout=120)[0]
        assert process.returncode == 0, output
    records = [json.loads((tmp_path / threads / "args.json").read_text()) for threads in ("1", "2")]
    assert [record["threads"] for record in records] == [1, 1] and records[0]["processor"]
    one, two = ((tmp_path / threads / "epoch_2.pth").read_bytes() for threads in ("1", "2"))
    assert one == two


def test_threads_that_are_asked_for(data, tmp_path):
    arguments = ("--train_data_path", data, "--save_path", tmp_path, "--epoch", 1, *QUICK, "--threads", 2)
    process = start("train", *arguments)
    assert process.wait(timeout=120) == 0, process.stdout.read()
    assert json.loads((tmp_path / "args.json").read_text())["threads"] == 2


def test_help_does_not_import_torch():
    check_help("train.py", "--features_list", "torch", "numpy")
