"""AnomalyCLIP_lib as a library: it stands alone, whatever else is called utils.py, and is imported when it is used."""

import ast
import subprocess
import sys

import pytest
import torch
from helpers import ROOT

import AnomalyCLIP_lib
import utils

STRANGER = """
import sys
sys.path.append({root!r})
import utils, metrics, dataset
assert utils.MINE and metrics.MINE and dataset.MINE
import torch, AnomalyCLIP_lib
assert "open_clip" not in sys.modules  # imported when it is first needed
from prompt_ensemble import PromptLearner
model = AnomalyCLIP_lib.load("tiny")
learner = PromptLearner(model)
scores, maps = model.detect(torch.zeros(2, 3, 96, 96), learner(), layers=[6])
assert scores.shape == (2,) and maps.shape == (2, 96, 96)
try:
    AnomalyCLIP_lib.load("RN50", "openai")
except AnomalyCLIP_lib.InputError as error:
    print(error)
"""


def test_beside_files_of_the_same_names(tmp_path):
    for name in ("utils", "metrics", "dataset"):
        (tmp_path / f"{name}.py").write_text("MINE = True\n")
    (tmp_path / "mine.py").write_text(STRANGER.format(root=str(ROOT)))
    done = subprocess.run([sys.executable, "mine.py"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "RN50 cannot be used" in done.stdout


def imports_of(path) -> set[str]:
    """First parts of the absolute imports in a file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module.split(".")[0])
    return found


TOP_LEVEL = {path.stem for path in ROOT.glob("*.py")}
FOLDERS = {"methods", "scripts", "synthetic", "benchmarks", "generate_dataset_json"}


def test_imports_flow_one_way():
    """The library imports nothing above it; what has one concern imports nothing but utils; methods not each other."""
    for path in (ROOT / "AnomalyCLIP_lib").glob("*.py"):
        assert not imports_of(path) & (TOP_LEVEL | FOLDERS), path
    for name in ("loss", "metrics"):
        assert not imports_of(ROOT / f"{name}.py") & (TOP_LEVEL | FOLDERS | {"AnomalyCLIP_lib"}), name
    for name in ("dataset", "parallel", "utils", "prompt_ensemble"):
        assert not imports_of(ROOT / f"{name}.py") & (TOP_LEVEL | FOLDERS) - {"utils"}, name
    for path in (ROOT / "methods").glob("*.py"):
        allowed = {"utils", "loss", "prompt_ensemble", "methods", "dataset"}
        assert not imports_of(path) & (TOP_LEVEL | FOLDERS) - allowed, path
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("methods."):
                assert node.module.split(".")[1].startswith("_"), path


def test_one_input_error():
    assert utils.InputError is AnomalyCLIP_lib.InputError
    assert {"load", "AnomalyCLIP", "InputError"} <= set(AnomalyCLIP_lib.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        AnomalyCLIP_lib.nothing  # noqa: B018


def test_detect_keeps_no_gradients_and_takes_prompts_that_have_some():
    from prompt_ensemble import PromptLearner

    model = AnomalyCLIP_lib.load("tiny")
    text_features = PromptLearner(model)()
    assert text_features.requires_grad
    images = torch.rand(1, 3, 96, 96, requires_grad=True)
    scores, maps = model.detect(images, text_features, layers=[6])
    assert not scores.requires_grad and not maps.requires_grad
    image_features, _ = model.encode_image(images)
    assert image_features.requires_grad
