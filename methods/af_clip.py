"""AF-CLIP: an adaptor that looks at neighbourhoods of three sizes, and context vectors before two fixed texts.

Fang, Lv and Su, "AF-CLIP: Zero-Shot Anomaly Detection via Anomaly-Focused CLIP Adaptation", ACM Multimedia 2025, arXiv
2507.19949; details as in its released code. That code trains on the test split of MVTec AD, or of VisA to be tested on
MVTec AD. Its few-shot variant, a memory of normal images, is not here.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from AnomalyCLIP_lib import AnomalyCLIP
from AnomalyCLIP_lib.dpam import run_blocks
from AnomalyCLIP_lib.model import float32_convolutions
from AnomalyCLIP_lib.similarity import TEMPERATURE, to_grid
from AnomalyCLIP_lib.text import encode_prompts
from methods._base import Base
from utils import InputError

SETTINGS = {
    "model": "ViT-L-14-336",
    "pretrained": "openai",
    "image_size": None,
    "features_list": None,
    "n_ctx": 12,
}
TRAINING = {
    "epoch": 2,
    "learning_rate": 0.0001,
    "batch_size": 8,
    "lambda_local": 1.0,
    "lambda_alignment": 1.0,
    "gradient": "released",
}
TESTING = {"sigma": 4.0}

TEXTS = ("without defect.", "with defect.")  # normal, abnormal; no class is named
WINDOWS = (3, 5)  # sides of the neighbourhoods, beside that of one patch
WINDOW_SIGMA = 4.0  # patches
HEADS, HEAD_WIDTH = 8, 64  # of the adaptor, whatever the tower's width
FOCAL_GAMMA = 4


class Method(Base):
    """See `Base`; features: tokens (B, L, 1 + G*G, width), the output of L tapped blocks as it is, class token first.

    Each block gives three sets of tokens, one for each size of neighbourhood.
    """

    STATE = "af_clip"

    def __init__(self, model, settings: dict) -> None:
        super().__init__(model, settings)
        self.learner = Learner(model, settings["n_ctx"])
        self.text_features: dict[str, torch.Tensor] = {}  # (2, D) of each class, all the same

    @staticmethod
    def sizes(state: dict[str, torch.Tensor]) -> dict[str, int]:
        """n_ctx of a Learner's state dict; InputError if it is not one."""
        own = all(name == "prompt" or name.startswith("adaptor.attention.") for name in state)
        shape = tuple(getattr(state.get("prompt"), "shape", ()))
        if not own or len(shape) != 3 or shape[0] != 1:
            raise InputError(
                "the checkpoint does not hold AF-CLIP's prompt and adaptor (prompt of shape (1, n_ctx, width), "
                "adaptor.attention.norm.weight, ...)"
            )
        return {"n_ctx": shape[1]}

    def encode(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        run = run_blocks(self.model.clip.visual, images, self.settings["features_list"])
        return {"tokens": torch.stack(run.tokens, dim=1)}

    @classmethod
    def check_training(cls, settings: dict, dataset) -> list[str]:
        return [] if dataset.has_masks else ["the data set has no masks: training with the loss of the images alone"]

    def losses(self, features, labels, masks, class_names) -> dict[str, torch.Tensor]:
        """Focal loss of the images; focal and L1 loss of their maps, and the alignment of patches, all on the grid.

        The alignment loss compares pairs of a whole batch and is no mean over its images. Of several processes each
        compares the pairs of its own share, and the results are averaged: not quite what one process would compute.
        """
        unit_features = self.unit_features(features["tokens"])
        abnormal = abnormal_probabilities(unit_features, self.learner())  # (B, 1 + G*G)
        losses = {"image_loss": focal_loss(abnormal[:, 0], labels.float())}
        if masks is not None:
            targets, released = patch_targets(masks, self.model.grid), self.settings["gradient"] == "released"
            local, alignment = self.settings["lambda_local"], self.settings["lambda_alignment"]
            losses["focal_loss"] = local * focal_loss(abnormal[:, 1:], targets, released)
            losses["l1_loss"] = local * F.l1_loss(abnormal[:, 1:], targets)
            losses["alignment_loss"] = alignment * alignment_loss(unit_features[:, :, 1:], targets)
        return losses

    def unit_features(self, tokens: torch.Tensor) -> torch.Tensor:
        """Unit features (B, 3 L, 1 + G*G, D) of the token sets of tokens (B, L, 1 + G*G, width); see `token_sets`."""
        visual = self.model.clip.visual
        adapted = visual.ln_post(self.learner.adaptor(token_sets(tokens)))
        return F.normalize(adapted @ visual.proj.float(), dim=-1)  # float: --precision is that of the tower alone

    def set_classes(self, class_names: list[str]) -> None:
        self.text_features = dict.fromkeys(class_names, self.learner())

    def predict(self, features, class_name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """P(abnormal) of the class token, and of the patches."""
        abnormal = abnormal_probabilities(self.unit_features(features["tokens"]), self.text_features[class_name])
        return abnormal[:, 0], to_grid(abnormal[:, 1:, None]).squeeze(1)

    @classmethod
    def highest(cls, settings: dict) -> float:
        return 1.0


class Learner(nn.Module):
    """All that is learned: the context vectors that both texts share, and the adaptor that all token sets share.

    Args:
        model: the frozen model; it is used, not owned: it is not among the learner's parameters.
        n_ctx: context vectors.
    """

    def __init__(self, model: AnomalyCLIP, n_ctx: int = 12) -> None:
        super().__init__()
        self._model = (model,)  # a tuple hides the frozen model from parameters() and state_dict()
        self._tokens = model.tokenizer(list(TEXTS)).to(model.device)  # (2, 77)
        length, longest = n_ctx + int(self._tokens.argmax(dim=-1).max()) + 1, self._tokens.shape[1]
        if n_ctx < 1:
            raise InputError(f"n_ctx {n_ctx} must be at least 1")
        if length > longest:
            raise InputError(
                f"n_ctx {n_ctx} makes prompts of {length} tokens, but the text tower takes {longest}; lower it"
            )
        self.prompt = nn.Parameter(torch.empty(1, n_ctx, model.clip.ln_final.weight.shape[0]).normal_(std=0.01))
        self.adaptor = Adaptor(model.clip.visual.proj.shape[0])
        self.to(model.device)

    def prompts(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings (2, n_ctx + 77, width), context before the start token, and where the texts end (2,)."""
        embeddings = self._model[0].clip.token_embedding(self._tokens)
        ends = self.prompt.shape[1] + self._tokens.argmax(dim=-1)
        return torch.cat([self.prompt.expand(2, -1, -1), embeddings], dim=1), ends

    def forward(self) -> torch.Tensor:
        """Text features (2, D), normal and abnormal, unnormalised."""
        return encode_prompts(self._model[0].clip, *self.prompts())


class Adaptor(nn.Module):
    """LayerNorm and one attention layer, with no residual connection around them; state dict as the authors'."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = HEADS * HEAD_WIDTH
        layers = {name: nn.Linear(width, inner, bias=False) for name in ("to_q", "to_k", "to_v")}
        layers["to_out"] = nn.Sequential(nn.Linear(inner, width))
        self.attention = nn.ModuleDict({"norm": nn.LayerNorm(width), "attn": nn.ModuleDict(layers)})

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, S, N, width), S token sets, to the same shape; each set attends to itself."""
        layers = self.attention["attn"]
        x = self.attention["norm"](tokens).flatten(0, 1)  # (B S, N, width)
        q, k, v = (layers[name](x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for name in ("to_q", "to_k", "to_v"))
        heads = F.scaled_dot_product_attention(q, k, v)  # (B S, heads, N, head width)
        return layers["to_out"](heads.transpose(1, 2).flatten(2)).unflatten(0, tokens.shape[:2])


def token_sets(tokens: torch.Tensor) -> torch.Tensor:
    """Tokens of L blocks (B, L, 1 + G*G, width) as they are, and with neighbouring patches averaged: (B, 3 L, ...).

    Blocks outer, neighbourhoods inner. The class token is the same in all three sets of a block.
    """
    patches = to_grid(tokens[:, :, 1:].flatten(0, 1))  # (B L, width, G, G)
    sets = [tokens]
    for size in WINDOWS:
        kernel = window(size).to(tokens).expand(tokens.shape[-1], 1, size, size)
        with float32_convolutions():
            averaged = F.conv2d(patches, kernel, padding=size // 2, groups=len(kernel))  # beyond the border are zeros
        averaged = averaged.flatten(2).transpose(1, 2).unflatten(0, tokens.shape[:2])  # (B, L, G*G, width)
        sets.append(torch.cat([tokens[:, :, :1], averaged], dim=2))
    return torch.stack(sets, dim=2).flatten(1, 2)


def window(size: int) -> torch.Tensor:
    """Weights (size, size) of a neighbourhood: a Gaussian so wide that they are nearly alike; they add up to 1."""
    offsets = torch.arange(size) - size // 2
    side = (-(offsets**2) / (2 * WINDOW_SIGMA**2)).exp()
    weights = torch.outer(side, side)
    return weights / weights.sum()


def abnormal_probabilities(unit_features: torch.Tensor, text_features: torch.Tensor) -> torch.Tensor:
    """P(abnormal) (B, N) from the cosines with both texts, summed over S token sets.

    unit_features: (B, S, N, D), unit vectors; text_features: (2, D) normal, abnormal, any length of vector. The sum,
    not the mean: where the sets agree, the temperature is 0.07 / S, and probabilities of exactly 0 and 1 are common.
    """
    cosines = unit_features @ F.normalize(text_features, dim=-1).T  # (B, S, N, 2)
    return (cosines.sum(dim=1) / TEMPERATURE).softmax(dim=-1)[..., 1]


def patch_targets(masks: torch.Tensor, grid: int) -> torch.Tensor:
    """Masks (B, S, S) on the grid of patches, (B, G*G): 1 anomalous, 0 normal, 0.5 where a patch is just half so.

    Bilinear without antialias: only the pixels in the middle of a patch count, and small defects may vanish.
    """
    shares = F.interpolate(masks.float().unsqueeze(1), size=grid, mode="bilinear", align_corners=False)
    return ((shares.flatten(1) - 0.5).sign() + 1) / 2


def focal_loss(probabilities: torch.Tensor, targets: torch.Tensor, released: bool = False) -> torch.Tensor:
    """Mean of BCE(p, t) (1 - p_t)^4, where p_t = p t + (1 - p)(1 - t); tensors of one shape, t of 0, 0.5 or 1.

    released: with the gradient of the released code, from which the published numbers come. Its alignment loss marks
    normal patches by -1 in what is meant to be a copy of the targets, but shares their memory; autograd does not notice
    and takes these -1 for targets. So the value is right, but where t = 0 the derivative of BCE becomes
    (p + 1) / (p (1 - p)) instead of 1 / (1 - p), and that of p_t becomes -2 instead of -1: normal patches weigh 2.3
    times as much at p = 0.5, 22 times at p = 0.01.
    """
    bce = F.binary_cross_entropy(probabilities, targets, reduction="none")
    p_t = probabilities * targets + (1 - probabilities) * (1 - targets)
    if released:
        taken = torch.where(targets == 0, -1, targets)
        variance = (probabilities * (1 - probabilities)).clamp(min=1e-12)  # as torch's own derivative of BCE
        bce = with_slope(bce, probabilities, (probabilities - taken) / variance)
        p_t = with_slope(p_t, probabilities, taken - (1 - targets))
    return (bce * (1 - p_t) ** FOCAL_GAMMA).mean()


def with_slope(values: torch.Tensor, x: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
    """`values` as they are, whose derivative with respect to `x` is taken to be `slope`."""
    return values.detach() + slope.detach() * (x - x.detach())


def alignment_loss(unit_features: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """How much more alike patches of different kinds are than patches of one kind: a mean over S token sets.

    For each set max(0, mean cosine of all pairs of a normal and an anomalous patch - mean cosine of all pairs of one
    kind). Pairs are of one image each, but the means run over those of the whole batch; a patch also makes a pair with
    itself. 0 if no image has patches of both kinds.

    unit_features: (B, S, N, D), unit vectors; targets: (B, N), 0.5: of neither kind. The cosines of all pairs of two
    groups of vectors add up to the inner product of the groups' sums, so no N x N matrix is needed.
    """
    kinds = torch.stack([targets == 0, targets == 1], dim=1).float()  # (B, 2, N)
    counts = kinds.sum(dim=-1)  # (B, 2)
    sums = kinds.unsqueeze(1) @ unit_features  # (B, S, 2, D)
    different = (sums[:, :, 0] * sums[:, :, 1]).sum(dim=(0, 2)) / counts.prod(dim=1).sum().clamp(min=1)  # (S,)
    same = sums.square().sum(dim=(0, 2, 3)) / counts.square().sum().clamp(min=1)
    return (different - same).clamp(min=0).mean()
