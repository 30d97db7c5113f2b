"""Every method behind train.py and test.py: whole runs, its own flags and nobody else's, and a method of one's own."""

import importlib
import json
import re
import shutil
import subprocess
import sys

import pytest
import torch
from test_scripts import ROOT, SCRIPTS, check_error, make_data, run

import methods
from options import settings_from

TINY = ("--model", "tiny", "--num_workers", "0", "--device", "cpu")
TRAINED = [name for name in methods.names() if methods.method_class(name).STATE]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return add_train_split(make_data(tmp_path_factory.mktemp("data")))


def add_train_split(root):
    """The first two normal images of each class also as its train split."""
    meta = json.loads((root / "meta.json").read_text())
    meta["train"] = {name: [row for row in rows if not row["anomaly"]][:2] for name, rows in meta["test"].items()}
    (root / "meta.json").write_text(json.dumps(meta))
    return root


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """A checkpoint of each method that has any."""
    checkpoints = {}
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name in TRAINED:
            folder = tmp_path_factory.mktemp(name)
            arguments = ("--train_data_path", data, "--save_path", folder, "--epoch", 2, "--method", name)
            assert run(monkeypatch, "train", *arguments, *TINY) == 0
            checkpoints[name] = folder / "epoch_2.pth"
    return checkpoints


def test_the_methods_of_the_tables_are_there():
    assert set(methods.names()) >= {"anomalyclip", "clip", "clip_ac", "winclip", "vand", "coop"}


@pytest.mark.parametrize("name", methods.names())
def test_flags_are_those_of_the_module(name):
    module = importlib.import_module(f"methods.{name}")
    assert methods.flags(name) == {part: getattr(module, part, {}) for part in methods.PARTS}
    assert {"model", "pretrained", "image_size"} <= methods.flags(name)["SETTINGS"].keys()
    assert "sigma" in methods.flags(name)["TESTING"]


@pytest.mark.parametrize("name", methods.names())
def test_every_method_is_tested_the_same_with_any_batch_and_cache(name, data, trained, tmp_path, monkeypatch):
    arguments = ["--data_path", data, *TINY]
    arguments += ["--checkpoint_path", trained[name]] if name in trained else ["--method", name]
    variants = {
        "plain": ("--batch_size", 5),
        "cached": ("--batch_size", 1, "--cache", "disk", "--cache_dir", tmp_path / "cache"),
    }
    for variant, flags in variants.items():
        assert run(monkeypatch, "test", *arguments, *flags, "--save_path", tmp_path / variant) == 0
    plain, cached = (json.loads((tmp_path / variant / "metrics.json").read_text()) for variant in variants)
    assert plain["settings"]["method"] == name and plain["classes"].keys() == {"metal_nut", "tile"}
    for class_name, metrics in plain["classes"].items():
        assert all(0 <= value <= 100 for value in metrics.values())
        assert cached["classes"][class_name] == pytest.approx(metrics, abs=1e-9)


@pytest.mark.parametrize(("name", "model"), [("anomalyclip", None), ("vand", None), ("winclip", "ViT-B-16-plus-240")])
def test_a_weights_file_says_what_it_is_only_if_it_may_be_openais(name, model, monkeypatch):
    """Activations are not in the weights: OpenAI's have QuickGELU, WinCLIP's have GELU."""
    command = ["test.py", "--method", name, "--pretrained", "weights.pt", "--data_path", "."]
    monkeypatch.setattr(sys, "argv", command)
    settings, _ = settings_from(SCRIPTS["test"].parse_args(), "TESTING")
    assert settings["model"] == model and settings["pretrained"] == "weights.pt"


def test_references_are_drawn_by_the_seed(data, tmp_path, monkeypatch):
    arguments = ("--data_path", data, "--method", "winclip", "--k_shot", 1, *TINY)
    results = []
    for number, seed in enumerate((1, 1, 2, 3, 4)):
        folder = tmp_path / str(number)
        assert run(monkeypatch, "test", *arguments, "--seed", seed, "--save_path", folder) == 0
        results.append((folder / "metrics.json").read_text())
    assert results[0] == results[1] and len(set(results)) > 1


@pytest.mark.parametrize(
    ("script", "flags", "message"),
    [
        ("test", ("--method", "clip", "--dpam_mode", "qq"), "--dpam_mode is no flag of --method clip; it has --model"),
        ("test", ("--method", "winclip", "--features_list", 6), "--features_list is no flag of --method winclip"),
        ("test", ("--method", "vand", "--k_shot", 1), "--k_shot is no flag of --method vand"),
        ("train", ("--method", "coop", "--lambda_local", 1), "--lambda_local is no flag of --method coop"),
        ("train", ("--method", "clip"), "--method clip has nothing to train"),
        ("test", ("--method", "winclip", "--k_shot", 3), "--k_shot 3 is more than the 2 normal images .*metal_nut"),
        ("test", ("--method", "vand"), "--method vand needs --checkpoint_path FILE"),
        ("test", ("--method", "coop"), "--method coop needs --checkpoint_path FILE"),
    ],
)
def test_flags_that_do_not_fit_the_method(script, flags, message, data, tmp_path, monkeypatch, capsys):
    root = {"train": "--train_data_path", "test": "--data_path"}[script]
    assert run(monkeypatch, script, root, data, "--save_path", tmp_path, *flags, *TINY) == 2
    check_error(capsys, message)


