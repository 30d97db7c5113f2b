"""Test zero-shot: find anomalies in data sets that the prompts were not learned on (paper sections 3.4 and 4)."""

import argparse
import hashlib
import json
from pathlib import Path

from options import (
    add_shared_flags,
    load_model,
    not_negative,
    positive,
    read_checkpoint,
    settings_from,
    weights_checksum,
)
from utils import (
    InputError,
    environment,
    get_logger,
    make_run_folder,
    pick_device,
    run_cli,
    set_seed,
    write_json,
    write_text,
)

METRICS = {
    "image-level": ("image_auroc", "image_ap"),
    "pixel-level": ("pixel_auroc", "pixel_aupro"),
    "image-pixel-level": ("pixel_auroc", "pixel_aupro", "image_auroc", "image_ap"),
}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, epilog="Settings not given come from the checkpoint.")
    parser.add_argument("--data_path", type=Path, required=True, help="root of the data set; holds meta.json")
    parser.add_argument("--save_path", type=Path, default=Path("results"), help="run folder (results)")
    parser.add_argument("--checkpoint_path", type=Path, help="epoch_N.pth of train.py or of the authors")
    parser.add_argument("--dataset", default="mvtec", help="name of the data set, for the records")
    parser.add_argument("--split", choices=("train", "test"), default="test")
    parser.add_argument("--metrics", choices=tuple(METRICS), default="image-pixel-level")
    parser.add_argument("--batch_size", type=positive, default=8)
    parser.add_argument("--sigma", type=not_negative, default=4.0, help="Gaussian filter of the maps, pixels (4)")
    parser.add_argument(
        "--exact_aupro", action="store_true", help="also AUPRO as MVTec AD defines it, in its own column"
    )
    parser.add_argument("--map_dtype", choices=("float32", "float16"), default="float32", help="type of the kept maps")
    parser.add_argument("--vis", action="store_true", help="write pictures: image, mask, heat map")
    add_shared_flags(parser)
    return parser.parse_args()


def test(args: argparse.Namespace) -> None:
    import numpy as np
    import torch
    from tabulate import tabulate
    from torch.utils.data import DataLoader, Subset
    from tqdm import tqdm

    from dataset import AnomalyDataset

    checkpoint = read_checkpoint(args.checkpoint_path) if args.checkpoint_path else None
    settings = settings_from(args, checkpoint)
    if (checkpoint is None) != (settings["prompt"] == "hand-written"):
        raise InputError("give either --checkpoint_path FILE (learned prompts) or --prompt hand-written (no file)")
    device = pick_device(args.device)
    set_seed(args.seed)
    model = load_model(settings, args.feature_map_layer, device)
    weights = weights_checksum(model)
    if settings.setdefault("weights_sha256", weights) != weights:
        raise InputError(
            f"{args.checkpoint_path} was trained on other weights than {settings['pretrained'] or settings['model']} "
            "holds; give the file it was trained with as --pretrained, or train again"
        )
    names = list(METRICS[args.metrics])
    if args.exact_aupro and "pixel_aupro" in names:
        names.insert(names.index("pixel_aupro") + 1, "pixel_aupro_exact")
    data = AnomalyDataset(args.data_path, model.preprocess, model.image_size, split=args.split)
    folder = make_run_folder(args.save_path)
    logger = get_logger(folder)
    record = {"dataset": args.dataset, "split": args.split, "data_checksum": data.checksum, "settings": settings}
    write_json(folder / "args.json", {"arguments": vars(args) | settings, **record, "versions": environment()})
    logger.info("testing on %s (%s split): %d images, %s", args.dataset, args.split, len(data), settings)
    for warning in data.warnings:
        logger.warning("%s", warning)

    with torch.no_grad():
        text_features = text_features_of(model, args.checkpoint_path, checkpoint, settings["prompt"], data.classes)
    finished = folder / "finished_classes.json"  # what an interrupted run of the same test had done
    key = {**record, "metrics": names, "sigma": args.sigma, "map_dtype": args.map_dtype}
    key["checkpoint_sha256"] = checkpoint and hashlib.sha256(args.checkpoint_path.read_bytes()).hexdigest()
    results = read_finished(finished, key)
    progress = tqdm(total=len(data), desc="testing", unit="image")
    for class_name in data.classes:
        part = Subset(data, [i for i, entry in enumerate(data.entries) if entry.class_name == class_name])
        if class_name in results:
            logger.info("%s: finished before the interruption, not computed again", class_name)
            progress.update(len(part))
            continue
        side, position, paths = model.image_size, 0, []
        scores, labels = np.empty(len(part), np.float32), np.empty(len(part), np.int64)
        maps, masks = np.empty((len(part), side, side), args.map_dtype), np.empty((len(part), side, side), bool)
        for batch in DataLoader(part, args.batch_size, num_workers=args.num_workers):
            rows = slice(position, position + len(batch["label"]))
            scores[rows], maps[rows] = model.detect(
                batch["image"].to(device), text_features[class_name], settings["features_list"], args.sigma
            )
            masks[rows], labels[rows] = batch["mask"] > 0, batch["label"]
            paths += batch["image_path"]
            position = rows.stop
            progress.update(len(batch["label"]))
        blank = int(((labels == 1) & ~masks.any(axis=(1, 2))).sum())
        if data.has_masks and blank:
            logger.warning("%s: the masks of %d anomalous images mark no pixel at this size", class_name, blank)
        masks = masks if data.has_masks else None
        results[class_name] = evaluate(names, labels, scores, masks, maps)
        if args.vis:
            draw(folder / "vis", data.root, paths, masks, maps)
        write_json(finished, {"key": key, "classes": results})
    progress.close()

    overall = {name: mean([row[name] for row in results.values()]) for name in names}
    rows = [
        [label, *("-" if row[name] is None else f"{row[name]:.1f}" for name in names)]
        for label, row in [*results.items(), ("mean", overall)]
    ]
    table = tabulate(rows, headers=["objects", *names], tablefmt="pipe", disable_numparse=True)
    write_json(folder / "metrics.json", {**record, "classes": results, "mean": overall})
    write_text(folder / "table.md", table + "\n")
    finished.unlink()
    logger.info("\n%s", table)


