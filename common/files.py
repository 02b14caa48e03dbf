"""Files that a kill at any moment leaves whole: text, checkpoints, weights, cached arrays."""

import contextlib
import hashlib
import json
import os
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from common.errors import UserError, cannot_write

UNFINISHED = ".new-"  # begins the names of files that are being written


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place, whole, when the block ends without an error.

    Raises:
        UserError: when safetensors cannot write it; other libraries raise OSError, which `common.cli.run_main` words the same.
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


def save_model(path: Path, model: nn.Module, state: dict[str, Tensor] | None = None, vqvae: str | None = None) -> None:
    """Save weights as safetensors, with the class and the arguments that rebuild the model in the file's header.

    vqvae: `hash_of` the VQ-VAE that they belong to, for the header too.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in (state or model.state_dict()).items()}
    save_tensors(path, tensors, {"class": type(model).__name__, "arguments": model.arguments}, vqvae)


def save_tensors(path: Path, tensors: dict[str, Tensor], header: dict[str, Any], vqvae: str | None = None) -> None:
    """Save tensors as safetensors. vqvae: as in `save_model`."""
    belonging = {} if vqvae is None else {"vqvae": vqvae}
    with replacing(path) as temporary:
        save_file(
            tensors, temporary, {"model": json.dumps(header | belonging)}
        )  # one key: safetensors shuffles several


def vqvae_named_by(path: Path) -> str | None:
    """`hash_of` the VQ-VAE that a file of this toolkit belongs to; None where it does not say, as those of version 0.1.0.

    Raises:
        SafetensorError, ValueError, AttributeError: for a damaged or foreign file.
    """
    return header_of(path).get("vqvae")


def header_of(path: Path) -> dict[str, Any]:
    """What `save_tensors` wrote beside the tensors; empty where a version wrote nothing.

    Raises:
        SafetensorError, ValueError, AttributeError: for a damaged or foreign file.
    """
    with safe_open(path, "pt") as file:
        return json.loads((file.metadata() or {}).get("model", "{}"))


def hash_of(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of tensors by name: the same on every device, in every memory format and after saving them anew."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        found.update(repr((name, str(tensor.dtype), list(tensor.shape))).encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()


def hash_of_file(path: Path) -> str:
    """`hash_of` the tensors of a safetensors file.

    Raises:
        UserError: when it is none.
    """
    try:
        return hash_of(load_file(path))
    except SafetensorError as error:
        raise UserError(f"{path}: not weights of this toolkit: {error}") from None


def load_model(path: Path, model_class: type[nn.Module]) -> nn.Module:
    """Rebuild a model from `save_model`'s file, in eval mode on the CPU, in float32 where the file holds 16 bits.

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
            types = {name: tensor.dtype for name, tensor in model.state_dict().items()}
            expected = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
            found = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 - no dict
            if expected != found:
                differing = sorted(
                    name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)
                )
                raise ValueError(f"its tensor {differing[0]} does not fit the model its header describes")
            model.load_state_dict({name: file.get_tensor(name).to(types[name]) for name in found}, assign=True)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; train the run first") from None
    except (SafetensorError, ValueError, TypeError, KeyError, RuntimeError, OSError) as error:
        raise UserError(f"{path}: not weights of this toolkit: {error}") from None
    return model.eval().requires_grad_(False)


def check_writable(folder: Path, named_by: str) -> None:
    """Raise UserError unless the folder is there or can be made, and written to; makes nothing."""
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise UserError(f"{folder}: cannot be made, {nearest} is a file; name another folder with {named_by}")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(f"{folder}: no permission to write in {nearest}; name another folder with {named_by}")


def digest(*values: object) -> str:
    """A name that says whether any of the values has changed."""
    return hashlib.sha256(repr(values).encode()).hexdigest()


def _take_space(path: Path) -> None:
    """Have the file system set aside what the file needs: filling a mapped file without space for it ends the process."""
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def cached_array(place: Path, key: str, fill: Callable[[Callable[[tuple[int, ...]], np.ndarray]], None]) -> np.ndarray:
    """The uint8 array at `place`, memory-mapped; made anew by `fill(make)` unless its key file holds `key`.

    The array is written under another name and moved into place whole, its key last.

    Raises:
        UserError: when the folder cannot be written to.
    """
    key_file = place.with_suffix(".json")
    try:
        if json.loads(key_file.read_text())["key"] == key:
            return np.load(place, mmap_mode="r")
    except (OSError, ValueError, KeyError, TypeError):
        pass  # no cache yet, or a damaged one: make it
    try:
        with replacing(place) as temporary:

            def make(shape: tuple[int, ...]) -> np.ndarray:
                array = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=shape)
                _take_space(temporary)
                return array

            fill(make)
            key_file.unlink(missing_ok=True)
        write_json(key_file, {"key": key})
    except OSError as error:
        raise UserError(
            f"{place.parent}: cannot write the slice cache there ({error.strerror}); "
            "free some space or name another folder with --cache"
        ) from None
    return np.load(place, mmap_mode="r")
