"""Pre-train a tiny CLIP such as that of checkpoints/tiny from scratch on images rendered without end.

Each step draws pairs of one scene with and without a defect, and captions that differ in the state words only.
The loss is
    contrastive   class tokens against the captions of the whole batch (the twin's caption is the hard negative)
  + state         class token against the intact and the defective caption of its own scene
  + grounding     DPAM patch tokens against the same two captions, with the rendered mask as the target
  + kind          class token and masked patch tokens against a caption of another defect.
Class tokens are used without ln_post (as AnomalyCLIP does); ln_post is not trained, tau is fixed at 0.07.
The state file beside the log makes the run resumable: after a kill the same command goes on where it stopped. To try
the two files that it writes, copy them over those of checkpoints/tiny, whose card compares both.

    python synthetic/pretrain.py    # an hour and a quarter on 2 cores
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils import InputError, atomic_path, nonempty_path, processor, processor_features, run_cli, write_json

if TYPE_CHECKING:
    import open_clip
    from torch import Tensor, nn

MODEL = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": 96, "patch_size": 8, "width": 128, "layers": 6, "head_width": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 128, "heads": 4, "layers": 4},
}
TAU = 0.07
PAIRS = 32  # scenes per step, each with its twin
SMALL, SMALL_STEPS, FULL = 64, 3600, 96  # pixels; the first steps see small pictures
LEARNING_RATE, WARMUP, DECAY_SHARE = 1e-3, 300, 0.3  # constant after the warm-up, linear to 0 over the last share
WEIGHT_DECAY, CLIP_NORM, EMA = 0.05, 1.0, 0.998
GENERAL, GENERAL_STATE = 0.5, 0.3  # shares of contrastive and of state captions with general state words
COMMON = 6.0  # length of the constant part of the exported patch features, in lengths of the varying part
KIND = 0.4  # weight of telling the kind of a defect from another kind
OBJECT_AGNOSTIC = 0.4  # share of pairs whose state captions say "object" instead of the name
NATURAL, PHOTOGRAPHED, GREY = 0.6, 0.7, 0.3  # shares of scenes of rough materials, of photographs, of those in grey
FINE = 0.3  # share of pairs with a fine defect
CAPTION_GROUPS = 4  # captions of a step are encoded in so many groups
VISIBLE = 0.08  # mean absolute change of a defect's pixels in the finished picture


def size_at(step: int) -> int:
    """Picture side at a step."""
    return SMALL if step < SMALL_STEPS else FULL


def rate_at(step: int, steps: int) -> float:
    """Learning rate at a step."""
    return LEARNING_RATE * min(1.0, (step + 1) / WARMUP, (steps - step) / (DECAY_SHARE * steps))


class Batches:
    """Batch number -> batch, a function of (seed, number) alone; rendered by data-loader workers."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __getitem__(self, step: int) -> dict:
        """One batch of P pairs.

        images (2P, 3, S, S) uint8, the clean ones first; masks (P, S, S) of the defects; named and state: P triples of
        captions each (clean, with the defect, with a different one).
        """
        import numpy as np
        import torch

        from synthetic import captions, defects, photograph, world

        rng = np.random.default_rng([self.seed, step])
        size = size_at(step)
        clean, broken, masks, named, state = [], [], [], [], []
        while len(masks) < PAIRS:
            scene = world.random_scene(rng, size, natural=rng.random() < NATURAL)
            where, what = defects.FREE_KINDS[rng.integers(len(defects.FREE_KINDS))]
            image, mask, visible = defects.add_defect(rng, scene, where, what, tries=3, fine=rng.random() < FINE)
            if not visible:
                continue
            twins, name = (scene.image, image), f"{scene.colour} {scene.noun}"
            if rng.random() < PHOTOGRAPHED:
                camera = photograph.random_camera(rng, size, GREY)
                twins = [photograph.photograph(rng, twin, camera) for twin in twins]
                name = scene.noun if camera.grey else name
                if np.abs(twins[0] - twins[1])[mask].mean() < VISIBLE:
                    continue
            clean.append(twins[0])
            broken.append(twins[1])
            masks.append(mask)
            named.append(captions.caption_triple(rng, name, where, what, general=rng.random() < GENERAL))
            name = "object" if rng.random() < OBJECT_AGNOSTIC else name
            state.append(captions.caption_triple(rng, name, where, what, general=rng.random() < GENERAL_STATE))
        images = np.stack(clean + broken).transpose(0, 3, 1, 2)
        images = np.ascontiguousarray((images * 255 + 0.5).astype(np.uint8))
        return {
            "images": torch.from_numpy(images),
            "masks": torch.from_numpy(np.stack(masks)),
            "named": named,
            "state": state,
        }


