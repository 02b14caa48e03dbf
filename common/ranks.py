"""Several processes that train one model (`torchrun --nproc_per_node=N train.py ...`): who does what, and what is summed.

Every process holds the whole model and takes a share of each batch; gradients, codebook statistics and losses are summed. The
first one alone scores, draws, prints and writes. With one process, nothing here does anything.
"""

import os
import sys
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

PATIENCE = timedelta(days=2)  # how long processes wait for the first one to encode, score and draw


def join(device: torch.device) -> torch.device:
    """Join the other processes where torchrun has started several; the device that this one is to use."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return device
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    if not first():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for the rest of the process
    return device


def leave() -> None:
    """Take leave of the other processes."""
    if dist.is_initialized():
        dist.destroy_process_group()


def size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def first() -> bool:
    """Whether this process is the one that prints and writes."""
    return dist.get_rank() == 0 if dist.is_initialized() else os.environ.get("RANK", "0") == "0"


def wait() -> None:
    """Go on when all processes are here."""
    if dist.is_initialized():
        dist.barrier()


def share(count: int) -> slice:
    """This process's share of `count` things; the shares of all hold each thing once."""
    rank = dist.get_rank() if dist.is_initialized() else 0
    return slice(count * rank // size(), count * (rank + 1) // size())


def first_before_others(work: Callable[[], Any]) -> Any:
    """Do it in every process, but in the first one before any other: what it writes, the others read."""
    if not first():
        wait()
    result = work()
    if first():
        wait()
    return result


def from_first(compute: Callable[[], Any]) -> Any:
    """What the first process computes, in all of them."""
    if not dist.is_initialized():
        return compute()
    box = [compute() if first() else None]
    dist.broadcast_object_list(box)
    return box[0]


def anywhere(flag: bool) -> bool:
    """Whether the flag is set in any process."""
    if not dist.is_initialized():
        return flag
    flags = torch.tensor(int(flag), device=_device())
    dist.all_reduce(flags, dist.ReduceOp.MAX)
    return bool(flags)


def of_first(tensor: Tensor) -> Tensor:
    """The first process's tensor, in all of them."""
    if dist.is_initialized():
        dist.broadcast(tensor, 0)
    return tensor


def summed(tensor: Tensor) -> Tensor:
    """The sum of all processes' tensors, in all of them."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def gathered(rows: Tensor) -> Tensor:
    """The rows of all processes, in the same order on each; every process brings as many."""
    if not dist.is_initialized():
        return rows
    parts = [torch.empty_like(rows) for _ in range(size())]
    dist.all_gather(parts, rows.contiguous())
    return torch.cat(parts)


def exponential_like(values: Tensor) -> Tensor:
    """Draws of Exp(1), one a value; each process has its share of those that one process alone would draw."""
    if not dist.is_initialized():
        return torch.empty_like(values).exponential_()
    counts = gathered(torch.tensor([len(values)], device=values.device)).tolist()
    before = sum(counts[: dist.get_rank()])
    return values.new_empty(sum(counts)).exponential_()[before : before + len(values)]


def sum_gradients(parameters: Iterable[Tensor]) -> None:
    """Sum each parameter's gradient over all processes; one that no process has a gradient of keeps none."""
    if not dist.is_initialized():
        return
    parameters = list(parameters)
    present = torch.tensor([parameter.grad is not None for parameter in parameters], dtype=torch.int, device=_device())
    dist.all_reduce(present, dist.ReduceOp.MAX)
    moved = [parameter for parameter, here in zip(parameters, present.tolist()) if here]
    for parameter in moved:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    flat = torch.cat([parameter.grad.flatten() for parameter in moved])
    dist.all_reduce(flat)
    for parameter, summed in zip(moved, flat.split([parameter.numel() for parameter in moved])):
        parameter.grad.copy_(summed.view_as(parameter.grad))


def sum_by_name(totals: dict[str, float]) -> dict[str, float]:
    """Sums over all processes; a name that one of them lacks counts as zero there."""
    if not dist.is_initialized():
        return totals
    parts: list[dict[str, float]] = [{}] * size()
    dist.all_gather_object(parts, totals)
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: sum(part.get(name, 0.0) for part in parts) for name in names}


def _device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
