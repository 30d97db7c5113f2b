"""train.py and test.py run for real: a small data set, the embedded backbone, every kind of bad input."""

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score, roc_auc_score

import AnomalyCLIP_lib
from dataset import AnomalyDataset
from methods.anomalyclip import Method
from metrics import pixel_aupro
from prompt_ensemble import PromptLearner
from utils import run_cli

ROOT = Path(__file__).parent.parent
QUICK = ("--model", "tiny", "--features_list", "6", "--num_workers", "0", "--device", "cpu")


def load_script(name: str):
    spec = importlib.util.spec_from_file_location(f"script_{name}", ROOT / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SCRIPTS = {name: load_script(name) for name in ("train", "test")}


def run(monkeypatch, name: str, *arguments) -> int:
    """Run a script in this process as its command line would; returns the exit code."""
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
    try:
        run_cli(lambda: getattr(SCRIPTS[name], name)(SCRIPTS[name].parse_args()))
    except SystemExit as exit:
        return exit.code or 0
    return 0


def make_data(root: Path, masks: bool = True) -> Path:
    """Two classes of flat images; the anomalous ones have a bright square, in a mask unless `masks` is false."""
    stream = np.random.RandomState(0)
    meta = {"train": {}, "test": {}}
    for name in ("metal_nut", "tile"):
        rows = meta["test"].setdefault(name, [])
        for index in range(6):
            anomalous = index % 2
            image = np.full((60, 80, 3), stream.randint(40, 120, 3), np.uint8) + stream.randint(
                0, 20, (60, 80, 3), np.uint8
            )
            mask = np.zeros((60, 80), np.uint8)
            if anomalous:
                top, left = stream.randint(5, 35, 2)
                mask[top : top + 20, left : left + 20] = 255
                image[mask > 0] = 255 - image[mask > 0]
            path, mask_path = f"{name}/test/{index} ö.png", f"{name}/masks/{index}.png" if masks and anomalous else ""
            for file, array in ((path, image), (mask_path, mask)):
                if file:
                    (root / file).parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(array).save(root / file)
            rows.append(
                {"img_path": path, "mask_path": mask_path, "cls_name": name, "specie_name": "", "anomaly": anomalous}
            )
    (root / "meta.json").write_text(json.dumps(meta))
    return root


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return make_data(tmp_path_factory.mktemp("data set"))


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory) -> Path:
    """Run folder of two epochs."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as monkeypatch:
        arguments = ("--train_data_path", data, "--save_path", folder, "--epoch", 2, *QUICK)
        assert run(monkeypatch, "train", *arguments) == 0
    return folder


def checkpoint_tensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint, the optimiser's too."""
    checkpoint = torch.load(path, weights_only=True)
    moments = {
        f"{index}.{key}": value
        for index, values in checkpoint["optimizer"]["state"].items()
        for key, value in values.items()
    }
    return checkpoint["prompt_learner"] | moments


def assert_same_checkpoint(one: Path, other: Path) -> None:
    first, second = checkpoint_tensors(one), checkpoint_tensors(other)
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


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