def build(seed: int) -> tuple[open_clip.CLIP, open_clip.SimpleTokenizer, list[int], nn.Parameter]:
    """A fresh CLIP with ln_post fixed and an empty token table, and what stands in for the table.

    Returns: clip, tokenizer, the sorted ids of the V tokens that captions use, their trainable rows (V, width).
    """
    import open_clip
    import torch

    from synthetic import captions

    torch.manual_seed(seed)
    clip = open_clip.CLIP(**MODEL)
    clip.logit_scale.requires_grad_(False)
    clip.visual.ln_post.requires_grad_(False)
    tokenizer = open_clip.SimpleTokenizer(context_length=77)
    ids = sorted({tokenizer.sot_token_id, tokenizer.eot_token_id, *tokenizer.encode(captions.all_words())})
    rows = torch.nn.Parameter(clip.token_embedding.weight[ids].detach().clone())
    clip.token_embedding.weight.requires_grad_(False).zero_()
    return clip, tokenizer, ids, rows


def normalize(images: Tensor) -> Tensor:
    """uint8 images (B, 3, S, S) as the vision tower wants them."""
    import torch

    from AnomalyCLIP_lib.model import MEAN, STD

    mean, std = (torch.tensor(values).view(3, 1, 1) * 255 for values in (MEAN, STD))
    return (images - mean) / std


def load(weights: dict[str, Tensor]) -> tuple[open_clip.CLIP, open_clip.SimpleTokenizer]:
    """The model with these weights, for inference."""
    import open_clip

    clip = open_clip.CLIP(**MODEL).eval()
    clip.load_state_dict(weights)
    return clip, open_clip.SimpleTokenizer(context_length=77)


