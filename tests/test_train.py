"""train.py run for real: what a run leaves behind, resuming, kinds of data and loss, bad data and bad flags."""

import json
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from helpers import QUICK, SCRIPTS, assert_same_checkpoint, check_error, check_help, make_data, run, start
from PIL import Image

import AnomalyCLIP_lib
from dataset import AnomalyDataset


def test_training_leaves_checkpoints_arguments_and_log(trained):
    made = ["args.json", "epoch_1.pth", "epoch_2.pth", "log.txt", "losses.csv", "losses.png"]
    assert sorted(path.name for path in trained.iterdir()) == made
    record = json.loads((trained / "args.json").read_text())
    assert record["arguments"]["epoch"] == 2 and record["training"]["seed"] == 111
    assert re.fullmatch("[0-9a-f]{64}", record["training"]["data_checksum"])
    assert record["versions"]["torch"] == torch.__version__.split("+")[0]
    checkpoint = torch.load(trained / "epoch_2.pth", weights_only=True)
    assert checkpoint["settings"] == record["settings"] and checkpoint["training"] == record["training"]
    parts = ["prompt_learner", "optimizer", "epoch", "losses", "settings", "training", "versions"]
    assert list(checkpoint) == parts
    flags = ["learning_rate", "batch_size", "lambda_local", "no_global_loss", "no_local_loss"]
    assert list(checkpoint["training"]) == ["dataset", "split", "data_checksum", "read_as", "seed", *flags]
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


def test_stopped_behind_the_last_checkpoint(data, tmp_path, monkeypatch):
    """What is left to do then is done by the same command: the same files as of a run that was not stopped."""
    flags = ("--train_data_path", data, "--epoch", 2, "--resume", "--keep_checkpoints", 1, *QUICK)
    assert run(monkeypatch, "train", *flags, "--save_path", tmp_path / "whole") == 0
    script = SCRIPTS["train"]
    with monkeypatch.context() as patch:

        def write(folder, epoch, *arguments):
            original(folder, epoch, *arguments)
            if epoch == 2:
                raise KeyboardInterrupt

        original = script.write_checkpoint
        patch.setattr(script, "write_checkpoint", write)
        assert run(patch, "train", *flags, "--save_path", tmp_path / "stopped") == 130
    assert run(monkeypatch, "train", *flags, "--save_path", tmp_path / "stopped") == 0
    names = [sorted(path.name for path in (tmp_path / name).iterdir()) for name in ("whole", "stopped")]
    assert names[0] == names[1] == ["args.json", "epoch_2.pth", "log.txt", "losses.csv", "losses.png"]
    for name in ("losses.csv", "losses.png"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "stopped" / name).read_bytes()


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


# Several data sets


def part(data: Path, root: Path, *names: str, **rules) -> Path:
    """A copy of a data set with these classes alone; `rules` go into its meta.json."""
    shutil.copytree(data, root)
    meta = json.loads((data / "meta.json").read_text())
    splits = {split: {name: rows[name] for name in names if name in rows} for split, rows in meta.items()}
    (root / "meta.json").write_text(json.dumps(splits | rules))
    return root


@pytest.fixture(scope="module")
def halves(data, tmp_path_factory) -> tuple[Path, Path]:
    """The two classes of `data`, in its order, as a data set each; not to be changed."""
    folder = tmp_path_factory.mktemp("halves")
    return part(data, folder / "nuts", "metal_nut"), part(data, folder / "elsewhere" / "tiles", "tile")


@pytest.mark.parametrize("cache", ["none", "ram", "disk"])
def test_two_sets_train_as_one_that_holds_both(halves, trained, tmp_path, monkeypatch, cache):
    arguments = ("--train_data_path", *halves, "--epoch", 2, "--cache", cache, "--cache_dir", tmp_path / "cache")
    assert run(monkeypatch, "train", *arguments, "--save_path", tmp_path / "run", *QUICK) == 0
    for epoch in (1, 2):
        assert_same_checkpoint(trained / f"epoch_{epoch}.pth", tmp_path / "run" / f"epoch_{epoch}.pth")
    assert (tmp_path / "run" / "losses.csv").read_bytes() == (trained / "losses.csv").read_bytes()
    if cache == "disk":  # found again
        assert len(list((tmp_path / "cache").iterdir())) == 1
        monkeypatch.delattr(AnomalyCLIP_lib.AnomalyCLIP, "encode_image")
        assert run(monkeypatch, "train", *arguments, "--save_path", tmp_path / "again", *QUICK) == 0
        assert_same_checkpoint(trained / "epoch_2.pth", tmp_path / "again" / "epoch_2.pth")