def test_metrics_are_those_of_the_python_interface(data, trained, tmp_path, monkeypatch):
    checkpoint = trained / "epoch_2.pth"
    for batch in (1, 4):
        folder = tmp_path / f"batch {batch}"
        common = ("--data_path", data, "--checkpoint_path", checkpoint, "--num_workers", 0, "--device", "cpu")
        assert run(monkeypatch, "test", *common, "--save_path", folder, "--batch_size", batch, "--vis") == 0
    results, other = (json.loads((tmp_path / f"batch {batch}" / "metrics.json").read_text()) for batch in (1, 4))

    model = AnomalyCLIP_lib.load("tiny")
    learner = PromptLearner(model)
    learner.load_state_dict(torch.load(checkpoint, weights_only=True)["prompt_learner"])
    items = list(AnomalyDataset(data, model.preprocess, model.image_size, classes=["tile"]))
    images, masks = (torch.stack([item[key] for item in items]) for key in ("image", "mask"))
    scores, maps = model.detect(images, learner().detach(), layers=[6], sigma=4)
    labels = [item["label"] for item in items]
    expected = {
        "pixel_auroc": roc_auc_score(masks.ravel(), maps.ravel()),
        "pixel_aupro": pixel_aupro(masks.numpy(), maps.numpy()),
        "image_auroc": roc_auc_score(labels, scores),
        "image_ap": average_precision_score(labels, scores),
    }
    for name, value in expected.items():
        assert results["classes"]["tile"][name] == pytest.approx(100 * value, abs=1e-3)
        assert other["classes"]["tile"][name] == pytest.approx(100 * value, abs=1e-3)
        mean = np.mean([results["classes"][key][name] for key in ("metal_nut", "tile")])
        assert results["mean"][name] == pytest.approx(mean)

    table = (tmp_path / "batch 1" / "table.md").read_text().splitlines()
    assert table[0].replace(" ", "") == "|objects|pixel_auroc|pixel_aupro|image_auroc|image_ap|"
    assert table[-1].split("|")[1].strip() == "mean"
    assert table[-1].split("|")[2].strip() == f"{results['mean']['pixel_auroc']:.1f}"
    picture = Image.open(tmp_path / "batch 1" / "vis" / "tile" / "test" / "1 ö.png")
    assert picture.size == (3 * 96, 96)


def test_resume_ends_in_the_same_checkpoint(data, trained, tmp_path, monkeypatch):
    arguments = ("--train_data_path", data, "--save_path", tmp_path / "run", *QUICK)
    assert run(monkeypatch, "train", *arguments, "--epoch", 1) == 0
    assert run(monkeypatch, "train", *arguments, "--epoch", 2, "--resume") == 0
    assert_same_checkpoint(trained / "epoch_2.pth", tmp_path / "run" / "epoch_2.pth")
    monkeypatch.delattr(AnomalyCLIP_lib.AnomalyCLIP, "encode_image")  # a finished run encodes nothing
    assert run(monkeypatch, "train", *arguments, "--epoch", 2, "--resume") == 0


def start(name: str, *arguments) -> subprocess.Popen:
    command = [sys.executable, ROOT / f"{name}.py", *map(str, arguments)]
    # A background job of a shell ignores SIGINT, and its children would, too.
    restore = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **restore)


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


def test_an_interrupted_test_goes_on_with_the_next_class(data, trained, tmp_path, monkeypatch, capsys):
    common = ("--data_path", data, "--checkpoint_path", trained / "epoch_2.pth", "--num_workers", 0, "--batch_size", 2)
    assert run(monkeypatch, "test", *common, "--save_path", tmp_path / "straight") == 0
    predict, images = Method.predict, []

    def counted(*arguments):
        images.append(1)
        if len(images) == 9:  # in the second class of six images each
            raise KeyboardInterrupt
        return predict(*arguments)

    monkeypatch.setattr(Method, "predict", counted)
    assert run(monkeypatch, "test", *common, "--save_path", tmp_path / "stopped") == 130
    assert not (tmp_path / "stopped" / "metrics.json").exists()
    assert run(monkeypatch, "test", *common, "--save_path", tmp_path / "stopped") == 0
    assert len(images) == 9 + 6 and "metal_nut: finished before" in capsys.readouterr().out
    straight, stopped = ((tmp_path / name / "metrics.json").read_bytes() for name in ("straight", "stopped"))
    assert straight == stopped and not (tmp_path / "stopped" / "finished_classes.json").exists()


def interrupt(*_):
    raise KeyboardInterrupt


def test_other_tests_do_not_take_over_finished_classes(data, trained, tmp_path, monkeypatch, capsys):
    common = ("--data_path", data, "--checkpoint_path", trained / "epoch_2.pth", "--num_workers", 0)
    with monkeypatch.context() as patch:
        patch.setattr(SCRIPTS["test"], "write_text", interrupt)
        assert run(patch, "test", *common, "--save_path", tmp_path) == 130
    assert (tmp_path / "finished_classes.json").exists()
    assert run(monkeypatch, "test", *common, "--save_path", tmp_path, "--sigma", 2) == 0
    assert "finished before" not in capsys.readouterr().out


