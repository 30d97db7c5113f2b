"""Learn AnomalyCLIP's two prompts, or what another method learns, on an anomaly data set (paper section 3.3)."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING

import parallel
from checkpoint import (
    check_training,
    checkpoint_path,
    delete_older,
    newest_checkpoint,
    open_method,
    resume,
    write_checkpoint,
)
from curves import LossCurves, check_tensorboard
from options import add_flags, add_reading_flags
from utils import (
    InputError,
    get_logger,
    nonempty_path,
    open_run,
    positive_int,
    processor,
    repeat_exactly,
    run_cli,
    write_json,
)

if TYPE_CHECKING:
    import torch
    from tqdm import tqdm


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, epilog="Defaults in brackets depend on model and method.")
    parser.add_argument(
        "--train_data_path",
        type=nonempty_path,
        nargs="+",
        required=True,
        metavar="ROOT",
        help="root of the data set, which holds meta.json; several become one",
    )
    parser.add_argument("--save_path", type=nonempty_path, default=Path("checkpoint"), help="run folder (checkpoint)")
    parser.add_argument("--dataset", default="mvtec", help="name of the data set, for the records (mvtec)")
    parser.add_argument(
        "--split", choices=("train", "test"), default="test", help="split of meta.json (test, as the paper)"
    )
    add_reading_flags(parser, several=True)
    parser.add_argument("--print_freq", type=positive_int, default=1, help="epochs between lines in the log (1)")
    parser.add_argument("--save_freq", type=positive_int, default=1, help="epochs between checkpoints (1)")
    parser.add_argument(
        "--keep_checkpoints", type=positive_int, metavar="N", help="delete all but the newest N checkpoints (keep all)"
    )
    parser.add_argument("--resume", action="store_true", help="continue after the newest checkpoint in --save_path")
    parser.add_argument("--tensorboard", action="store_true", help="losses for TensorBoard, too, in tensorboard/")
    add_flags(parser, "TRAINING", cache="auto")
    return parser.parse_args()


def train(args: argparse.Namespace) -> None:
    if args.tensorboard:
        check_tensorboard()
    import torch
    from torch.nn.parallel import DistributedDataParallel
    from tqdm import tqdm

    from dataset import JoinedDataset, mask_warnings, open_data
    from features import open_store, remember
    from mosaics import MosaicDataset, order_of

    # Data and run folder; what is wrong with them is said before weights are loaded
    dataset = open_data(args.train_data_path, args.meta, split=args.split, read_as=args.read_as)
    warnings = dataset.warnings + check_training(args, dataset)
    folder, logger = args.save_path, open_run(args.save_path) if parallel.is_main() else get_logger()

    # Model and method
    repeat_exactly(args.device)
    method, record = open_method(args, "TRAINING")
    dataset.fit(method.model.resize, method.model.image_size)
    training = record["training"]
    batch_size = training["batch_size"]
    data_record = {"dataset": args.dataset, "split": args.split, "data_checksum": dataset.checksum}
    record["training"] = data_record | {"read_as": args.read_as, "seed": args.seed} | training
    if not method.SCHEDULED:
        del record["training"]["epoch"]  # a resumed run may train for longer
    optimizer = method.optimizer()
    epochs = training["epoch"] if optimizer else 0  # without parameters, what the method remembers is all

    # Where training begins: at the start, or after the newest checkpoint
    start = parallel.broadcast(newest_checkpoint(folder, record, args.resume) if parallel.is_main() else None)
    if start:
        resume(start, method, optimizer)
    first_epoch = start["epoch"] + 1 if start else 1

    # Log and records
    several = isinstance(dataset, JoinedDataset)
    if several:
        record["training"]["data_sets"] = dataset.listing  # only now: a run may be resumed where folders are renamed
    if parallel.is_main():
        arguments = vars(args) | record["settings"] | training
        if not several:
            arguments |= {"train_data_path": args.train_data_path[0], "meta": args.meta and args.meta[0]}
        machine = {"processor": processor(), "threads": torch.get_num_threads()}
        write_json(folder / "args.json", {"arguments": arguments, **record, **machine})
    what = (args.dataset, args.split, len(dataset), args.precision, record["settings"])
    logger.info("training on %s (%s split): %d images, %s, %s", *what)
    if several:
        logger.info("data sets: %s", dataset.listing)
    for warning in warnings:
        logger.warning("%s", warning)
    if start and first_epoch > epochs:
        if args.keep_checkpoints and parallel.is_main():
            delete_older(folder, first_epoch - 1, args.keep_checkpoints, record)
        logger.info("nothing left to train: %s is there", checkpoint_path(folder, first_epoch - 1))
        parallel.stop()
        return

    # Features of the frozen towers, once for all epochs; also of the mosaics that stand for images in some
    count = len(dataset)
    if training.get("mosaics"):
        dataset = MosaicDataset(dataset, training["mosaics"], epochs, args.seed)
        logger.info("%d mosaics in %d epochs", len(dataset.mosaics), epochs)
    store = open_store(
        method, dataset, args.cache, args.cache_dir, args.cache_dtype, args.num_workers, method.TRAINING_FEATURES
    )
    if parallel.is_main() and dataset.has_masks:
        for warning in mask_warnings(store.mask_shares(), method.model.image_size):
            logger.warning("%s", warning)

    # What a method remembers of its training data
    if method.MEMORY and not start:
        remember(method, store, batch_size)
    if not epochs and parallel.is_main():
        write_checkpoint(folder, 0, {}, method, optimizer, record)

    # Epochs
    losses_of = method
    if parallel.world_size() > 1 and epochs:
        losses_of = DistributedDataParallel(method, broadcast_buffers=False)  # they do not change
    if parallel.is_main():
        curves = LossCurves(folder, first_epoch - 1, args.tensorboard)
        if curves.missing:
            logger.warning("losses.csv lacks %d of the %d epochs before this one", curves.missing, first_epoch - 1)
    steps = math.ceil(count / batch_size)
    for epoch in range(first_epoch, epochs + 1):
        # The order of an epoch depends on the seed and the epoch alone, not on where training resumed.
        order = torch.randperm(count, generator=torch.Generator().manual_seed(args.seed * 10_000 + epoch))
        batches, title = store.batches(order_of(dataset, order, epoch), batch_size), f"epoch {epoch}/{epochs}"
        with tqdm(batches, title, steps, leave=False, disable=not parallel.is_main()) as progress:
            rates = [method.learning_rate(epoch, step, steps) for step in range(steps)]
            losses = train_epoch(epoch, losses_of, optimizer, rates, progress, dataset.has_masks)
        if epoch % args.print_freq == 0:
            shown = ", ".join(f"{name} {value:.4f}" for name, value in losses.items())
            logger.info("epoch %d/%d: %s", epoch, epochs, shown)
        if parallel.is_main():
            curves.add(epoch, losses)  # before the checkpoint: a resumed run finds the rows of all its epochs
            if epoch == epochs:
                curves.finish()
            if epoch % args.save_freq == 0 or epoch == epochs:
                write_checkpoint(folder, epoch, losses, method, optimizer, record)
                if args.keep_checkpoints:
                    delete_older(folder, epoch, args.keep_checkpoints, record)
    logger.info("finished: %s", checkpoint_path(folder, epochs))
    parallel.stop()


def train_epoch(
    epoch: int,
    losses_of: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    rates: list[float],
    progress: tqdm,
    has_masks: bool,
) -> dict[str, float]:
    """One pass over the batches in `progress`, a step of the optimiser for each; the mean of each term of the loss.

    rates: the learning rate of each step.
    """
    import torch

    sums: dict[str, float] = {}
    for number, (batch, rate) in enumerate(zip(progress, rates, strict=True), start=1):
        for group in optimizer.param_groups:
            group["lr"] = rate
        masks = batch["mask"] if has_masks else None
        losses = losses_of(batch["features"], batch["label"], masks, batch["class_name"])
        loss = batch["weight"] * sum(losses.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

        values = torch.stack(list(losses.values())).tolist()  # one wait for the device, not one for each term
        if not all(map(math.isfinite, values)):
            raise InputError(
                f"the loss is {sum(values)} in epoch {epoch}, batch {number} ({batch['image_path'][0]}, ...); "
                "lower --learning_rate or look at these images"
            )
        for name, value in zip(losses, values, strict=True):
            sums[name] = sums.get(name, 0.0) + batch["weight"] * value
        progress.set_postfix({name: f"{value / number:.4f}" for name, value in sums.items()}, refresh=False)
    shares = parallel.gather(sums)
    return {name: sum(share[name] for share in shares) / len(shares) / number for name in sums}


if __name__ == "__main__":
    run_cli(lambda: train(parse_args()))
