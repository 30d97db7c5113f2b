"""Reference arrays of the baselines: reading them, and rebuilding the model that they were computed on."""

import hashlib
import json
from pathlib import Path

import generated_weights
import numpy as np
import torch

import AnomalyCLIP_lib

DATA = Path(__file__).parent / "data"
LARGEST = 4096  # values of an array that are kept


def read(path: Path) -> tuple[dict[str, np.ndarray], dict]:
    """Arrays by name, and the `config` that tells how they came about."""
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    return arrays, json.loads(str(arrays.pop("config")))


def names(path: Path) -> list[str]:
    """Names of the arrays to be compared."""
    with np.load(path) as file:
        return [name for name in file.files if name not in ("config", "seed", "weights_sha256")]


def thinned(array: np.ndarray) -> np.ndarray:
    """Every second, fourth, ... value along the last axis, so that at most LARGEST are left: what tests/data holds."""
    step = 1
    while array[..., ::step].size > LARGEST:
        step *= 2
    return array[..., ::step]


def load_model(config: dict, weights_sha256: str, folder: Path) -> AnomalyCLIP_lib.AnomalyCLIP:
    """The model with generated weights, without DPAM; checks that the weights are those of the references."""
    state, digest = generated_weights.generate(config["model"], config["seed"]), hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(name.encode() + tensor.numpy().astype("<f4").tobytes())
    assert digest.hexdigest() == weights_sha256
    torch.save(state, folder / "weights.pt")
    return AnomalyCLIP_lib.load(None, folder / "weights.pt", image_size=config["image"], dpam_layer=1)


def images(config: dict, number: int) -> torch.Tensor:
    """(number, 3, S, S), normalised."""
    stream = np.random.RandomState(2000 + config["seed"])
    return torch.from_numpy(stream.standard_normal((number, 3, config["image"], config["image"])).astype(np.float32))


def assert_close(ours: torch.Tensor | np.ndarray, theirs: np.ndarray) -> None:
    """Same shape once thinned, and no value further off than 1e-4."""
    ours = thinned(np.asarray(ours.detach() if isinstance(ours, torch.Tensor) else ours))
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0)