def test_several_sets_are_recorded_and_resumed(data, halves, trained, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run"
    common = ("--save_path", folder, *QUICK)
    assert run(monkeypatch, "train", "--train_data_path", *halves, "--epoch", 1, *common) == 0
    record = json.loads((folder / "args.json").read_text())
    assert record["arguments"]["train_data_path"] == [str(root) for root in halves]
    training = torch.load(folder / "epoch_1.pth", weights_only=True)["training"]
    assert training == record["training"] and re.fullmatch("[0-9a-f]{64}", training["data_checksum"])
    checksums = [AnomalyDataset(root).checksum for root in halves]
    assert training["data_sets"] == f"nuts {checksums[0]}, tiles {checksums[1]}"

    for others in ([data], halves[::-1], halves[:1]):
        assert run(monkeypatch, "train", "--train_data_path", *others, "--epoch", 2, "--resume", *common) == 2
        check_error(capsys, r"--resume: data_checksum is '[0-9a-f]{64}' now but was '[0-9a-f]{64}' in .*epoch_1\.pth; ")
    for number, root in enumerate(halves):  # the folders have other names by now
        shutil.copytree(root, tmp_path / f"moved{number}")
    moved = (tmp_path / "moved0", tmp_path / "moved1")
    assert run(monkeypatch, "train", "--train_data_path", *moved, "--epoch", 2, "--resume", *common) == 0
    assert_same_checkpoint(trained / "epoch_2.pth", folder / "epoch_2.pth")
    assert (folder / "losses.csv").read_bytes() == (trained / "losses.csv").read_bytes()


def test_a_checkpoint_of_several_sets_is_tested(data, halves, tmp_path, monkeypatch):
    arguments = ("--train_data_path", *halves, "--save_path", tmp_path / "run", "--epoch", 1, *QUICK)
    assert run(monkeypatch, "train", *arguments) == 0
    arguments = ("--data_path", data, "--checkpoint_path", tmp_path / "run" / "epoch_1.pth", "--num_workers", 0)
    assert run(monkeypatch, "test", *arguments, "--save_path", tmp_path / "test") == 0


def test_a_set_given_twice_is_refused(data, halves, tmp_path, monkeypatch, capsys):
    (tmp_path / "link").symlink_to(data)
    shutil.copytree(data, tmp_path / "copy")
    for again in (data, f"{data}/tile/..", tmp_path / "link", tmp_path / "copy"):
        assert run(monkeypatch, "train", "--train_data_path", data, again, "--save_path", tmp_path / "run") == 2
        check_error(capsys, "is the same data set as .*; give it once")
    assert not (tmp_path / "run").exists()


def test_each_set_has_its_own_description(data, halves, trained, tmp_path, monkeypatch, capsys):
    """Two descriptions of one folder are two data sets, as long as no image is in both."""
    metas = [root / "meta.json" for root in halves]
    common = ("--save_path", tmp_path / "run", "--epoch", 2, *QUICK)
    assert run(monkeypatch, "train", "--train_data_path", data, data, "--meta", *metas, *common) == 0
    assert_same_checkpoint(trained / "epoch_2.pth", tmp_path / "run" / "epoch_2.pth")
    assert run(monkeypatch, "train", "--train_data_path", data, data, "--meta", metas[0], *common) == 2
    check_error(capsys, "--meta: 1 given for 2 data sets; give one for each")
    overlapping = (data / "meta.json", metas[1])
    assert run(monkeypatch, "train", "--train_data_path", data, data, "--meta", *overlapping, *common) == 2
    check_error(capsys, "tile/test/0 ö.png belongs to two of the data sets; leave it out of one")


def test_sets_with_and_without_masks_are_not_mixed(data, tmp_path, monkeypatch, capsys):
    plain = make_data(tmp_path / "plain", masks=False)
    common = ("--save_path", tmp_path / "run", "--epoch", 1, *QUICK)
    assert run(monkeypatch, "train", "--train_data_path", data, plain, *common) == 2
    check_error(capsys, "/plain has no masks and .* has; add them, or leave the masks of all")
    other = part(plain, tmp_path / "other", "tile")
    nuts = part(plain, tmp_path / "nuts", "metal_nut")
    assert run(monkeypatch, "train", "--train_data_path", nuts, other, *common) == 0
    assert "training with the global loss alone" in capsys.readouterr().out


# Checkpoints that are kept


def checkpoints_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("epoch_*.pth"))


