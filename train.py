"""Learn AnomalyCLIP's two prompts on one anomaly data set (paper section 3)."""

import argparse
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
    atomic_path,
    environment,
    get_logger,
    make_run_folder,
    pick_device,
    run_cli,
    set_seed,
    write_json,
)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, epilog="Defaults in brackets depend on the model.")
    parser.add_argument("--train_data_path", type=Path, required=True, help="root of the data set; holds meta.json")
    parser.add_argument("--save_path", type=Path, default=Path("checkpoint"), help="run folder (checkpoint)")
    parser.add_argument("--dataset", default="mvtec", help="name of the data set, for the records")
    parser.add_argument("--split", choices=("train", "test"), default="test", help="the paper trains on test splits")
    parser.add_argument("--epoch", type=positive, default=15)
    parser.add_argument("--learning_rate", type=not_negative, default=0.001)
    parser.add_argument("--batch_size", type=positive, default=8)
    parser.add_argument("--lambda_local", type=not_negative, default=4.0, help="weight of the local loss (4)")
    parser.add_argument("--no_global_loss", action="store_true", help="leave out the image-level cross-entropy")
    parser.add_argument("--no_local_loss", action="store_true", help="leave out focal and dice loss")
    parser.add_argument("--print_freq", type=positive, default=1, help="epochs between lines in the log")
    parser.add_argument("--save_freq", type=positive, default=1, help="epochs between checkpoints")
    parser.add_argument(
        "--cache", choices=("auto", "ram", "disk", "none"), default="auto", help="where features are kept"
    )
    parser.add_argument("--cache_dir", type=Path, default=Path("cache"), help="folder of features on disk (cache)")
    parser.add_argument("--cache_dtype", choices=("fp32", "fp16"), default="fp32", help="type of kept features")
    parser.add_argument("--resume", action="store_true", help="continue after the newest checkpoint in --save_path")
    add_shared_flags(parser)
    return parser.parse_args()


