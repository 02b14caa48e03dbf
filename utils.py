"""What every stage shares: errors, device and precision, seeds, progress, safe files, the run folder."""

import contextlib
import copy
import hashlib
import json
import math
import os
import platform
import random
import shutil
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from dataset import Frame
from pixelcnn import GatedPixelCNN
from sharpening import SharpDecoder
from vqvae import VQVAE

PRETRAINED = Path(__file__).parent / "pretrained"  # a run folder that comes with the toolkit
UNFINISHED = ".new-"  # begins the names of files that are being written
SHARP_WEIGHTS = "sharp.safetensors"  # of the second decoder, where a run has one


class UserError(Exception):
    """Something the user can mend. The CLIs print the message as one sentence on stderr and exit with status 2."""


# --------------------------------------------------------------------------- device, precision, seeds


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


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The autocast context of a `--precision`; does nothing for float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


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


# --------------------------------------------------------------------------- progress


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


# --------------------------------------------------------------------------- safe files


def cannot_write(path: object, reason: str) -> UserError:
    """What to say when a file cannot be written: a full disk, mostly."""
    return UserError(
        f"{path}: cannot be written ({reason}); what was saved before stands; make room or mend the permissions there, then try "
        "again (train.py goes on with --resume)"
    )


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place, whole, when the block ends without an error.

    Raises:
        UserError: when safetensors cannot write it; other libraries raise OSError, which `cli.run_main` words the same.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f"{UNFINISHED}{path.name}.", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except SafetensorError as error:
        raise cannot_write(path, str(error)) from None
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text)


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2) + "\n")


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Save a nested dict of tensors and plain values; `load_checkpoint` reads it without running any pickle.

    The checkpoint that was there is kept as `previous_checkpoint(path)`.
    """
    with replacing(path) as temporary:
        try:
            torch.save(state, temporary)
        except RuntimeError as error:  # of PyTorch's own writer, which does not say what the system said
            raise cannot_write(path, str(error).splitlines()[0]) from None
        if path.exists():
            with replacing(previous_checkpoint(path)) as previous:
                previous.unlink()
                try:
                    previous.hardlink_to(path)
                except OSError:  # a file system without hard links
                    shutil.copyfile(path, previous)


def previous_checkpoint(path: Path) -> Path:
    """Where the last checkpoint but one of `path` is kept."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read what `save_checkpoint` wrote, or the one before where that is damaged, with a warning on stderr.

    Raises:
        UserError: when the file is missing, or it and the one before are no such checkpoints.
    """
    try:
        return _read_checkpoint(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no checkpoint there to resume from; start the run without --resume") from None
    except ValueError as damage:
        try:
            state = _read_checkpoint(previous_checkpoint(path))
        except (FileNotFoundError, ValueError):
            raise UserError(f"{path}: not a readable checkpoint ({damage}); start again without --resume") from None
        print(f"warning: {path} is damaged ({damage}); going on from the one before", file=sys.stderr, flush=True)
        return state


def _read_checkpoint(path: Path) -> dict[str, Any]:
    """Raises ValueError, with the reason, for a file that is cut short, altered (a checkpoint is a zip file with checksums) or no
    checkpoint."""
    try:
        with zipfile.ZipFile(path) as archive:
            altered = archive.testzip()
        if altered is not None:
            raise ValueError(f"the checksum of {altered} is wrong")
        return torch.load(path, map_location="cpu", weights_only=True)
    except (FileNotFoundError, ValueError):
        raise
    except Exception as error:  # zipfile and torch.load raise many types on a damaged file, all of them meaning this
        raise ValueError(type(error).__name__) from None


def save_model(path: Path, model: nn.Module, state: dict[str, Tensor] | None = None) -> None:
    """Save weights as safetensors, with the class and the arguments that rebuild the model in the file's header."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in (state or model.state_dict()).items()}
    header = {"class": type(model).__name__, "arguments": model.arguments}
    with replacing(path) as temporary:
        save_file(tensors, temporary, {"model": json.dumps(header)})  # one key: safetensors shuffles several


def load_model(path: Path, model_class: type[nn.Module]) -> nn.Module:
    """Rebuild a model from `save_model`'s file, in eval mode on the CPU.

    The model is built without memory first and its shapes are held against the file's, so that a stranger's file
    cannot ask for more memory than its own size.

    Raises:
        UserError: when the file is not such weights.
    """
    try:
        with safe_open(path, "pt") as file:
            header = json.loads((file.metadata() or {}).get("model", "{}"))
            if header.get("class") != model_class.__name__:
                raise ValueError(f"it holds {header.get('class', 'no named model')}, not {model_class.__name__}")
            with torch.device("meta"):
                model = model_class(**header["arguments"])
            expected = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
            found = {name: file.get_slice(name).get_shape() for name in file.keys()}
            if expected != found:
                differing = sorted(
                    name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)
                )
                raise ValueError(f"its tensor {differing[0]} does not fit the model its header describes")
            model.load_state_dict({name: file.get_tensor(name) for name in found}, assign=True)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; train the run first") from None
    except (SafetensorError, ValueError, TypeError, KeyError, RuntimeError, OSError) as error:
        raise UserError(f"{path}: not weights of this toolkit: {error}") from None
    return model.eval().requires_grad_(False)


