"""What several test files share: running the scripts, a small data set, reference arrays, making a method."""

import hashlib
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import generated_weights
import numpy as np
import torch
from PIL import Image

import AnomalyCLIP_lib
import methods
from utils import run_cli

ROOT = Path(__file__).resolve().parents[1]
REFERENCES = ROOT / "tests" / "data"
LARGEST = 4096  # values of a reference array that are kept
TINY = ("--model", "tiny", "--num_workers", "0", "--device", "cpu")
QUICK = (*TINY, "--features_list", "6")


# scripts


def load_script(path: str):
    """A script of the repository as a module."""
    spec = importlib.util.spec_from_file_location(f"script_{Path(path).stem}", ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SCRIPTS = {name: load_script(f"{name}.py") for name in ("train", "test")}


def run(monkeypatch, name: str, *arguments) -> int:
    """Run train.py or test.py in this process as its command line would; returns the exit code."""
    script = SCRIPTS[name]
    return run_main(monkeypatch, f"{name}.py", lambda: getattr(script, name)(script.parse_args()), *arguments)


def run_main(monkeypatch, program: str, main, *arguments) -> int:
    """Run a script's main() with these arguments; returns the exit code."""
    monkeypatch.setattr(sys, "argv", [program, *map(str, arguments)])
    try:
        run_cli(main)
    except SystemExit as exit:
        return exit.code or 0
    return 0


def start(name: str, *arguments, environment: dict[str, str] | None = None) -> subprocess.Popen:
    """Start a script as a process of its own, which Ctrl-C reaches; `environment` is added to this one's."""
    command = [sys.executable, ROOT / f"{name}.py", *map(str, arguments)]
    # A background job of a shell ignores SIGINT, and its children would, too.
    options = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL), "text": True, "cwd": ROOT}
    options |= {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "env": os.environ | (environment or {})}
    return subprocess.Popen(command, **options)


def check_error(capsys, message: str) -> None:
    """The last thing on stderr is one line that says "error: ..." and matches `message`."""
    lines = capsys.readouterr().err.replace("\r", "\n").strip().splitlines()
    assert lines[-1].startswith("error: ") and re.search(message, lines[-1]), lines
    assert not any("Traceback" in line for line in lines)


def check_help(script: str, flag: str, *forbidden: str) -> None:
    """`--help` of a script names a flag, and none of these modules was imported for it."""
    code = (
        "import runpy, sys\n"
        f"sys.argv = [{script!r}, '--help']\n"
        f"sys.path.insert(0, {str((ROOT / script).parent)!r})\n"
        "try:\n"
        f"    runpy.run_path({str(ROOT / script)!r}, run_name='__main__')\n"
        "finally:\n"
        f"    assert not set({forbidden!r}) & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert flag in done.stdout


def squeeze(text: str) -> str:
    """Text of a table without its padding."""
    return "\n".join(" ".join(line.split()) for line in text.splitlines())


# data sets and checkpoints


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


def add_train_split(root: Path) -> Path:
    """The first two normal images of each class also as its train split."""
    meta = json.loads((root / "meta.json").read_text())
    meta["train"] = {name: [row for row in rows if not row["anomaly"]][:2] for name, rows in meta["test"].items()}
    (root / "meta.json").write_text(json.dumps(meta))
    return root


def assert_same_checkpoint(one: Path, other: Path) -> None:
    """All tensors are equal, the optimiser's too."""
    first, second = checkpoint_tensors(one), checkpoint_tensors(other)
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def checkpoint_tensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint, the optimiser's too."""
    checkpoint = torch.load(path, weights_only=True)
    moments = {
        f"{index}.{key}": value
        for index, values in checkpoint["optimizer"]["state"].items()
        for key, value in values.items()
    }
    state = checkpoint[methods.method_class(checkpoint["settings"]["method"]).STATE]
    return state | moments


# models and methods


def make_method(name: str, model: AnomalyCLIP_lib.AnomalyCLIP, **changes):
    """A method with its default settings but for `changes`, completed for the model."""
    chosen, flags = methods.method_class(name), methods.flags(name)
    return chosen(model, chosen.complete(flags["SETTINGS"] | flags["TRAINING"] | flags["TESTING"] | changes, model))


def read_references(path: Path) -> tuple[dict[str, np.ndarray], dict]:
    """Reference arrays by name, and the `config` that tells how they came about."""
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    return arrays, json.loads(str(arrays.pop("config")))


def reference_names(path: Path) -> list[str]:
    """Names of the arrays to be compared."""
    with np.load(path) as file:
        return [name for name in file.files if name not in ("config", "seed", "weights_sha256")]


def thinned(array: np.ndarray) -> np.ndarray:
    """Every second, fourth, ... value along the last axis, so that at most LARGEST are left: what tests/data holds."""
    step = 1
    while array[..., ::step].size > LARGEST and step < array.shape[-1]:
        step *= 2
    return array[..., ::step]


def load_reference_model(config: dict, weights_sha256: str, folder: Path) -> AnomalyCLIP_lib.AnomalyCLIP:
    """The model with generated weights, without DPAM; checks that the weights are those of the references."""
    state, digest = generated_weights.generate(config["model"], config["seed"]), hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(name.encode() + tensor.numpy().astype("<f4").tobytes())
    assert digest.hexdigest() == weights_sha256
    torch.save(state, folder / "weights.pt")
    return AnomalyCLIP_lib.load(None, folder / "weights.pt", image_size=config["image"], dpam_layer=1)


def archive_of(tensors: dict, path, extra: dict | None = None) -> None:
    """A TorchScript archive whose state dict holds `tensors`, as OpenAI's files are."""

    class Node(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    root = Node()
    for name, tensor in {**tensors, **(extra or {})}.items():
        node, parts = root, name.split(".")
        for part in parts[:-1]:
            if part not in node._modules:
                node.add_module(part, Node())
            node = node._modules[part]
        node.register_buffer(parts[-1], tensor.half() if tensor.is_floating_point() else tensor)
    torch.jit.script(root).save(path)


def reference_images(config: dict, number: int) -> torch.Tensor:
    """(number, 3, S, S), normalised."""
    stream = np.random.RandomState(2000 + config["seed"])
    return torch.from_numpy(stream.standard_normal((number, 3, config["image"], config["image"])).astype(np.float32))


def assert_same_predictions(one, other, features: dict[str, torch.Tensor]) -> None:
    """Two methods give the same scores and maps, to the last bit."""
    for each in (one, other):
        each.set_classes(["x"])
    with torch.no_grad():
        for ours, theirs in zip(one.predict(features, "x"), other.predict(features, "x"), strict=True):
            assert torch.equal(ours, theirs)


def assert_close(ours: torch.Tensor | np.ndarray, theirs: np.ndarray) -> None:
    """Same shape once thinned, and no value further off than 1e-4."""
    ours = thinned(np.asarray(ours.detach() if isinstance(ours, torch.Tensor) else ours))
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0)
