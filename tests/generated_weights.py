"""CLIP weights made from numbers alone, so that tests can hold a whole model without shipping one.

The reference arrays in tests/data were computed by the authors' implementation on exactly these weights.
"""

import zlib

import numpy as np
import torch

SMALL = {
    "vision_width": 128, "vision_layers": 24, "patch": 14, "grid": 6,
    "embed_dim": 96, "text_width": 128, "text_layers": 12, "vocab": 49408, "context": 77,
}  # fmt: skip
VIT_L_14_336 = SMALL | {"vision_width": 1024, "grid": 24, "embed_dim": 768, "text_width": 768}


def parameter_shapes(geometry: dict) -> dict[str, tuple[int, ...]]:
    """Names and shapes of OpenAI's CLIP state dict for this geometry."""
    vision, text, joint = geometry["vision_width"], geometry["text_width"], geometry["embed_dim"]
    shapes = {
        "positional_embedding": (geometry["context"], text),
        "text_projection": (text, joint),
        "logit_scale": (),
        "visual.class_embedding": (vision,),
        "visual.positional_embedding": (geometry["grid"] ** 2 + 1, vision),
        "visual.proj": (vision, joint),
        "visual.conv1.weight": (vision, 3, geometry["patch"], geometry["patch"]),
        "token_embedding.weight": (geometry["vocab"], text),
    }
    norms = {"visual.ln_pre": vision, "visual.ln_post": vision, "ln_final": text}
    towers = (("visual.transformer", vision, "vision_layers"), ("transformer", text, "text_layers"))
    for tower, width, layers in towers:
        for index in range(geometry[layers]):
            block = f"{tower}.resblocks.{index}"
            linears = (
                ("attn.in_proj_", 3 * width, width),
                ("attn.out_proj.", width, width),
                ("mlp.c_fc.", 4 * width, width),
                ("mlp.c_proj.", width, 4 * width),
            )
            for name, rows, columns in linears:
                shapes[f"{block}.{name}weight"], shapes[f"{block}.{name}bias"] = (rows, columns), (rows,)
            norms |= {f"{block}.ln_1": width, f"{block}.ln_2": width}
    for name, width in norms.items():
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (width,), (width,)
    return shapes


def generate(geometry: dict, seed: int) -> dict[str, torch.Tensor]:
    """State dict in float32 whose values (but logit_scale) are exact in half precision, as in published CLIP files."""
    return {name: parameter(name, shape, seed) for name, shape in parameter_shapes(geometry).items()}


def parameter(name: str, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """One tensor, drawn from a stream that depends on its name and the seed only."""
    if name == "logit_scale":
        return torch.tensor(np.log(1 / 0.07), dtype=torch.float32)
    stream = np.random.RandomState((zlib.crc32(name.encode()) + seed) % 2**32)
    values = stream.standard_normal(shape).astype(np.float32)
    if "ln_" in name:
        values = values * np.float32(0.1) + (1 if name.endswith("weight") else 0)
    elif name.endswith("bias"):
        values = values * np.float32(0.02)
    elif len(shape) > 1 and "embedding" not in name:
        scale = 1 / np.sqrt(np.prod(shape[1:]))
        values = (values.astype(np.float64) * scale).astype(np.float32)  # NumPy 1 would multiply in float32
    else:
        values = values * np.float32(0.3 if "visual" in name else 0.1)
    return torch.from_numpy(values.astype(np.float16).astype(np.float32))