def test_exact_aupro_and_half_precision_maps(data, trained, tmp_path, monkeypatch):
    common = ("--data_path", data, "--checkpoint_path", trained / "epoch_2.pth", "--num_workers", 0, "--exact_aupro")
    for kind in ("float32", "float16"):
        assert run(monkeypatch, "test", *common, "--save_path", tmp_path / kind, "--map_dtype", kind) == 0
    full, half = (json.loads((tmp_path / kind / "metrics.json").read_text())["mean"] for kind in ("float32", "float16"))
    assert list(full) == ["pixel_auroc", "pixel_aupro", "pixel_aupro_exact", "image_auroc", "image_ap"]
    assert full == pytest.approx(half, abs=0.5)
    assert 0 < full["pixel_aupro_exact"] <= 100


def test_a_released_checkpoint_needs_its_settings_as_flags(data, trained, tmp_path, monkeypatch):
    """The authors' files hold nothing but the prompt learner."""
    state = torch.load(trained / "epoch_2.pth", weights_only=True)["prompt_learner"]
    torch.save({"prompt_learner": state}, tmp_path / "epoch_15.pth")
    for checkpoint, folder in ((tmp_path / "epoch_15.pth", "released"), (trained / "epoch_2.pth", "ours")):
        common = ("--data_path", data, "--checkpoint_path", checkpoint, "--save_path", tmp_path / folder)
        assert run(monkeypatch, "test", *common, *QUICK) == 0
    released, ours = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("released", "ours"))
    assert released["classes"] == ours["classes"]


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
    assert capsys.readouterr().out.count("the masks of 1 anomalous images mark no pixel") == 1
    arguments = ("--data_path", copy, "--save_path", tmp_path / "run", "--num_workers", 0)
    assert run(monkeypatch, "test", *arguments, "--checkpoint_path", trained / "epoch_2.pth") == 0
    assert "tile: the masks of 1 anomalous images mark no pixel" in capsys.readouterr().out


def test_object_aware_and_hand_written_prompts(data, tmp_path, monkeypatch):
    aware = ("--train_data_path", data, "--save_path", tmp_path / "aware", "--epoch", 1, "--prompt", "object-aware")
    assert run(monkeypatch, "train", *aware, *QUICK) == 0
    common = ("--data_path", data, "--num_workers", 0, "--metrics", "pixel-level")
    checkpoint = ("--checkpoint_path", tmp_path / "aware" / "epoch_1.pth", "--save_path", tmp_path / "aware")
    assert run(monkeypatch, "test", *common, *checkpoint) == 0
    hand_written = ("--prompt", "hand-written", "--save_path", tmp_path / "hand", "--model", "tiny")
    assert run(monkeypatch, "test", *common, *hand_written) == 0
    for folder in ("aware", "hand"):
        assert list(json.loads((tmp_path / folder / "metrics.json").read_text())["mean"]) == [
            "pixel_auroc",
            "pixel_aupro",
        ]


@pytest.mark.parametrize("name", ["train", "test"])
def test_help_does_not_import_torch(name):
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['{name}.py', '--help']\n"
        "try:\n"
        f"    runpy.run_path('{name}.py', run_name='__main__')\n"
        "finally:\n"
        "    assert 'torch' not in sys.modules and 'numpy' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--features_list" in done.stdout


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


def check_error(capsys, message: str) -> None:
    """The last thing on stderr is one line that says "error: ..." and matches `message`."""
    lines = capsys.readouterr().err.replace("\r", "\n").strip().splitlines()
    assert lines[-1].startswith("error: ") and re.search(message, lines[-1]), lines
    assert not any("Traceback" in line for line in lines)


