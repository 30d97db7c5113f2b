"""Fixtures shared by the tests: a small CLIP with generated weights and the authors' outputs for it."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(Path(__file__).parent))

import generated_weights  # noqa: E402


@pytest.fixture(scope="session")
def reference() -> dict:
    """Outputs of the authors' implementation on generated weights (thinned out), and their `config`."""
    with np.load(ROOT / "tests" / "data" / "anomalyclip_reference.npz") as file:
        arrays = {name: file[name] for name in file.files}
    return arrays | {"config": json.loads(str(arrays["config"]))}


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
