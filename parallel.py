"""Processes and threads: which images are this process's own, how results come together, how many threads it takes.

torchrun starts several processes. Without it there is one, and everything here passes its argument through.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from utils import InputError, pick_device

if TYPE_CHECKING:
    import torch

    from AnomalyCLIP_lib import AnomalyCLIP

# Below this, in FLOP, the largest matrix product of an image is so small that handing it to a second thread costs what
# it saves: training on the embedded backbone is faster with one thread, many times so on a busy machine.
SMALL_PRODUCT = 20e6


def start(name: str | None) -> str:
    """Join the processes that torchrun started, if it did, and return this one's device; see `utils.pick_device`.

    Each process takes the CUDA device of its number on its machine.
    """
    device = pick_device(name)
    if world_size() == 1:
        return device
    import torch
    import torch.distributed as dist

    if device == "cuda":
        local = int(os.environ["LOCAL_RANK"])
        if local >= torch.cuda.device_count():
            raise InputError(
                f"torchrun started process {local + 1} on a machine with {torch.cuda.device_count()} GPUs; "
                "lower --nproc_per_node"
            )
        device = f"cuda:{local}"
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo")
    return device


def stop() -> None:
    """Leave the group of processes, all together: gloo may hang if one leaves while another still sends."""
    if world_size() > 1:
        import torch.distributed as dist

        dist.barrier()
        dist.destroy_process_group()


def set_threads(number: int | None, model: AnomalyCLIP) -> None:
    """Let torch use `number` CPU threads; None: one for a small vision tower, else as many as torch takes by itself.

    Sums are rounded differently with another number, so the choice depends on the model alone and not on the machine:
    what a small tower computes is the same on one core and on many.
    """
    import torch

    width = len(model.clip.visual.class_embedding)
    largest_product = 6 * (1 + model.grid**2) * width**2  # tokens times the weights of queries, keys and values
    if number is None and largest_product < SMALL_PRODUCT:
        number = 1
    if number is not None:
        torch.set_num_threads(number)


def world_size() -> int:
    """Number of processes, on all machines."""
    return int(os.environ.get("WORLD_SIZE", 1))


def rank() -> int:
    """Number of this process, from 0."""
    return int(os.environ.get("RANK", 0))


def is_main() -> bool:
    """Whether this is the process that logs and writes results."""
    return rank() == 0


def is_first_here() -> bool:
    """Whether this is the first process on its machine."""
    return int(os.environ.get("LOCAL_RANK", 0)) == 0


def own_share(batch: torch.Tensor) -> tuple[torch.Tensor, float]:
    """This process's part of a batch of indices, and the weight of its mean loss in DistributedDataParallel's mean.

    Where a batch has fewer images than there are processes, some get none; they repeat the first image with weight 0.
    """
    own = batch[rank() :: world_size()]
    return (own, len(own) / len(batch) * world_size()) if len(own) else (batch[:1], 0.0)


def barrier() -> None:
    """Wait until all processes are here."""
    gather(None)


def broadcast(value: Any) -> Any:
    """The main process's value, in every process."""
    if world_size() == 1:
        return value
    import torch.distributed as dist

    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def gather(value: Any) -> list:
    """The values of all processes, in their order, in every process."""
    if world_size() == 1:
        return [value]
    import torch.distributed as dist

    box = [None] * world_size()
    dist.all_gather_object(box, value)
    return box


def gather_to_main(value: Any) -> list:
    """The values of all processes, in their order, in the main process; elsewhere nothing."""
    if world_size() == 1:
        return [value]
    import torch.distributed as dist

    box = [None] * world_size() if is_main() else None
    dist.gather_object(value, box, dst=0)
    return box or []
