"""Learn AnomalyCLIP's two prompts, or what another method learns, on one anomaly data set (paper section 3)."""

import argparse
from pathlib import Path

import parallel
from options import add_flags, load_method, positive, read_checkpoint, settings_from, weights_checksum
from utils import (
    InputError,
    atomic_path,
    environment,
    get_logger,
    make_run_folder,
    run_cli,
    write_json,
)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, epilog="Defaults in brackets depend on model and method.")
    parser.add_argument("--train_data_path", type=Path, required=True, help="root of the data set; holds meta.json")
    parser.add_argument("--save_path", type=Path, default=Path("checkpoint"), help="run folder (checkpoint)")
    parser.add_argument("--dataset", default="mvtec", help="name of the data set, for the records")
    parser.add_argument("--split", choices=("train", "test"), default="test", help="the paper trains on test splits")
    parser.add_argument("--print_freq", type=positive, default=1, help="epochs between lines in the log")
    parser.add_argument("--save_freq", type=positive, default=1, help="epochs between checkpoints")
    parser.add_argument("--resume", action="store_true", help="continue after the newest checkpoint in --save_path")
    add_flags(parser, "TRAINING")
    return parser.parse_args()


def train(args: argparse.Namespace) -> None:
    import torch
    from torch.nn.parallel import DistributedDataParallel
    from tqdm import tqdm

    from dataset import AnomalyDataset
    from features import open_features

    settings, training = settings_from(args, "TRAINING")
    device = parallel.start(args.device)
    method = load_method(settings, training, args, device)
    if method.learner is None:
        what = "--prompt hand-written" if "prompt" in settings else f"--method {settings['method']}"
        raise InputError(f"{what} has nothing to train; give it to test.py without a checkpoint")
    model = method.model
    dataset = AnomalyDataset(args.train_data_path, model.resize, model.image_size, split=args.split)
    warnings = [*dataset.warnings, *method.check_training(dataset)]
    folder = make_run_folder(args.save_path) if parallel.is_main() else args.save_path
    weights = weights_checksum(model)
    record = {
        "settings": settings | {"weights_sha256": weights},
        "training": {
            "dataset": args.dataset,
            "split": args.split,
            "data_checksum": dataset.checksum,
            "seed": args.seed,
            **{name: value for name, value in training.items() if name != "epoch" or method.SCHEDULED},
        },
        "versions": environment(),
    }
    start = parallel.broadcast(newest_checkpoint(args, folder, record) if parallel.is_main() else None)
    if start:
        method.load(start["state"])
    optimizer = method.optimizer()
    if start:
        optimizer.load_state_dict(start["optimizer"])
    first_epoch, epochs = 1 + (start["epoch"] if start else 0), training["epoch"]
    logger = get_logger(folder, quiet=not parallel.is_main())
    if parallel.is_main():
        write_json(folder / "args.json", {"arguments": vars(args) | settings | training, **record})
    logger.info("training on %s (%s split): %d images, %s", args.dataset, args.split, len(dataset), settings)
    for warning in warnings:
        logger.warning("%s", warning)
    if first_epoch > epochs:
        logger.info("nothing left to train: %s is there", folder / f"epoch_{first_epoch - 1}.pth")
        parallel.stop()
        return

    if args.compile:
        method.encode = torch.compile(method.encode)
    cached = (args.cache, args.cache_dir, args.cache_dtype, args.num_workers, method.TRAINING_FEATURES)
    features = open_features(method, dataset, weights, *cached)
    losses_of = DistributedDataParallel(method) if parallel.world_size() > 1 else method
    batch_size, blank = training["batch_size"], 0
    steps = -(-len(dataset) // batch_size)
    for epoch in range(first_epoch, epochs + 1):
        for group in optimizer.param_groups:
            group["lr"] = method.learning_rate(epoch)
        # The order of an epoch depends on the seed and the epoch alone, not on where training resumed.
        order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(args.seed * 10_000 + epoch))
        progress = tqdm(
            features.batches(order, batch_size),
            desc=f"epoch {epoch}/{epochs}",
            total=steps,
            leave=False,
            disable=not parallel.is_main(),
        )
        sums = {}
        for number, batch in enumerate(progress, start=1):
            masks = batch["mask"] if dataset.has_masks else None
            losses = losses_of(batch["features"], batch["label"], masks, batch["class_name"])
            loss = batch["weight"] * sum(losses.values())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

            values = torch.stack([*losses.values(), loss]).tolist()
            if not all(abs(value) < float("inf") for value in values):
                raise InputError(
                    f"the loss is {sum(values[:-1])} in epoch {epoch}, batch {number} ({batch['image_path'][0]}, ...); "
                    "lower --learning_rate or look at these images"
                )
            for name, value in zip(losses, values, strict=False):
                sums[name] = sums.get(name, 0.0) + batch["weight"] * value
            unmarked = (batch["label"] == 1) & (batch["mask"].sum(dim=(1, 2)) == 0)
            blank += int(unmarked[: len(batch["rows"])].sum())
            progress.set_postfix({name: f"{value / number:.4f}" for name, value in sums.items()}, refresh=False)
        shares = parallel.gather((sums, blank))
        if masks is not None and epoch == first_epoch and any(blank for _, blank in shares):
            blank = sum(blank for _, blank in shares)
            logger.warning("the masks of %d anomalous images mark no pixel at this size", blank)
        means = {name: sum(sums[name] for sums, _ in shares) / len(shares) / steps for name in sums}
        if epoch % args.print_freq == 0:
            logger.info("epoch %d/%d: %s", epoch, epochs, ", ".join(f"{name} {means[name]:.4f}" for name in means))
        if parallel.is_main() and (epoch % args.save_freq == 0 or epoch == epochs):
            state = {method.STATE: method.learner.state_dict(), "optimizer": optimizer.state_dict()}
            state |= {"epoch": epoch, "losses": means}
            with atomic_path(folder / f"epoch_{epoch}.pth") as path, open(path, "wb") as file:
                torch.save(state | record, file)
    logger.info("finished: %s", folder / f"epoch_{epochs}.pth")
    parallel.stop()


def newest_checkpoint(args: argparse.Namespace, folder: Path, record: dict) -> dict | None:
    """The newest checkpoint of the run folder, to continue from; None if there is none."""
    epochs = {
        int(path.stem.removeprefix("epoch_")): path for path in folder.glob("epoch_*.pth") if path.stem[6:].isdigit()
    }
    if not epochs:
        return None
    path = epochs[max(epochs)]
    if not args.resume:
        raise InputError(f"{path} exists already; add --resume to continue from it, or give another --save_path")
    checkpoint = read_checkpoint(path, record["settings"]["method"])
    if "optimizer" not in checkpoint:
        raise InputError(f"{path} holds no training state to resume from; give another --save_path")
    for part in ("settings", "training"):
        for key, value in record[part].items():
            if checkpoint[part].get(key) != value:
                raise InputError(
                    f"--resume: {key} is {value} now but was {checkpoint[part].get(key)} in {path}; "
                    "repeat the first run's flags, or give another --save_path"
                )
    return checkpoint


if __name__ == "__main__":
    run_cli(lambda: train(parse_args()))
