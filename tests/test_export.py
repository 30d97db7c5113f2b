"""export.py: one graph that gives what the model gives, its metadata, what cannot be one; folders for a hub."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import check_error, check_help, load_script, run, run_main
from PIL import Image

from checkpoint import read_checkpoint
from predict import Predictor

onnx = pytest.importorskip("onnx", reason="onnx is missing; pip install -r requirements/export.txt")
pytest.importorskip("onnxscript", reason="onnxscript is missing; pip install -r requirements/export.txt")
pytest.importorskip("onnxruntime", reason="onnxruntime is missing; pip install -r requirements/export.txt")

from deploy.runtime import Detector  # noqa: E402

export = load_script("export.py")
TINY = ("--model", "tiny", "--features_list", 6)
BAD = {
    "not_ours": "lacks their metadata",
    "cut": "is no ONNX file, or cut off",
    "text": "is no ONNX file, or cut off",
    "pointer": "is a Git LFS pointer",
    "other_size": "speak of 64 pixels",
    "odd": "not as export.py writes them",
    "future": "too old for it",
    "weightless": "no file of weights beside it",
}


def run_export(monkeypatch, *arguments) -> int:
    return run_main(monkeypatch, "export.py", lambda: export.export(export.parse_args()), *arguments)


@pytest.fixture(scope="module")
def checkpoint(trained) -> Path:
    return trained / "epoch_2.pth"


@pytest.fixture(scope="module")
def graph(tmp_path_factory, checkpoint) -> Path:
    """The graph of a checkpoint."""
    path = tmp_path_factory.mktemp("graph") / "model.onnx"
    with pytest.MonkeyPatch.context() as patch:
        assert run_export(patch, "--checkpoint_path", checkpoint, "--output", path) == 0
    assert [file.name for file in path.parent.iterdir()] == ["model.onnx"]
    return path


@pytest.mark.parametrize("batch", [1, 2, 3, 5])
def test_the_graph_gives_what_the_model_gives(graph, checkpoint, batch):
    images = np.random.RandomState(batch).randint(0, 256, (batch, 3, 96, 96), np.uint8)
    for ours, expected in zip(Detector(graph).predict(images), Predictor(checkpoint).predict(images), strict=True):
        assert ours.dtype == np.float32 and ours.shape == expected.shape
        np.testing.assert_allclose(ours, expected, atol=1e-5, rtol=0)


def test_what_the_file_says_of_itself(graph, checkpoint):
    model, predictor = onnx.load(graph), Predictor(checkpoint)
    metadata = json.loads(next(entry.value for entry in model.metadata_props if entry.key == "anomalyclip"))
    assert metadata["made_with"] == predictor.made_with and metadata["calibration"] is None
    assert (metadata["image_size"], metadata["highest"]) == (96, predictor.highest)
    assert metadata["made_with"]["checkpoint_sha256"] and metadata["made_with"]["weights_sha256"]
    assert {"torch", "pillow"} <= metadata["versions"].keys()
    assert [each.version for each in model.opset_import if each.domain == ""] == [18]
    assert {node.domain for node in model.graph.node} == {""}  # standard operators alone


@pytest.mark.parametrize(
    "flags",
    [
        ("--prompt", "hand-written", "--opset", 20),
        ("--prompt", "hand-written", "--sigma", 0, "--dpam_mode", "qq"),
        ("--method", "clip", "--class_name", "metal_nut"),
        ("--method", "clip_ac"),
    ],
)
def test_methods_without_training(tmp_path, monkeypatch, capsys, flags):
    assert run_export(monkeypatch, *TINY, *flags, "--output", tmp_path / "m.onnx") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[:3]] == ["batch of 1", "batch of 2", "batch of 3"]
    assert lines[3].startswith("wrote ")


@pytest.mark.parametrize("name", ["vand", "coop", "anomalyclip-aware"])
def test_methods_with_training(data, tmp_path, monkeypatch, name):
    flags = ("--method", "anomalyclip", "--prompt", "object-aware") if "-" in name else ("--method", name)
    common = ("--train_data_path", data, "--epoch", 1, "--cache", "none", "--num_workers", 0, "--device", "cpu")
    assert run(monkeypatch, "train", *common, *TINY, *flags, "--save_path", tmp_path) == 0
    path, file = tmp_path / "epoch_1.pth", tmp_path / "m.onnx"
    assert run_export(monkeypatch, "--checkpoint_path", path, "--class_name", "metal_nut", "--output", file) == 0
    images = np.random.RandomState(0).randint(0, 256, (2, 3, 96, 96), np.uint8)
    for ours, expected in zip(
        Detector(file).predict(images), Predictor(path, class_name="metal_nut").predict(images), strict=True
    ):
        np.testing.assert_allclose(ours, expected, atol=1e-5, rtol=0)


def test_half_precision(graph, checkpoint, tmp_path, monkeypatch):
    file = tmp_path / "half.onnx"
    assert run_export(monkeypatch, "--checkpoint_path", checkpoint, "--precision", "fp16", "--output", file) == 0
    assert file.stat().st_size < 0.6 * graph.stat().st_size
    model = onnx.load(file)
    made_by = {name: node for node in model.graph.node for name in node.output}
    assert {value.type.tensor_type.elem_type for value in model.graph.output} == {onnx.TensorProto.FLOAT}
    norms = [node for node in model.graph.node if node.op_type in ("LayerNormalization", "Softmax")]
    casts = [made_by[node.input[0]] for node in norms if made_by[node.input[0]].op_type == "Cast"]
    assert casts and all(cast.attribute[0].i == onnx.TensorProto.FLOAT for cast in casts)
    images = np.random.RandomState(0).randint(0, 256, (2, 3, 96, 96), np.uint8)
    maps, expected = (detector.predict(images)[1] for detector in (Detector(file), Predictor(checkpoint)))
    assert (
        0 < abs(maps - expected).max() < 2e-4 and len(np.unique(maps)) > maps.size / 2
    )  # not rounded to half precision


@pytest.mark.parametrize(("method", "precision", "tolerance"), [("af_clip", "fp32", 1e-5), ("mrad", "fp16", 1e-5)])
def test_methods_with_more_behind_the_tower(checkpoints, method, precision, tolerance, tmp_path, monkeypatch):
    """An adaptor in the graph; a memory in it, whose retrieval stays float32 in half precision, too."""
    file, path = tmp_path / "m.onnx", checkpoints[method]
    assert run_export(monkeypatch, "--checkpoint_path", path, "--precision", precision, "--output", file) == 0
    images = np.random.RandomState(0).randint(0, 256, (2, 3, 96, 96), np.uint8)
    (scores, maps), (own_scores, own_maps) = Detector(file).predict(images), Predictor(path).predict(images)
    np.testing.assert_allclose(scores, own_scores, atol=tolerance if precision == "fp32" else 1e-3, rtol=0)
    np.testing.assert_allclose(maps, own_maps, atol=tolerance, rtol=0)


def test_integers(graph, checkpoint, tmp_path, monkeypatch):
    file = tmp_path / "integers.onnx"
    assert run_export(monkeypatch, "--checkpoint_path", checkpoint, "--precision", "int8", "--output", file) == 0
    assert file.stat().st_size < 0.5 * graph.stat().st_size and [path.name for path in tmp_path.iterdir()] == [
        file.name
    ]
    assert "MatMulInteger" in {node.op_type for node in onnx.load(file).graph.node}
    assert Detector(file).made_with["precision"] == "int8"


def test_weights_that_do_not_fit_lie_beside_the_graph(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "ONE_FILE", 1e6)
    file = tmp_path / "model.onnx"
    assert run_export(monkeypatch, "--checkpoint_path", checkpoint, "--output", file) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
    assert Detector(file).image_size == 96
    monkeypatch.setattr(export, "ONE_FILE", 1e9)
    assert run_export(monkeypatch, "--checkpoint_path", checkpoint, "--output", file) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_a_graph_that_differs_is_deleted(checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(export, "LARGEST_DIFFERENCE", {"fp32": 0.0, "fp16": 0.0})
    assert run_export(monkeypatch, "--checkpoint_path", checkpoint, "--output", tmp_path / "model.onnx") == 2
    check_error(capsys, "the graph differs from the model by .*; it was deleted")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((*TINY[:2], "--method", "winclip"), "--method winclip cannot be one graph: its windows"),
        ((*TINY, "--method", "vand"), "--method vand needs --checkpoint_path"),
        (("--checkpoint_path", "nowhere.pth"), "nowhere.pth does not exist"),
        (("--checkpoint_path", "TRAINED", "--model", "ViT-L-14-336"), "--model ViT-L-14-336 contradicts"),
        ((*TINY, "--prompt", "hand-written", "--output", "FOLDER"), "is a folder; name a file"),
        ((*TINY, "--prompt", "hand-written", "--output", "nowhere/m.onnx"), "there is no folder nowhere"),
        ((*TINY, "--prompt", "hand-written", "--format", "hub", "--output", "FOLDER"), "holds what was learned"),
        ((*TINY, "--prompt", "hand-written", "--results", "m.json"), "--results goes with --format hub"),
        (("--checkpoint_path", "TRAINED", "--calibration", "nowhere.json"), "nowhere.json: No such file"),
    ],
)
def test_what_is_refused(checkpoint, tmp_path, monkeypatch, capsys, flags, message):
    names = {"TRAINED": checkpoint, "FOLDER": tmp_path}
    output = () if "--output" in flags else ("--output", tmp_path / "m.onnx")
    assert run_export(monkeypatch, *(names.get(flag, flag) for flag in flags), *output) == 2
    check_error(capsys, message)
    assert not list(tmp_path.iterdir())


def test_help_is_quick():
    check_help("export.py", "--opset", "torch", "numpy", "PIL", "onnx")


# files that are no graph of ours


def spoil(graph: Path, file: Path, how: str) -> None:
    """Write a file that cannot be used."""
    model = onnx.load(graph)
    entry = next(entry for entry in model.metadata_props if entry.key == "anomalyclip")
    content = graph.read_bytes()
    if how == "not_ours":
        del model.metadata_props[:]
    elif how == "other_size":
        entry.value = json.dumps(json.loads(entry.value) | {"image_size": 64})
    elif how == "odd":
        entry.value = "[" * 10**5
    elif how == "future":
        model.opset_import[0].version = 999
    written = {
        "cut": content[:-1000],
        "text": b"no graph at all",
        "pointer": b"version https://git-lfs.github.com/spec/v1\n",
    }
    if how == "weightless":
        onnx.save(model, file, save_as_external_data=True, location=f"{file.name}.data")
        file.with_name(f"{file.name}.data").unlink()
    else:
        file.write_bytes(written.get(how) or model.SerializeToString())


@pytest.mark.parametrize("how", BAD)
def test_files_that_are_no_graph_of_ours(graph, tmp_path, how):
    spoil(graph, tmp_path / "bad.onnx", how)
    with pytest.raises(ValueError, match=BAD[how]) as error:
        Detector(tmp_path / "bad.onnx")
    assert "\n" not in str(error.value) and "bad.onnx" in str(error.value)


# a hub's folder


def test_a_folder_for_a_hub_is_taken_as_a_checkpoint(data, checkpoint, tmp_path, monkeypatch, capsys):
    testing = ("--data_path", data, "--num_workers", 0, "--device", "cpu")
    assert run(monkeypatch, "test", *testing, "--checkpoint_path", checkpoint, "--save_path", tmp_path / "one") == 0
    results = tmp_path / "one" / "metrics.json"
    folder = tmp_path / "hub"
    flags = ("--checkpoint_path", checkpoint, "--format", "hub", "--output", folder, "--results", results)
    assert run_export(monkeypatch, *flags) == 0
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert run(monkeypatch, "test", *testing, "--checkpoint_path", folder, "--save_path", tmp_path / "two") == 0
    assert (tmp_path / "two" / "metrics.json").read_bytes() == results.read_bytes()
    ours, theirs = read_checkpoint(folder / "model.safetensors"), read_checkpoint(checkpoint)
    assert ours["state"].keys() == theirs["state"].keys()
    assert all(torch.equal(value, theirs["state"][name]) for name, value in ours["state"].items())
    card = (folder / "README.md").read_text()
    mean = json.loads(results.read_text())["mean"]["pixel_auroc"]
    assert card.startswith("---\n") and "| prompt | object-agnostic |" in card and f"| mvtec | {mean:.1f} |" in card
    picture = Image.new("RGB", (50, 40), (90, 100, 110))
    assert Predictor(folder)(picture).score == Predictor(checkpoint)(picture).score


def test_a_hub_out_of_reach_is_one_line(monkeypatch, tmp_path, capsys):
    from AnomalyCLIP_lib import backbones

    monkeypatch.setattr(backbones.huggingface_hub, "try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr(backbones, "unreachable", lambda url: "no route to host")
    arguments = ("--checkpoint_path", "hf-hub:somebody/prompts", "--output", tmp_path / "m.onnx")
    assert run_export(monkeypatch, *arguments) == 2
    check_error(capsys, "hf-hub:somebody/prompts cannot be had .huggingface.co: no route to host")


def test_a_checkpoint_in_a_hubs_cache(checkpoint, tmp_path, monkeypatch):
    from AnomalyCLIP_lib import backbones

    assert (
        run_export(monkeypatch, "--checkpoint_path", checkpoint, "--format", "hub", "--output", tmp_path / "hub") == 0
    )
    cached = {"config.json", "model.safetensors"}
    monkeypatch.setattr(
        backbones.huggingface_hub,
        "try_to_load_from_cache",
        lambda repository, name: str(tmp_path / "hub" / name) if name in cached else None,
    )
    picture = Image.new("RGB", (50, 40), (90, 100, 110))
    assert Predictor("hf-hub:somebody/prompts")(picture).score == Predictor(checkpoint)(picture).score


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", None, "a folder without config.json"),
        ("model.safetensors", None, "a folder without model.safetensors"),
        ("config.json", "{", "cannot be read as JSON"),
        ("config.json", "[]", "is not the configuration of a checkpoint"),
        ("config.json", '{"kind": "anomalyclip-repro", "state": "prompt_learner", "settings": 3}', "not a dict"),
        ("model.safetensors", "none", "cannot be read as a checkpoint"),
    ],
)
def test_folders_of_a_hub_that_are_refused(checkpoint, tmp_path, monkeypatch, capsys, file, content, message):
    folder = tmp_path / "hub"
    assert run_export(monkeypatch, "--checkpoint_path", checkpoint, "--format", "hub", "--output", folder) == 0
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_text(content)
    assert run_export(monkeypatch, "--checkpoint_path", folder, "--output", tmp_path / "m.onnx") == 2
    check_error(capsys, message)
    shutil.rmtree(folder)
    assert not list(tmp_path.iterdir())
