"""What the benchmarks share: the machine's matrix-product rate, peak memory, alternating timing, the last line."""

import json
import os
import platform
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def matrix_product_rate(seconds: float = 2.0, width: int = 2048, dtype=None) -> float:
    """Best rate of a square matrix product on this machine, FLOP/s; of float32 unless another torch dtype is given."""
    import torch

    a, b, best = torch.randn(width, width, dtype=dtype), torch.randn(width, width, dtype=dtype), 0.0
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        a @ b
        best = max(best, 2 * width**3 / (time.perf_counter() - start))
    return best


def attention_rate(tokens: int, heads: int, head_width: int, seconds: float = 2.0, dtype=None) -> float:
    """Best rate of torch's fused attention on one image, FLOP/s of its two products; of float32 or the dtype given."""
    import torch

    q, k, v = torch.randn(3, 1, heads, tokens, head_width, dtype=dtype)
    best, end = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        torch.nn.functional.scaled_dot_product_attention(q, k, v)
        best = max(best, 4 * heads * tokens**2 * head_width / (time.perf_counter() - start))
    return best


def generated_model(small: bool, text: dict, joint: int = 768):
    """ViT-L/14@336 at 518 px with generated weights (`small`: width 256, 12 blocks, 252 px) and its vision_cfg.

    text: open_clip's text_cfg, without the context and the vocabulary.
    """
    import torch
    from open_clip import CLIP, SimpleTokenizer

    from AnomalyCLIP_lib import AnomalyCLIP

    torch.manual_seed(0)
    vision = {"width": 1024, "layers": 24, "image_size": 336, "patch_size": 14}
    vision |= {"width": 256, "layers": 12} if small else {}
    image_size, dpam_layer = (252, 11) if small else (518, 20)
    clip = CLIP(embed_dim=joint, vision_cfg=vision, text_cfg=text, quick_gelu=True)
    return AnomalyCLIP(clip, SimpleTokenizer(), image_size, dpam_layer), vision


def windows_model(small: bool, text: dict):
    """WinCLIP's backbone with generated weights (`small`: width 256, 6 blocks) and its vision_cfg.

    text: as in `generated_model`.
    """
    import open_clip
    import torch

    import methods
    from AnomalyCLIP_lib import AnomalyCLIP

    config = open_clip.get_model_config(methods.flags("winclip")["SETTINGS"]["model"])
    vision = config["vision_cfg"] | ({"width": 256, "layers": 6} if small else {})
    torch.manual_seed(0)
    clip = open_clip.CLIP(config["embed_dim"], vision, text)
    return AnomalyCLIP(clip, open_clip.SimpleTokenizer(), vision["image_size"]), vision


def alternate(paths: dict[str, Callable[[], object]], rounds: int) -> tuple[dict[str, float], dict[str, object]]:
    """Best seconds and last result of each path, run in turns so that a change of the machine's speed hits all."""
    best, results = dict.fromkeys(paths, float("inf")), {}
    for _ in range(rounds):
        for name, path in paths.items():
            start = time.perf_counter()
            results[name] = path()
            best[name] = min(best[name], time.perf_counter() - start)
    return best, results


def net_peak_memory(path: Callable[[], object]) -> float | None:
    """MB by which the resident size rises at most while `path` runs; None where the system cannot reset its peak."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        before = status_mb("VmRSS")
        path()
        return status_mb("VmHWM") - before
    except OSError:
        return None


def status_mb(key: str) -> float:
    """A size from /proc/self/status, MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 2**10


def peak_memory() -> float:
    """Largest resident size of this process so far, MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def machine() -> dict[str, object]:
    """What the figures were measured on."""
    import torch

    from utils import processor

    return {
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def finish(figures: dict) -> None:
    """Print the benchmark's last line: one JSON object."""
    print(json.dumps(figures | {"machine": machine()}))