# --------------------------------------------------------------------------- the run folder


class Run(NamedTuple):
    """A trained run: what `load_run` gives.

    vqvae: in eval mode. prior: in eval mode, or None where none was trained.
    frame: the content frame the networks see. config: the run's `config.json`.
    """

    vqvae: VQVAE
    prior: GatedPixelCNN | None
    frame: Frame
    config: dict[str, Any]


def load_run(directory: str | Path, device: torch.device | str = "cpu", decoder: str = "faithful") -> Run:
    """Load a run folder's best weights.

    Args:
        directory: the run folder.
        device: to load to.
        decoder: "faithful", the VQ-VAE's own, or "sharp", the second one: which of them `vqvae.decode` uses.

    Raises:
        UserError: when the folder is no run, a file in it is damaged, or it has no sharp decoder.
    """
    directory = Path(directory)
    config = read_config(directory)
    vqvae = load_model(directory / "vqvae.safetensors", VQVAE)
    if decoder == "sharp":
        vqvae = with_sharp_decoder(vqvae, directory)
    vqvae = vqvae.to(device, memory_format=torch.channels_last)
    prior_path = directory / "prior.safetensors"
    prior = load_model(prior_path, GatedPixelCNN).to(device) if prior_path.exists() else None
    return Run(vqvae, prior, Frame(**config["data"]["frame"]), config)


def decoder_to_use(directory: str | Path, asked: str | None = None) -> str:
    """The decoder to paint pictures with: what was asked for, else "sharp" where the run has one, else "faithful".

    Raises:
        UserError: when a sharp decoder was asked for and there is none.
    """
    there = (Path(directory) / SHARP_WEIGHTS).exists()
    if asked == "sharp" and not there:
        raise UserError(
            f"{directory}: this run has no sharp decoder; train it with: python train.py --stage sharpen --out {directory}"
        )
    return asked or ("sharp" if there else "faithful")


def with_sharp_decoder(vqvae: VQVAE, directory: str | Path) -> VQVAE:
    """The VQ-VAE with the run's second decoder in place of its own; the one given stays as it is."""
    decoder_to_use(directory, "sharp")
    sharp = copy.copy(vqvae)
    sharp._modules = dict(vqvae._modules)
    device = vqvae.quantizer.codebook.device
    decoder = load_model(Path(directory) / SHARP_WEIGHTS, SharpDecoder)
    sharp.decoder = decoder.to(device, memory_format=torch.channels_last)
    return sharp


def check_writable(folder: Path, named_by: str) -> None:
    """Raise UserError unless the folder is there or can be made, and written to; makes nothing."""
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise UserError(f"{folder}: cannot be made, {nearest} is a file; name another folder with {named_by}")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(f"{folder}: no permission to write in {nearest}; name another folder with {named_by}")


@contextlib.contextmanager
def held(directory: Path) -> Iterator[None]:
    """Keep other processes from training in a run folder, and clear away what a killed one has left unfinished there.

    The system lets go of the folder when the process ends, however it ends.

    Raises:
        UserError: when a living process holds it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    lock = FileLock(directory / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(
            f"{directory}: another process is training in this run folder; wait for its end, stop it, or name another --out"
        ) from None
    for left_over in directory.glob(f"{UNFINISHED}*"):  # by a process that was killed
        left_over.unlink(missing_ok=True)
    try:
        yield
    finally:
        lock.release()


def read_config(directory: Path) -> dict[str, Any]:
    """The run's `config.json`.

    Raises:
        UserError: when the folder holds none or it cannot be read.
    """
    path = directory / "config.json"
    if not path.is_file():
        raise UserError(
            f"{directory}: not a run folder, it has no config.json; give --run the folder that train.py --out named"
        )
    try:
        config = json.loads(path.read_text())
        Frame(**config["data"]["frame"])
        return config
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: damaged ({error}); train the run again") from None


def read_codes(directory: Path) -> dict[str, Tensor]:
    """Code maps `[N, h, w]` of each split that the run's encode stage left; empty where it left none."""
    path = directory / "codes.safetensors"
    try:
        return load_file(path) if path.exists() else {}
    except SafetensorError as error:
        raise UserError(
            f"{path}: damaged ({error}); encode anew with: python train.py --stage encode --out {directory}"
        ) from None


def run_folder(name: str | None, holding: str = "vqvae.safetensors") -> Path:
    """The run folder that `--run` names: a path, or "pretrained" for the weights that come with the toolkit. Where none is named,
    the newest under runs/, else the pretrained ones."""
    if name is not None:
        return PRETRAINED if name == PRETRAINED.name and not Path(name, "config.json").is_file() else Path(name)
    try:
        return newest_run(holding)
    except UserError:
        if (PRETRAINED / holding).is_file():
            return PRETRAINED
        raise


def newest_run(holding: str = "vqvae.safetensors", root: Path = Path("runs")) -> Path:
    """The run folder under `root` whose file of this name is the newest.

    Raises:
        UserError: when there is none.
    """
    found = [path for path in root.glob(f"*/{holding}") if (path.parent / "config.json").is_file()]
    if not found:
        raise UserError(
            f"no run under {root}/ holds {holding}; train one with `python train.py`, or name another folder"
        )
    return max(found, key=lambda path: path.stat().st_mtime).parent


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
