"""The prompt learner: the authors' numbers and file layout, object-aware prompts, files that do not fit."""

import numpy as np
import open_clip
import pytest
import torch
from helpers import make_method

from prompt_ensemble import PromptLearner, learner_sizes
from utils import InputError


def test_prompts_and_text_features(reference, reference_learner):
    embeddings, tokens = reference_learner.prompts()
    assert (tokens.numpy() == reference["tokenized_prompts"]).all()
    for ours, name in ((embeddings[:, :17], "prompt_embeddings"), (reference_learner(), "text_features")):
        assert ours.shape == reference[name].shape
        scale = np.abs(reference[name]).max() if name == "text_features" else 0.1
        np.testing.assert_allclose(ours.detach(), reference[name], atol=1e-5 * scale, rtol=0)


def test_checkpoint_layout_at_width_768():
    """Exactly the names and shapes of the authors' files, and a file in that layout loads."""

    class Width768:
        num_text_layers, device = 12, torch.device("cpu")
        tokenizer = open_clip.SimpleTokenizer()
        clip = torch.nn.Module()

    Width768.clip.token_embedding, Width768.clip.ln_final = torch.nn.Embedding(49408, 768), torch.nn.LayerNorm(768)
    expected = {}
    for side in ("pos", "neg"):
        expected |= {f"ctx_{side}": (1, 1, 12, 768), f"tokenized_prompts_{side}": (1, 1, 77)}
        expected |= {f"token_prefix_{side}": (1, 1, 1, 768), f"token_suffix_{side}": (1, 1, 64, 768)}
    for index in range(8):
        expected[f"compound_prompts_text.{index}"] = (4, 768)
        expected[f"compound_prompt_projections.{index}.weight"] = (896, 768)
        expected[f"compound_prompt_projections.{index}.bias"] = (896,)
    state = PromptLearner(Width768()).state_dict()
    assert {key: tuple(value.shape) for key, value in state.items()} == expected
    normal = [49406] + [343] * 12 + [14115, 269, 49407]
    abnormal = [49406] + [343] * 12 + [13568, 14115, 269, 49407]
    assert state["tokenized_prompts_pos"].flatten().tolist() == normal + [0] * (77 - len(normal))
    assert state["tokenized_prompts_neg"].flatten().tolist() == abnormal + [0] * (77 - len(abnormal))

    theirs = {
        key: torch.randint(9, shape) if "tokenized" in key else torch.randn(shape) for key, shape in expected.items()
    }
    assert learner_sizes(theirs) == {"n_ctx": 12, "depth": 9, "t_n_ctx": 4}
    loaded = PromptLearner(Width768())
    loaded.load_state_dict(theirs)
    assert all(torch.equal(value, theirs[key]) for key, value in loaded.state_dict().items())


def test_checkpoint_of_another_width_or_kind(small_model):
    method = make_method("anomalyclip", small_model, depth=3)
    state = PromptLearner(small_model, depth=3).state_dict()
    method.load(state)
    assert all(torch.equal(value, state[key]) for key, value in method.learner.state_dict().items())
    with pytest.raises(InputError, match="prompts have width 64, the model's text tower 128"):
        method.load(state | {"ctx_pos": torch.zeros(1, 1, 12, 64)})
    with pytest.raises(InputError, match="ctx_neg is missing or unexpected"):
        method.load({key: value for key, value in state.items() if key != "ctx_neg"})
    with pytest.raises(InputError, match="no prompt learner"):
        learner_sizes({"ctx_pos": torch.zeros(12, 64)})
    with pytest.raises(InputError, match="12 blocks"):
        PromptLearner(small_model, depth=13)


def test_object_aware_prompts_put_the_class_name_in_place_of_object(small_model):
    learner = PromptLearner(small_model)
    with torch.no_grad():
        aware, agnostic = learner(["bottle", "object"]), learner()
    assert aware.shape == (2, 2, 96)
    torch.testing.assert_close(aware[1], agnostic)
    assert (aware[0] - agnostic).abs().max() > 1e-3
