"""Fixtures shared by the tests: a small CLIP with generated weights, the authors' outputs for it, a small data set."""

import json
from pathlib import Path

import generated_weights
import numpy as np
import pytest
import torch
from helpers import QUICK, REFERENCES, TINY, add_train_split, make_data, run

import methods


@pytest.fixture(scope="session")
def reference() -> dict:
    """Outputs of the authors' implementation on generated weights (thinned out), and their `config`."""
    with np.load(REFERENCES / "anomalyclip_reference.npz") as file:
        arrays = {name: file[name] for name in file.files}
    return arrays | {"config": json.loads(str(arrays["config"]))}


@pytest.fixture(scope="session")
def reference_images(reference) -> torch.Tensor:
    """The eight normalised images of the reference arrays."""
    size = reference["config"]["image"]
    values = np.random.RandomState(2000).standard_normal((8, 3, size, size))
    return torch.from_numpy(values.astype(np.float32))


@pytest.fixture(scope="session")
def weights_file(tmp_path_factory) -> Path:
    """State dict with OpenAI's names, as the reference arrays were made on."""
    path = tmp_path_factory.mktemp("weights") / "openai_names.pt"
    torch.save(generated_weights.generate(generated_weights.SMALL, seed=0), path)
    return path


@pytest.fixture(scope="session")
def small_model(weights_file):
    """AnomalyCLIP on the generated weights, 126 px, DPAM as released."""
    import AnomalyCLIP_lib

    return AnomalyCLIP_lib.load(None, weights_file, image_size=126, dpam_layer=20)


@pytest.fixture
def reference_learner(small_model):
    """A prompt learner with the vectors that the reference arrays were made with."""
    from prompt_ensemble import PromptLearner

    learner, stream = PromptLearner(small_model), np.random.RandomState(1000)
    with torch.no_grad():
        for parameter in (learner.ctx_pos, learner.ctx_neg, *learner.compound_prompts_text):
            parameter.copy_(torch.from_numpy(stream.standard_normal(parameter.shape) * 0.02))
    return learner


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """A small data set with masks and a train split; not to be changed."""
    return add_train_split(make_data(tmp_path_factory.mktemp("data set")))


@pytest.fixture(scope="session")
def trained(data, tmp_path_factory) -> Path:
    """Run folder of two epochs of AnomalyCLIP on `data`; not to be changed."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as monkeypatch:
        arguments = ("--train_data_path", data, "--save_path", folder, "--epoch", 2, *QUICK)
        assert run(monkeypatch, "train", *arguments) == 0
    return folder


@pytest.fixture(scope="session")
def checkpoints(data, tmp_path_factory) -> dict[str, Path]:
    """A checkpoint of each method that has any; not to be changed."""
    paths = {}
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name in (name for name in methods.names() if methods.method_class(name).STATE):
            folder = tmp_path_factory.mktemp(name)
            arguments = ("--train_data_path", data, "--save_path", folder, "--epoch", 2, "--method", name)
            assert run(monkeypatch, "train", *arguments, *TINY) == 0
            paths[name] = folder / "epoch_2.pth"
    return paths