class Trainer:
    """Model, optimiser, running average of the weights, and how to save and restore them."""

    def __init__(self, seed: int, steps: int, precision: str = "fp32") -> None:
        import torch

        self.precision = precision
        self.clip, self.tokenizer, self.ids, self.rows = build(seed)
        self.row_of = {token: row for row, token in enumerate(self.ids)}
        self.token_cache: dict[str, list[int]] = {}
        self.step, self.steps, self.seconds = 0, steps, 0.0
        self.parameters = {"rows": self.rows}
        self.parameters |= {name: p for name, p in self.clip.named_parameters() if p.requires_grad}
        matrices = [p for p in self.parameters.values() if p.ndim > 1]
        vectors = [p for p in self.parameters.values() if p.ndim <= 1]
        groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.9, 0.98), fused=True)
        self.average = {name: p.detach().clone() for name, p in self.parameters.items()}

    def encode_captions(self, texts: list[str]) -> Tensor:
        """Unit text features (T, D); captions of similar length are encoded together, for what pads them costs time."""
        import torch
        import torch.nn.functional as F

        from AnomalyCLIP_lib.text import encode_prompts

        for text in set(texts) - self.token_cache.keys():
            tokens = [self.tokenizer.sot_token_id, *self.tokenizer.encode(text), self.tokenizer.eot_token_id]
            self.token_cache[text] = [self.row_of[token] for token in tokens]
        rows = [torch.tensor(self.token_cache[text]) for text in texts]
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        features = []
        for group in torch.tensor(order).chunk(CAPTION_GROUPS):
            ends = torch.tensor([len(rows[i]) - 1 for i in group])
            padded = torch.nn.utils.rnn.pad_sequence([rows[i] for i in group], batch_first=True)
            features.append(encode_prompts(self.clip, self.rows[padded], ends))
        return F.normalize(torch.cat(features)[torch.tensor(order).argsort()].float(), dim=-1)

    def encode_images(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Unit class tokens (B, D) without ln_post and unit DPAM patch tokens (B, N, D) of uint8 images."""
        import torch.nn.functional as F

        from AnomalyCLIP_lib.dpam import encode

        layers = MODEL["vision_cfg"]["layers"]
        features = encode(self.clip.visual, normalize(images), [layers], dpam_layer=layers)
        token, patches = features["image_features"], features["patch_features"][:, 0, 1:]
        return F.normalize(token.float(), dim=-1), F.normalize(patches.float(), dim=-1)

    def losses(self, batch: dict) -> dict[str, Tensor]:
        """The terms of the loss, and the share of class tokens that know the state of their scene."""
        import torch
        import torch.nn.functional as F

        pairs = len(batch["masks"])
        named = [triple[i] for i in (0, 1, 2) for triple in batch["named"]]  # clean ones first, as the images
        state = [triple[i] for i in (0, 1, 2) for triple in batch["state"]]
        texts = sorted(set(named + state))
        index = {text: i for i, text in enumerate(texts)}
        with torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bf16"):
            features = self.encode_captions(texts)
            token, patches = self.encode_images(batch["images"])

        ids = torch.tensor([index[text] for text in named])
        logits = token @ features[ids].T / TAU  # (2P, 3P)
        same = (ids[: 2 * pairs, None] == ids[None]).float()
        by_image = F.cross_entropy(logits, same / same.sum(1, keepdim=True))
        by_text = logits[:, : 2 * pairs].T
        contrastive = 0.5 * (by_image + F.cross_entropy(by_text, (same / same.sum(0))[:, : 2 * pairs].T))

        states = features[torch.tensor([index[text] for text in state])]
        three = states.unflatten(0, (3, pairs)).transpose(0, 1).repeat(2, 1, 1)  # (2P, 3, D)
        label = torch.arange(2).repeat_interleave(pairs)
        state_logits = torch.einsum("bd,bcd->bc", token, three) / TAU
        state_loss = F.cross_entropy(state_logits[:, :2], label)
        kind_loss = F.softplus(state_logits[pairs:, 2] - state_logits[pairs:, 1]).mean()

        patch_logits = torch.einsum("bnd,bcd->bnc", patches, three) / TAU
        margin = patch_logits[..., 1] - patch_logits[..., 0]
        patch = MODEL["vision_cfg"]["patch_size"]
        covered = F.avg_pool2d(batch["masks"].float()[:, None], patch).flatten(1)
        covered = torch.cat([torch.zeros_like(covered), covered])
        grounding = F.binary_cross_entropy_with_logits(margin, covered, weight=1 + 3 * covered)
        wrong_kind = F.softplus(patch_logits[pairs:, :, 2] - patch_logits[pairs:, :, 1])
        kind_loss = kind_loss + (wrong_kind * covered[pairs:]).sum() / covered.sum()
        share = torch.sigmoid(margin[pairs:])
        dice = 1 - ((2 * (share * covered[pairs:]).sum(1) + 1) / (share.sum(1) + covered[pairs:].sum(1) + 1)).mean()
        return {
            "contrastive": contrastive,
            "state": state_loss,
            "grounding": grounding,
            "dice": dice,
            "kind": kind_loss,
            "state_right": (state_logits[:, :2].argmax(1) == label).float().mean(),
        }

    def train_step(self, batch: dict) -> dict[str, float]:
        """One optimiser step; returns the numbers of the log."""
        import torch

        for group in self.optimizer.param_groups:
            group["lr"] = rate_at(self.step, self.steps)
        terms = self.losses(batch)
        loss = (
            0.3 * terms["contrastive"]
            + 1.5 * terms["state"]
            + 2 * terms["grounding"]
            + 0.5 * terms["dice"]
            + KIND * terms["kind"]
        )
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters.values(), CLIP_NORM)
        self.optimizer.step()
        self.step += 1
        keep = min(EMA, self.step / (self.step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.values()), list(self.parameters.values()), 1 - keep)
        return {name: value.item() for name, value in terms.items()}

    def state(self) -> dict:
        """Everything that a later run needs to go on."""
        weights = {name: p.detach() for name, p in self.parameters.items()}
        counters = {"step": self.step, "seconds": self.seconds}
        return {"weights": weights, "average": self.average, "optimizer": self.optimizer.state_dict(), **counters}

    def restore(self, state: dict) -> None:
        """Take over what state() gave."""
        import torch

        with torch.no_grad():
            for name, p in self.parameters.items():
                p.copy_(state["weights"][name])
                self.average[name].copy_(state["average"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds = state["step"], state["seconds"]

    def averaged(self) -> dict[str, Tensor]:
        """State dict of open_clip.CLIP with the averaged weights, fp16; token rows outside the vocabulary are zero."""
        import torch

        weights = {name: tensor.half() for name, tensor in self.clip.state_dict().items()}
        weights |= {name: tensor.half() for name, tensor in self.average.items() if name != "rows"}
        table = torch.zeros_like(weights["token_embedding.weight"])
        table[self.ids] = self.average["rows"].half()
        return weights | {"token_embedding.weight": table}


def narrow_cone(weights: dict[str, Tensor], batch: dict) -> dict[str, Tensor]:
    """The weights with one constant part, COMMON times their length, in all patch features (through ln_post's bias).

    CLIP's features lie in a narrow cone: cosines differ by little, and maps at tau 0.07 stay graded. Features fitted to
    masks fill the sphere, and prompts learned on them would saturate. The constant points to where the texts and
    patches of `batch` vary least, with a mild preference for directions that need little bias.
    """
    import torch
    import torch.nn.functional as F

    from AnomalyCLIP_lib.dpam import encode

    clip, tokenize = load(weights)
    texts = sorted({text for triple in batch["named"] + batch["state"] for text in triple})
    with torch.no_grad():
        texts = F.normalize(clip.encode_text(tokenize(texts)), dim=-1)
        layers = MODEL["vision_cfg"]["layers"]
        features = encode(clip.visual, normalize(batch["images"]), [layers], dpam_layer=layers)
        patches = features["patch_features"][:, 0, 1:].flatten(0, 1)
        length = patches.norm(dim=-1).mean()
        patches = F.normalize(patches, dim=-1)
        spread = (texts.T @ texts / len(texts) + patches.T @ patches / len(patches)) / 2
        back = torch.linalg.pinv(clip.visual.proj)
        direction = torch.linalg.eigh(spread + 1e-6 * back @ back.T).eigenvectors[:, 0]
        bias = COMMON * length * direction @ back
    return weights | {"visual.ln_post.bias": bias.half()}


def probe(weights: dict[str, Tensor], per_kind: int = 2, size: int = FULL) -> dict[str, float]:
    """Zero-shot AUROC (%) of a few hand-written prompts on the validation categories, mean over categories."""
    import numpy as np
    import torch
    import torch.nn.functional as F
    from sklearn.metrics import roc_auc_score

    from AnomalyCLIP_lib.dpam import encode
    from synthetic import render

    clip, tokenize = load(weights)
    layers = MODEL["vision_cfg"]["layers"]
    scores = {"image": [], "pixel": [], "pixel_without_dpam": []}
    with torch.no_grad():
        prompts = [f"a photo of a {word} object." for word in ("flawless", "perfect", "damaged", "defective")]
        text = F.normalize(clip.encode_text(tokenize(prompts)), dim=-1)
        direction = text[2:].mean(0) - text[:2].mean(0)
        for category in render.categories("validation"):
            images, masks = render.small_test_split("validation", category, seed=7, per_kind=per_kind, size=size)
            masks = np.stack(masks)
            batch = normalize(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2))
            for name, dpam_layer in (("pixel", layers), ("pixel_without_dpam", 1)):
                features = encode(clip.visual, batch, [layers], dpam_layer=dpam_layer)
                token, patches = features["image_features"], features["patch_features"][:, 0, 1:]
                grid = int(patches.shape[1] ** 0.5)
                maps = (F.normalize(patches, dim=-1) @ direction).unflatten(1, (grid, grid))
                maps = F.interpolate(maps[:, None], size=(size, size), mode="bilinear")
                scores[name].append(roc_auc_score(masks.ravel(), maps.numpy().ravel()))
            scores["image"].append(roc_auc_score(masks.any((1, 2)), (F.normalize(token, dim=-1) @ direction).numpy()))
    return {name: 100 * float(np.mean(values)) for name, values in scores.items()}


def export(weights: dict[str, Tensor], folder: Path) -> None:
    """Write open_clip_config.json and model.safetensors."""
    from safetensors.torch import save

    from AnomalyCLIP_lib.model import MEAN, STD

    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "open_clip_config.json", {"model_cfg": MODEL, "preprocess_cfg": {"mean": MEAN, "std": STD}})
    with atomic_path(folder / "model.safetensors") as temporary:
        temporary.write_bytes(save(weights))


def pretrain(
    work: Path,
    out: Path,
    steps: int,
    minutes: float,
    seed: int,
    precision: str = "fp32",
    workers: int = 1,
    log_every: int = 50,
    save_every: int = 250,
) -> Trainer:
    """Train until `steps` steps are done or `minutes` are over; go on from work/state.pt if it is there.

    Every `save_every` steps (and at the end) the state, the export in `out` and the probe are brought up to date.
    """
    import pickle
    import time
    from collections import Counter

    import torch

    try:
        work.mkdir(parents=True, exist_ok=True)
        out.mkdir(parents=True, exist_ok=True)
        log = open(work / "log.txt", "a", encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"{error.filename} cannot be written ({error.strerror}); give another --work or --out"
        ) from None

    def say(line: str) -> None:
        print(line, flush=True)
        print(line, file=log, flush=True)

    trainer = Trainer(seed, steps, precision)
    say(f"{processor()}, {torch.get_num_threads()} threads, {precision}, torch {torch.__version__}")
    if (work / "state.pt").exists():
        try:
            trainer.restore(torch.load(work / "state.pt", weights_only=True))
        except (RuntimeError, KeyError, ValueError, EOFError, pickle.UnpicklingError) as error:
            raise InputError(
                f"{work / 'state.pt'} does not fit this recipe ({error}); remove it to start anew"
            ) from None
        say(f"continuing at step {trainer.step}")

    def save() -> None:
        with atomic_path(work / "state.pt") as temporary:
            torch.save(trainer.state(), temporary)
        weights = narrow_cone(trainer.averaged(), spare)
        export(weights, out)
        scores = ", ".join(f"{name} {value:.1f}" for name, value in probe(weights).items())
        say(f"step {trainer.step}: validation AUROC {scores}")

    loader = torch.utils.data.DataLoader(
        Batches(seed),
        batch_size=None,
        sampler=range(trainer.step, steps),
        num_workers=workers,
        prefetch_factor=8 if workers else None,
    )
    spare = Batches(seed)[steps]  # never trained on
    start, before, sums = time.monotonic(), trainer.seconds, Counter()
    for batch in loader:
        sums.update(trainer.train_step(batch))
        trainer.seconds = before + time.monotonic() - start
        over = trainer.step == steps or time.monotonic() - start > 60 * minutes
        if trainer.step % log_every == 0:
            means = ", ".join(f"{name} {value / log_every:.3f}" for name, value in sums.items())
            say(f"step {trainer.step}/{steps}, {trainer.seconds / 60:.1f} min: {means}")
            sums.clear()
        if over:
            break
        if trainer.step % save_every == 0:
            save()
    save()
    log.close()
    return trainer


def main() -> None:
    parser = argparse.ArgumentParser(description="Pre-train a tiny CLIP on rendered images; resumes by itself.")
    parser.add_argument(
        "--work",
        type=nonempty_path,
        default=Path("results/pretrain"),
        help="folder of the state file and the log (results/pretrain)",
    )
    parser.add_argument(
        "--out",
        type=nonempty_path,
        default=Path("results/pretrain/checkpoint"),
        help="folder of open_clip_config.json and model.safetensors (results/pretrain/checkpoint)",
    )
    parser.add_argument("--steps", type=int, default=5600, help="length of the schedule; one step is 32 pairs")
    parser.add_argument("--minutes", type=float, default=600, help="stop after so many minutes, ready to be continued")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--precision", choices=("fp32", "bf16", "auto"), default="auto", help="auto: bf16 where the processor has AMX"
    )
    parser.add_argument("--fresh", action="store_true", help="ignore and overwrite an earlier state in --work")
    args = parser.parse_args()
    if args.steps < 1 or args.minutes <= 0:
        raise InputError("--steps and --minutes must be positive")
    if args.fresh:
        (args.work / "state.pt").unlink(missing_ok=True)
    import torch

    precision = args.precision
    if precision == "auto":  # AVX-512 alone multiplies bf16 no faster in products as small as these
        precision = "bf16" if "amx_bf16" in processor_features() else "fp32"
    torch.use_deterministic_algorithms(True)  # else the gradient of an indexed sum depends on the threads' order
    pretrain(args.work, args.out, args.steps, args.minutes, args.seed, precision)


if __name__ == "__main__":
    run_cli(main)
