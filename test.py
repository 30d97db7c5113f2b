"""Test zero-shot: find anomalies in data sets that the prompts were not learned on (paper sections 3.4 and 4)."""

import argparse
import hashlib
import json
from pathlib import Path

import methods
import parallel
from options import add_flags, load_method, positive, read_checkpoint, settings_from, weights_checksum
from utils import InputError, environment, get_logger, make_run_folder, run_cli, write_json, write_text

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
    parser.add_argument("--batch_size", type=positive, default=8, help="images at a time, of all processes (8)")
    parser.add_argument(
        "--exact_aupro", action="store_true", help="also AUPRO as MVTec AD defines it, in its own column"
    )
    parser.add_argument("--map_dtype", choices=("float32", "float16"), default="float32", help="type of the kept maps")
    parser.add_argument("--vis", action="store_true", help="write pictures: image, mask, heat map")
    add_flags(parser, "TESTING")
    return parser.parse_args()


def test(args: argparse.Namespace) -> None:
    import numpy as np
    import torch
    from tabulate import tabulate
    from tqdm import tqdm

    from AnomalyCLIP_lib.similarity import smooth
    from dataset import AnomalyDataset
    from features import encode, open_features, predict

    checkpoint = read_checkpoint(args.checkpoint_path, args.method) if args.checkpoint_path else None
    settings, testing = settings_from(args, "TESTING", checkpoint)
    device = parallel.start(args.device)
    method = load_method(settings, testing, args, device, checkpoint)
    model = method.model
    if (checkpoint is None) != (method.learner is None):
        raise InputError(what_is_tested(settings))
    weights = weights_checksum(model)
    if settings.setdefault("weights_sha256", weights) != weights:
        raise InputError(
            f"{args.checkpoint_path} was trained on other weights than {settings['pretrained'] or settings['model']} "
            "holds; give the file it was trained with as --pretrained, or train again"
        )
    names = list(METRICS[args.metrics])
    if args.exact_aupro and "pixel_aupro" in names:
        names.insert(names.index("pixel_aupro") + 1, "pixel_aupro_exact")
    data = AnomalyDataset(args.data_path, model.resize, model.image_size, split=args.split)
    references = draw_references(args, method, data) if method.num_references else {}
    folder = make_run_folder(args.save_path) if parallel.is_main() else args.save_path
    logger = get_logger(folder, quiet=not parallel.is_main())
    record = {"dataset": args.dataset, "split": args.split, "data_checksum": data.checksum, "settings": settings}
    if parallel.is_main():
        arguments = vars(args) | settings | testing
        write_json(folder / "args.json", {"arguments": arguments, **record, "versions": environment()})
    logger.info("testing on %s (%s split): %d images, %s", args.dataset, args.split, len(data), settings)
    for warning in data.warnings:
        logger.warning("%s", warning)

    finished = folder / "finished_classes.json"  # what an interrupted run of the same test had done
    key = {**record, **testing, "metrics": names, "map_dtype": args.map_dtype, "precision": args.precision}
    key |= {"seed": args.seed} if references else {}
    key["checkpoint_sha256"] = checkpoint and hashlib.sha256(args.checkpoint_path.read_bytes()).hexdigest()
    results = parallel.broadcast(read_finished(finished, key) if parallel.is_main() else None)
    with torch.no_grad():
        method.set_classes(data.classes)
    if args.compile:
        method.encode = torch.compile(method.encode)
    cached = (args.cache, args.cache_dir, args.cache_dtype, args.num_workers)
    features = open_features(method, data, weights, *cached) if results.keys() < set(data.classes) else None
    progress = tqdm(total=len(data), desc="testing", unit="image", disable=not parallel.is_main())
    for class_name in data.classes:
        part = torch.tensor([i for i, entry in enumerate(data.entries) if entry.class_name == class_name])
        if class_name in results:
            logger.info("%s: finished before the interruption, not computed again", class_name)
            progress.update(len(part))
            continue
        if references:
            images = torch.stack([item["image"] for item in references[class_name]])
            method.set_references(class_name, encode(method, images.to(device)))
        side, paths = model.image_size, [data.path(data.entries[i].image_path) for i in part]
        if parallel.is_main():
            scores, labels = np.empty(len(part), np.float32), np.array([data.entries[i].label for i in part])
            maps, masks = np.empty((len(part), side, side), args.map_dtype), np.empty((len(part), side, side), bool)
        for batch in features.batches(part, args.batch_size):
            batch_scores, batch_maps = predict(method, batch["features"], class_name)
            batch_maps = smooth(batch_maps, testing["sigma"])
            own = [value.cpu().numpy() for value in (batch["rows"], batch_scores, batch_maps, batch["mask"] > 0)]
            for rows, own_scores, own_maps, own_masks in parallel.gather_to_main(own):
                count = len(rows)
                scores[rows], maps[rows], masks[rows] = own_scores[:count], own_maps[:count], own_masks[:count]
                progress.update(count)
        if parallel.is_main():
            blank = int(((labels == 1) & ~masks.any(axis=(1, 2))).sum())
            if data.has_masks and blank:
                logger.warning("%s: the masks of %d anomalous images mark no pixel at this size", class_name, blank)
            masks = masks if data.has_masks else None
            results[class_name] = evaluate(names, labels, scores, masks, maps)
            if args.vis:
                draw(folder / "vis", data.root, paths, masks, maps)
            write_json(finished, {"key": key, "classes": results})
            del maps, masks  # before the next class takes its own
    progress.close()

    if parallel.is_main():
        results = {class_name: results[class_name] for class_name in data.classes}
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
    parallel.stop()


def what_is_tested(settings: dict) -> str:
    """What to say when a checkpoint is missing or superfluous."""
    if settings["method"] == "anomalyclip":
        return "give either --checkpoint_path FILE (learned prompts) or --prompt hand-written (no file)"
    if methods.method_class(settings["method"]).STATE is None:
        return f"--method {settings['method']} is not trained; leave out --checkpoint_path"
    return f"--method {settings['method']} needs --checkpoint_path FILE; train one with train.py"


def draw_references(args: argparse.Namespace, method, data) -> dict:
    """For each class a data set of `num_references` normal images of its train split, drawn by --seed (few-shot)."""
    import torch
    from torch.utils.data import Subset

    from dataset import AnomalyDataset

    model, count = method.model, method.num_references
    try:
        train = AnomalyDataset(args.data_path, model.resize, model.image_size, split="train")
    except InputError as error:
        raise InputError(f"--k_shot {count} takes normal images of the train split, but {error}") from None
    drawn = {}
    for class_name in data.classes:
        normal = [i for i, entry in enumerate(train.entries) if entry.class_name == class_name and entry.label == 0]
        if len(normal) < count:
            raise InputError(
                f"--k_shot {count} is more than the {len(normal)} normal images in the train split of "
                f"{class_name} ({args.data_path}); lower it"
            )
        order = torch.randperm(len(normal), generator=torch.Generator().manual_seed(args.seed))[:count]
        drawn[class_name] = Subset(train, [normal[i] for i in order])
    return drawn


def read_finished(path: Path, key: dict) -> dict[str, dict]:
    """Metrics of the classes that an interrupted run finished, if it ran the test that `key` describes."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    same = content.get("key") == json.loads(json.dumps(key))
    return content["classes"] if same else {}


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