BAD_FLAGS = {
    "train": [
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
    ],
    "test": [
        (["--image_size", "64"], r"64 contradicts .*96"),
        (["--features_list", "5"], r"5 contradicts .*6"),
        (["--n_ctx", "4"], r"4 contradicts .*12"),
        (["--depth", "2"], r"2 contradicts .*4"),
        (["--dpam_layer", "1"], r"1 contradicts .*6"),
        (["--model", "ViT-L-14-336"], r"ViT-L-14-336 contradicts .*tiny"),
        (["--checkpoint_path", "none.pth"], "does not exist"),
        (["--checkpoint_path", __file__], "not opened"),
    ],
}


@pytest.mark.parametrize(
    ("name", "flags", "message"), [(name, *case) for name, cases in BAD_FLAGS.items() for case in cases]
)
def test_bad_flags_are_one_line_and_exit_code_2(data, trained, tmp_path, monkeypatch, capsys, name, flags, message):
    if name == "train":
        arguments = ["--train_data_path", data, "--save_path", tmp_path / "run", "--epoch", 1, *QUICK]
    else:
        arguments = ["--data_path", data, "--save_path", tmp_path / "run", "--num_workers", 0]
        arguments += ["--checkpoint_path", trained / "epoch_2.pth"]
    assert run(monkeypatch, name, *arguments, *flags) == 2
    check_error(capsys, message)


def test_a_run_folder_is_not_overwritten_or_resumed_with_other_flags(data, trained, monkeypatch, capsys):
    arguments = ("--train_data_path", data, "--save_path", trained, "--epoch", 3, *QUICK)
    assert run(monkeypatch, "train", *arguments) == 2
    check_error(capsys, "add --resume")
    assert run(monkeypatch, "train", *arguments, "--resume", "--learning_rate", "0.1") == 2
    check_error(capsys, r"learning_rate is 0\.1 now but was 0\.001")
    assert not (trained / "epoch_3.pth").exists()


def test_a_checkpoint_for_another_text_tower(data, small_model, tmp_path, monkeypatch, capsys):
    torch.save({"prompt_learner": PromptLearner(small_model).state_dict()}, tmp_path / "depth 9.pth")
    torch.save({"prompt_learner": PromptLearner(small_model, depth=4).state_dict()}, tmp_path / "depth 4.pth")
    wide = {
        key: value.repeat(1, 1, 1, 6) for key, value in PromptLearner(small_model).state_dict().items() if "ctx" in key
    }
    torch.save({"prompt_learner": wide}, tmp_path / "width 768.pth")
    for file, code, message in (
        ("depth 9.pth", 2, "text tower has 4"),
        ("width 768.pth", 2, "width 768"),
        ("depth 4.pth", 0, ""),
    ):
        arguments = ("--data_path", data, "--checkpoint_path", tmp_path / file, "--save_path", tmp_path / "run")
        assert run(monkeypatch, "test", *arguments, *QUICK) == code
        if code:
            check_error(capsys, f"{file}: .*{message}")


def test_a_checkpoint_trained_on_other_weights(data, trained, tmp_path, monkeypatch, capsys):
    checkpoint = torch.load(trained / "epoch_2.pth", weights_only=True)
    checkpoint["settings"]["weights_sha256"] = "0" * 64
    torch.save(checkpoint, tmp_path / "moved.pth")
    arguments = ("--data_path", data, "--checkpoint_path", tmp_path / "moved.pth", "--save_path", tmp_path / "run")
    assert run(monkeypatch, "test", *arguments) == 2
    check_error(capsys, "trained on other weights")


def test_a_checkpoint_that_is_not_plain_is_not_opened(data, tmp_path, monkeypatch, capsys):
    torch.save({"prompt_learner": {"ctx_pos": os.system}}, tmp_path / "hostile.pth")
    torch.save({"something": torch.zeros(1)}, tmp_path / "other.pth")
    for file, message in (("hostile.pth", "not opened"), ("other.pth", "no checkpoint of --method anomalyclip")):
        arguments = ("--data_path", data, "--checkpoint_path", tmp_path / file, "--save_path", tmp_path)
        assert run(monkeypatch, "test", *arguments, *QUICK) == 2
        check_error(capsys, message)
