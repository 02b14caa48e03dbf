"""The machine: device, precision, memory, seeds, progress, versions."""

import ctypes
import hashlib
import math
import os
import platform
import random
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from common.errors import UserError

CPU_ACTIVATIONS = 2**30  # bytes that a stage's activations take on a CPU, about
MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1  # parameters of glibc's mallopt, malloc.h
SMALL, KEPT = 2**25, 2**28  # bytes: of tensors made in memory that others left, and of such memory that is kept
ProgressFactory = Callable[[int, str, str], Any]  # (total, title, unit) -> context manager with update(count)


def resolve_device(name: str) -> torch.device:
    """`auto` is the first of cuda, mps and cpu that this machine has.

    Raises:
        UserError: when the device asked for is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(
            f"--device {name}: this machine or this PyTorch build has no such device; "
            f"try --device cpu ({str(error).splitlines()[0]})"
        ) from None
    return device


def resolve_precision(name: str, device: torch.device) -> str:
    """`auto` is bf16 where the hardware multiplies bf16 natively, else float32.

    On a CPU without such instructions bf16 convolutions are emulated, 10 to 20 times slower than float32.
    """
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    if device.type == "cpu":
        native = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
        return "bf16" if native else "float32"
    return "float32"


def at_a_time(on_cpu: int, device: torch.device) -> int:
    """How many things may have their activations in memory together: `on_cpu`, or as many times that as fit into half of what is
    free on a CUDA device, which so few would leave idle."""
    if device.type != "cuda":
        return on_cpu
    free, _ = torch.cuda.mem_get_info(device)
    return on_cpu * max(1, free // (2 * CPU_ACTIVATIONS))


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The autocast context of a `--precision`; does nothing for float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def keep_freed_memory() -> None:
    """Have glibc make tensors of up to 32 MiB in memory that others have left, instead of asking the system for zeroed pages each
    time, which takes a third of the time of a small network's training. Does nothing where the user has set `MALLOC_*` or where
    there is no glibc."""
    if platform.libc_ver()[0] != "glibc" or any(name.startswith("MALLOC_") for name in os.environ):
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(MMAP_THRESHOLD, SMALL)
    libc.mallopt(TRIM_THRESHOLD, KEPT)


def seed_everything(*parts: int | str) -> None:
    """Seed Python, NumPy and PyTorch from the parts, for instance `(seed, "vqvae", epoch, step)`.

    Every training step is seeded from its place in the run, so that a resumed run needs no saved random state.
    """
    seed = derive_seed(*parts)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from the parts, the same on every machine."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def versions() -> dict[str, str]:
    """What a result depends on, for `config.json`."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "machine": platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": str(torch.get_num_threads()),
    }


class Progress:
    """A progress bar with rate and time left; where stdout is no terminal, a plain line every `interval` seconds.

    with Progress(len(batches), "encode", unit="slice") as progress:
        progress.update(32, loss=0.1)
    """

    def __init__(
        self, total: int, title: str, unit: str = "it", initial: int = 0, interval: float = 15.0, quiet: bool = False
    ):
        self.total, self.title, self.unit = total, title, unit
        self.done, self.initial, self.interval = initial, initial, interval
        self.stats: dict[str, str] = {}
        self.started, self.last_line = time.monotonic(), math.inf if quiet else time.monotonic()
        self.bar = (
            tqdm(total=total, desc=title, unit=unit, initial=initial, file=sys.stdout, dynamic_ncols=True, leave=False)
            if sys.stdout.isatty() and not quiet
            else None
        )

    def update(self, count: int = 1, **stats: float | str) -> None:
        self.done += count
        self.stats |= {key: value if isinstance(value, str) else f"{value:.4g}" for key, value in stats.items()}
        if self.bar is not None:
            self.bar.set_postfix(self.stats, refresh=False)
            self.bar.update(count)
        elif time.monotonic() - self.last_line >= self.interval:
            self.last_line = time.monotonic()
            print(self.line(), flush=True)

    def line(self) -> str:
        elapsed = time.monotonic() - self.started
        rate = (self.done - self.initial) / max(elapsed, 1e-9)
        left = (self.total - self.done) / max(rate, 1e-9)
        stats = "".join(f", {key} {value}" for key, value in self.stats.items())
        return f"  {self.title}: {self.done}/{self.total} {self.unit}s, {rate:.1f}/s, {left:.0f} s left{stats}"

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()


class silent:
    """A progress bar that shows nothing."""

    def __init__(self, *_: object):
        pass

    def update(self, count: int) -> None:
        pass

    def __enter__(self) -> "silent":
        return self

    def __exit__(self, *_: object) -> None:
        pass