def test_few_shot_without_a_train_split(tmp_path, monkeypatch, capsys):
    data = make_data(tmp_path / "data")
    arguments = ("--data_path", data, "--save_path", tmp_path / "run", "--method", "winclip", "--k_shot", 1, *TINY)
    assert run(monkeypatch, "test", *arguments) == 2
    check_error(capsys, "--k_shot 1 takes normal images of the train split, but .*no images to use in the train split")


def test_checkpoints_of_other_methods_are_refused(data, trained, tmp_path, monkeypatch, capsys):
    common = ("--data_path", data, "--save_path", tmp_path / "run", *TINY)
    assert run(monkeypatch, "test", *common, "--checkpoint_path", trained["vand"], "--method", "anomalyclip") == 2
    check_error(capsys, "--method anomalyclip contradicts .*epoch_2.pth, made with vand")
    assert run(monkeypatch, "test", *common, "--checkpoint_path", trained["coop"], "--method", "clip") == 2
    check_error(capsys, "--method clip contradicts .*epoch_2.pth, made with coop")
    theirs = {"trainable_linearlayer": torch.load(trained["vand"], weights_only=True)["trainable_linearlayer"]}
    torch.save(theirs, tmp_path / "authors.pth")
    assert run(monkeypatch, "test", *common, "--checkpoint_path", tmp_path / "authors.pth") == 2
    check_error(capsys, 'no "prompt_learner" in it; it looks like one of --method vand')
    assert run(monkeypatch, "test", *common, "--checkpoint_path", tmp_path / "authors.pth", "--method", "winclip") == 2
    check_error(capsys, "--method winclip is not trained; leave out --checkpoint_path")
    assert run(monkeypatch, "test", *common, "--checkpoint_path", tmp_path / "authors.pth", "--method", "vand") == 0


def test_a_checkpoint_of_a_method_that_is_not_here(data, trained, tmp_path, monkeypatch, capsys):
    checkpoint = torch.load(trained["vand"], weights_only=True)
    checkpoint["settings"]["method"] = "newer"
    torch.save(checkpoint, tmp_path / "newer.pth")
    arguments = ("--data_path", data, "--save_path", tmp_path, "--checkpoint_path", tmp_path / "newer.pth")
    assert run(monkeypatch, "test", *arguments, *TINY) == 2
    check_error(capsys, "made with --method newer, which this version does not have")


def test_a_schedule_is_not_changed_by_resuming(data, trained, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run"
    shutil.copytree(trained["coop"].parent, folder)
    arguments = ("--train_data_path", data, "--save_path", folder, "--method", "coop", "--resume", *TINY)
    assert run(monkeypatch, "train", *arguments, "--epoch", 3) == 2
    check_error(capsys, "--resume: epoch is 3 now but was 2")


@pytest.mark.parametrize("flag", [("--feature_map_layer", 2), ("--features_list", 3, 6)])
def test_vand_has_a_linear_layer_for_each_tap(flag, data, tmp_path, monkeypatch):
    arguments = ("--train_data_path", data, "--save_path", tmp_path, "--method", "vand", "--epoch", 1, *flag, *TINY)
    assert run(monkeypatch, "train", *arguments) == 0
    checkpoint = torch.load(tmp_path / "epoch_1.pth", weights_only=True)
    assert len(checkpoint["trainable_linearlayer"]) == 4 and len(checkpoint["settings"]["features_list"]) == 2


def test_hand_written_prompts_with_the_word_object(data, tmp_path, monkeypatch):
    for prompt in ("hand-written", "hand-written-object"):
        arguments = ("--data_path", data, "--prompt", prompt, "--save_path", tmp_path / prompt, "--features_list", 6)
        assert run(monkeypatch, "test", *arguments, *TINY) == 0
    named, objects = (json.loads((path / "metrics.json").read_text()) for path in sorted(tmp_path.iterdir()))
    assert named["classes"] != objects["classes"]


def test_the_readmes_method_works(data, tmp_path):
    """The file that the README shows, put into methods/, is a method."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(# methods/top\.py.*?)```", readme, re.DOTALL).group(1)
    assert len(code.splitlines()) <= 30
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in ROOT.glob("*.py"):
        shutil.copy(path, copy)
    for folder in ("AnomalyCLIP_lib", "methods", "checkpoints/tiny"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "methods" / "top.py").write_text(code, encoding="utf-8")
    command = [sys.executable, "test.py", "--method", "top", "--share", "0.05", "--data_path", data]
    done = subprocess.run(
        [*map(str, command), *TINY, "--save_path", str(tmp_path / "run")], cwd=copy, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert results["settings"]["method"] == "top" and results["mean"]["pixel_auroc"] > 50
    assert "top only" in subprocess.run(
        [sys.executable, "test.py", "--help"], cwd=copy, capture_output=True, text=True
    ).stdout