def read_finished(path: Path, key: dict) -> dict[str, dict]:
    """Metrics of the classes that an interrupted run finished, if it ran the test that `key` describes."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    same = content.get("key") == json.loads(json.dumps(key))
    return content["classes"] if same else {}


def text_features_of(model, path: Path | None, checkpoint: dict | None, prompt: str, class_names: list[str]) -> dict:
    """For each class its text features (2, D), normal and abnormal."""
    from prompt_ensemble import hand_written_features, load_prompt_learner

    if prompt == "hand-written":
        return dict(zip(class_names, hand_written_features(model, class_names), strict=True))
    try:
        learner = load_prompt_learner(model, checkpoint["prompt_learner"])
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    if prompt == "object-aware":
        return dict(zip(class_names, learner(class_names), strict=True))
    return dict.fromkeys(class_names, learner())


def evaluate(names: list[str], labels, scores, masks, maps) -> dict[str, float | None]:
    """The metrics of one class in percent; None where the class has no normal images or no masks."""
    import metrics

    values = {}
    for name in names:
        if name.startswith("image"):
            value = getattr(metrics, name)(labels, scores)
        else:
            value = None if masks is None else getattr(metrics, name)(masks, maps)
        values[name] = None if value is None else 100 * value
    return values


def mean(values: list[float | None]) -> float | None:
    """Plain mean over the classes that have a value."""
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present else None


def draw(folder: Path, root: str, paths: list[str], masks, maps) -> None:
    """Write image, mask (None: no masks) and heat map side by side, named after the images.

    The colours of all pictures of a class share one scale, so a normal image stays cool beside an anomalous one.
    """
    import cv2
    import numpy as np

    from dataset import load_image

    low, high = maps.min(), maps.max()
    for number, (path, values) in enumerate(zip(paths, maps, strict=True)):
        image = np.asarray(load_image(path).resize(values.shape))[:, :, ::-1]
        heat = ((values - low) / max(high - low, 1e-12) * 255).astype(np.uint8)
        overlay = cv2.addWeighted(image, 0.5, cv2.applyColorMap(heat, cv2.COLORMAP_JET), 0.5, 0)
        panels = [image, overlay]
        if masks is not None:
            panels.insert(1, cv2.cvtColor(masks[number].astype(np.uint8) * 255, cv2.COLOR_GRAY2BGR))
        target = folder / Path(path).relative_to(root).with_suffix(".png")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(cv2.imencode(".png", np.hstack(panels))[1].tobytes())


if __name__ == "__main__":
    run_cli(lambda: test(parse_args()))