def test_the_newest_checkpoints_are_kept_and_resumed_from(data, trained, tmp_path, monkeypatch):
    arguments = ("--train_data_path", data, "--save_path", tmp_path, *QUICK)
    assert run(monkeypatch, "train", *arguments, "--epoch", 5) == 0
    whole = tmp_path.with_name(f"{tmp_path.name} whole")
    tmp_path.rename(whole)
    assert run(monkeypatch, "train", *arguments, "--epoch", 4, "--keep_checkpoints", 2) == 0
    assert checkpoints_in(tmp_path) == ["epoch_3.pth", "epoch_4.pth"]
    assert_same_checkpoint(whole / "epoch_3.pth", tmp_path / "epoch_3.pth")
    assert run(monkeypatch, "train", *arguments, "--epoch", 5, "--keep_checkpoints", 1, "--resume") == 0
    assert checkpoints_in(tmp_path) == ["epoch_5.pth"]
    assert_same_checkpoint(whole / "epoch_5.pth", tmp_path / "epoch_5.pth")
    assert (tmp_path / "losses.csv").read_bytes() == (whole / "losses.csv").read_bytes()


def test_checkpoints_are_kept_of_those_that_save_freq_writes(data, tmp_path, monkeypatch):
    arguments = ("--train_data_path", data, "--save_path", tmp_path, "--epoch", 7, "--save_freq", 2, *QUICK)
    assert run(monkeypatch, "train", *arguments, "--keep_checkpoints", 3) == 0
    assert checkpoints_in(tmp_path) == ["epoch_4.pth", "epoch_6.pth", "epoch_7.pth"]


def test_only_checkpoints_of_this_run_are_deleted(data, trained, checkpoints, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    (folder / "epoch_1.pth").unlink()
    shutil.copy(checkpoints["vand"], folder / "epoch_1.pth")  # another run's, put here by hand
    (tmp_path / "mine").write_text("mine")
    foreign = ["epoch_1.pth", "epoch_best.pth", "epoch_02.pth", "epoch_2.pth.bak", "my_epoch_1.pth", "epoch_².pth"]
    for name in foreign[1:]:
        shutil.copy(trained / "epoch_2.pth", folder / name)
    (folder / "epoch_0.pth").symlink_to(tmp_path / "mine")
    arguments = ("--train_data_path", data, "--save_path", folder, "--epoch", 3, "--resume", *QUICK)
    assert run(monkeypatch, "train", *arguments, "--keep_checkpoints", 1) == 0
    left = {path.name for path in folder.iterdir()} - {"args.json", "log.txt", "losses.csv", "losses.png"}
    assert left == {*foreign, "epoch_0.pth", "epoch_3.pth"}


def test_nothing_is_deleted_before_the_newer_checkpoint_is_there(data, trained, tmp_path, monkeypatch, capsys):
    for name in ("epoch_1.pth", "epoch_2.pth"):
        shutil.copy(trained / name, tmp_path)

    def full(*_):
        raise OSError(28, "No space left on device", "epoch_3.pth")

    monkeypatch.setattr(SCRIPTS["train"], "write_checkpoint", full)
    arguments = ("--train_data_path", data, "--save_path", tmp_path, "--epoch", 3, "--resume", *QUICK)
    assert run(monkeypatch, "train", *arguments, "--keep_checkpoints", 1) == 2
    check_error(capsys, r"epoch_3\.pth: No space left on device; check disk")
    assert checkpoints_in(tmp_path) == ["epoch_1.pth", "epoch_2.pth"]


@pytest.mark.parametrize("number", ["0", "-1", "1.5", ""])
def test_no_number_of_checkpoints_to_keep(data, tmp_path, monkeypatch, capsys, number):
    arguments = ("--train_data_path", data, "--save_path", tmp_path, "--keep_checkpoints", number)
    assert run(monkeypatch, "train", *arguments) == 2
    assert "argument --keep_checkpoints: " in capsys.readouterr().err


# Bad data sets and flags


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