def train(args: argparse.Namespace) -> None:
    import torch
    import torch.nn.functional as F
    from tqdm import tqdm

    from AnomalyCLIP_lib.similarity import class_logits, patch_probabilities, upsample
    from dataset import AnomalyDataset
    from features import open_features
    from loss import BinaryDiceLoss, FocalLoss
    from prompt_ensemble import PromptLearner

    settings = settings_from(args)
    if settings["prompt"] == "hand-written":
        raise InputError("--prompt hand-written has nothing to train; give it to test.py without a checkpoint")
    if args.no_global_loss and args.no_local_loss:
        raise InputError("--no_global_loss and --no_local_loss together leave nothing to train on; drop one")
    device = pick_device(args.device)
    model = load_model(settings, args.feature_map_layer, device)
    dataset = AnomalyDataset(args.train_data_path, model.preprocess, model.image_size, split=args.split)
    use_local = not args.no_local_loss and dataset.has_masks
    if args.no_global_loss and not use_local:
        raise InputError(f"{args.train_data_path} has no masks, so --no_global_loss leaves nothing to train on")
    folder = make_run_folder(args.save_path)
    set_seed(args.seed)
    learner = PromptLearner(model, settings["n_ctx"], settings["depth"], settings["t_n_ctx"])
    optimizer = torch.optim.Adam(
        [parameter for parameter in learner.parameters() if parameter.requires_grad],
        lr=args.learning_rate,
        betas=(0.5, 0.999),
    )
    record = {
        "settings": settings | {"weights_sha256": weights_checksum(model)},
        "training": {
            "dataset": args.dataset,
            "split": args.split,
            "data_checksum": dataset.checksum,
            "seed": args.seed,
            "learning_rate": args.learning_rate,
            "batch_size": args.batch_size,
            "lambda_local": args.lambda_local,
            "no_global_loss": args.no_global_loss,
            "no_local_loss": args.no_local_loss,
        },
        "versions": environment(),
    }
    first_epoch = 1 + restore(args, folder, record, learner, optimizer)
    logger = get_logger(folder)
    write_json(folder / "args.json", {"arguments": vars(args) | settings, **record})
    logger.info("training on %s (%s split): %d images, %s", args.dataset, args.split, len(dataset), settings)
    for warning in dataset.warnings:
        logger.warning("%s", warning)
    if not use_local and not args.no_local_loss:
        logger.warning("the data set has no masks: training with the global loss alone")

    if first_epoch > args.epoch:
        logger.info("nothing left to train: %s is there", folder / f"epoch_{first_epoch - 1}.pth")
        return
    cached = (args.cache, args.cache_dir, args.cache_dtype, args.num_workers)
    features = open_features(model, dataset, record["settings"], *cached)
    focal, dice, blank = FocalLoss(), BinaryDiceLoss(), 0
    for epoch in range(first_epoch, args.epoch + 1):
        # The order of an epoch depends on the seed and the epoch alone, not on where training resumed.
        order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(args.seed * 10_000 + epoch))
        steps = -(-len(dataset) // args.batch_size)
        progress = tqdm(
            features.batches(order, args.batch_size), desc=f"epoch {epoch}/{args.epoch}", total=steps, leave=False
        )
        sums = {"image_loss": 0.0, "local_loss": 0.0}
        for number, batch in enumerate(progress, start=1):
            masks, labels = batch["mask"], batch["label"]
            text_features = prompts_for(learner, batch["class_name"], settings["prompt"])

            image_loss = local_loss = torch.zeros((), device=device)
            if not args.no_global_loss:
                image_loss = F.cross_entropy(class_logits(batch["image_features"], text_features), labels)
            if use_local:
                for patch_features in batch["patch_features"]:
                    maps = upsample(patch_probabilities(patch_features, text_features), model.image_size)
                    normal, abnormal = maps.unbind(1)
                    local_loss = local_loss + focal(maps, masks) + dice(normal, 1 - masks) + dice(abnormal, masks)
            loss = image_loss + args.lambda_local * local_loss
            if not torch.isfinite(loss):
                raise InputError(
                    f"the loss is {loss.item()} in epoch {epoch}, batch {number} ({batch['image_path'][0]}, ...); "
                    "lower --learning_rate or look at these images"
                )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

            blank += int(((labels == 1) & (masks.sum(dim=(1, 2)) == 0)).sum())
            sums["image_loss"] += image_loss.item()
            sums["local_loss"] += args.lambda_local * local_loss.item()
            progress.set_postfix({key: f"{value / number:.4f}" for key, value in sums.items()}, refresh=False)
        if use_local and blank and epoch == first_epoch:
            logger.warning("the masks of %d anomalous images mark no pixel at this size", blank)
        if epoch % args.print_freq == 0:
            means = ", ".join(f"{key} {value / steps:.4f}" for key, value in sums.items())
            logger.info("epoch %d/%d: %s", epoch, args.epoch, means)
        if epoch % args.save_freq == 0 or epoch == args.epoch:
            state = {"prompt_learner": learner.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch}
            with atomic_path(folder / f"epoch_{epoch}.pth") as path, open(path, "wb") as file:
                torch.save(state | record, file)
    logger.info("finished: %s", folder / f"epoch_{args.epoch}.pth")


def prompts_for(learner, class_names: list[str], prompt: str):
    """Text features (2, D) shared by the batch, or (B, 2, D), each image's own, for object-aware prompts."""
    if prompt == "object-agnostic":
        return learner()
    distinct = sorted(set(class_names))
    return learner(distinct)[[distinct.index(name) for name in class_names]]


def restore(args: argparse.Namespace, folder: Path, record: dict, learner, optimizer) -> int:
    """Load the newest checkpoint of the run folder into learner and optimizer; returns its epoch, 0 if none."""
    epochs = {
        int(path.stem.removeprefix("epoch_")): path for path in folder.glob("epoch_*.pth") if path.stem[6:].isdigit()
    }
    if not epochs:
        return 0
    path = epochs[max(epochs)]
    if not args.resume:
        raise InputError(f"{path} exists already; add --resume to continue from it, or give another --save_path")
    checkpoint = read_checkpoint(path)
    if "optimizer" not in checkpoint:
        raise InputError(f"{path} holds no training state to resume from; give another --save_path")
    for part in ("settings", "training"):
        for key, value in record[part].items():
            if checkpoint[part].get(key) != value:
                raise InputError(
                    f"--resume: {key} is {value} now but was {checkpoint[part].get(key)} in {path}; "
                    "repeat the first run's flags, or give another --save_path"
                )
    learner.load_state_dict(checkpoint["prompt_learner"])
    optimizer.load_state_dict(checkpoint["optimizer"])
    return checkpoint["epoch"]


if __name__ == "__main__":
    run_cli(lambda: train(parse_args()))
