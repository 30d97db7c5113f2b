"""The interface of the methods: whole runs of each, their flags, and a method of one's own."""

import importlib
import json
import re
import shutil
import subprocess
import sys

import pytest
import torch
from helpers import ROOT, TINY, run

import AnomalyCLIP_lib
import methods
from utils import InputError


def test_the_methods_of_the_tables_are_there():
    assert set(methods.names()) >= {"anomalyclip", "clip", "clip_ac", "winclip", "vand", "coop"}


@pytest.mark.parametrize("name", methods.names())
def test_flags_are_those_of_the_module(name):
    module = importlib.import_module(f"methods.{name}")
    assert methods.flags(name) == {part: getattr(module, part, {}) for part in methods.PARTS}
    assert {"model", "pretrained", "image_size"} <= methods.flags(name)["SETTINGS"].keys()
    assert "sigma" in methods.flags(name)["TESTING"]


@pytest.mark.parametrize("name", methods.names())
def test_every_method_is_tested_the_same_with_any_batch_and_cache(name, data, checkpoints, tmp_path, monkeypatch):
    arguments = ["--data_path", data, *TINY]
    arguments += ["--checkpoint_path", checkpoints[name]] if name in checkpoints else ["--method", name]
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


@pytest.mark.parametrize("flag", [("--feature_map_layer", 2), ("--features_list", 3, 6)])
def test_vand_has_a_linear_layer_for_each_tap(flag, data, tmp_path, monkeypatch):
    arguments = ("--train_data_path", data, "--save_path", tmp_path, "--method", "vand", "--epoch", 1, *flag, *TINY)
    assert run(monkeypatch, "train", *arguments) == 0
    checkpoint = torch.load(tmp_path / "epoch_1.pth", weights_only=True)
    assert len(checkpoint["trainable_linearlayer"]) == 4 and len(checkpoint["settings"]["features_list"]) == 2


@pytest.mark.parametrize("name", methods.names())
def test_complete_settings_depend_on_the_model_alone_and_leave_what_they_were_given(name):
    model = AnomalyCLIP_lib.load("tiny", dpam_layer=None if name == "anomalyclip" else 1)
    chosen, settings = methods.method_class(name), methods.flags(name)["SETTINGS"]
    before = dict(settings)
    complete = chosen.complete(settings, model)
    assert settings == before and None not in (complete[key] for key in complete if key != "pretrained")
    assert complete.keys() == settings.keys() | {"activation"}
    assert chosen.complete(complete, model) == complete
    given = {"image_size": 96, "features_list": [2], "depth": 1}
    given = {key: value for key, value in given.items() if key in settings}
    assert given.items() <= chosen.complete(settings | given, model).items()


def test_feature_map_layer_belongs_to_the_default_of_features_list():
    model = AnomalyCLIP_lib.load("tiny")
    settings = methods.flags("anomalyclip")["SETTINGS"] | {"feature_map_layer": 2}
    complete = methods.method_class("anomalyclip").complete(settings, model)
    assert complete["features_list"] == [5, 6] and "feature_map_layer" not in complete
    with pytest.raises(InputError, match="--feature_map_layer 4 leaves nothing of --features_list 2 3 5 6"):
        methods.method_class("anomalyclip").complete(settings | {"feature_map_layer": 4}, model)


TOP = re.search(
    r"```python\n(# methods/top\.py.*?)```", (ROOT / "docs" / "methods.md").read_text(encoding="utf-8"), re.DOTALL
).group(1)


@pytest.fixture
def copy(tmp_path):
    """A copy of the repository's code, to put a method into."""
    root = tmp_path / "copy"
    root.mkdir()
    for path in (*ROOT.glob("*.py"), ROOT / "pyproject.toml"):
        shutil.copy(path, root)
    for folder in ("AnomalyCLIP_lib", "deploy", "methods", "checkpoints/tiny"):
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
    return root


def run_copy(copy, script: str, *arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, script, *map(str, arguments)]
    return subprocess.run(command, cwd=copy, capture_output=True, text=True)


def test_the_documented_method_works(data, copy):
    """The file that docs/methods.md shows, put into methods/, is a method, and the project's linter likes it."""
    assert len(TOP.splitlines()) <= 30
    (copy / "methods" / "top.py").write_text(TOP, encoding="utf-8")
    for check in (["check"], ["format", "--check"]):
        linted = run_copy(copy, "-m", "ruff", *check, "methods/top.py")
        assert linted.returncode == 0, linted.stdout
    common = ("--method", "top", "--share", 0.05, "--data_path", data, "--save_path", "run", *TINY)
    done = run_copy(copy, "test.py", *common)
    assert done.returncode == 0, done.stderr
    results = json.loads((copy / "run" / "metrics.json").read_text())
    assert results["settings"]["method"] == "top" and results["mean"]["pixel_auroc"] > 50
    assert "(top: 0.01)" in run_copy(copy, "test.py", "--help").stdout


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("SETTINGS = ", "SETTINGS: dict = ", "top.py: SETTINGS has to be a plain dict of literals, not annotated"),
        ("SETTINGS = ", "OTHERS = ", "top.py: has no SETTINGS, the dict of its flags and their defaults"),
        ("TESTING = {", "TESTING = 3 and {", "top.py: TESTING has to be a plain dict of literals"),
        ("TESTING = ", "TRAINING = {'epoch': 1}\nTESTING = ", "--method top has flags for training but no STATE"),
    ],
)
def test_a_method_that_is_not_complete_is_refused(data, copy, old, new, message):
    (copy / "methods" / "top.py").write_text(TOP.replace(old, new, 1), encoding="utf-8")
    done = run_copy(copy, "train.py", "--method", "top", "--train_data_path", data, *TINY)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("error: ") and message in done.stderr


def test_a_learner_without_state_is_refused(data, copy):
    """Nothing would keep what it learns, and test.py would test it untrained."""
    learner = "    def __init__(self, model, settings):\n        super().__init__(model, settings)\n"
    learner += "        self.learner = torch.nn.Linear(2, 2)\n\n"
    code = TOP.replace("    def encode(", learner + "    def encode(", 1).replace("from ", "import torch\n\nfrom ", 1)
    (copy / "methods" / "top.py").write_text(code, encoding="utf-8")
    done = run_copy(copy, "test.py", "--method", "top", "--data_path", data, *TINY)
    assert done.returncode == 2
    assert "methods/top.py: a method has a learner if and only if its class has STATE" in done.stderr
