"""The run folder: what a trained run is, how it is loaded, and which run is meant."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load_file

from common.errors import UserError
from common.files import UNFINISHED, hash_of, load_model, save_tensors, vqvae_named_by
from dataset import Frame
from models.codes import FINER, CodeMaps, Codes, first_level
from models.detail import Codec, DetailLevel, TwoLevelVQVAE, first_of
from models.sharp_decoder import SharpDecoder, SharpDetail
from pixelcnn import GatedPixelCNN
from vqvae import VQVAE

PRETRAINED = Path(__file__).parent / "pretrained"  # a run folder that comes with the toolkit
SHARP_WEIGHTS = "sharp.safetensors"  # of the second decoder, where a run has one
CODES = "codes.safetensors"  # the code maps of the run's data
OF_DETAIL = "detail."  # begins the names of the second level's maps there
DETAIL_WEIGHTS = "detail.safetensors"  # of the second level of codes, where a run has one
DETAIL_PRIOR_WEIGHTS = "detail_prior.safetensors"
LEVELS = ("first", "both")


@dataclass(frozen=True)
class Run:
    """A trained run: what `load_run` gives. It unpacks as `vqvae, prior, frame, config`.

    vqvae: in eval mode; of a run with a second level, both (`TwoLevelVQVAE`). prior: of the first level, in eval mode, or None
    where none was trained. frame: the content frame the networks see. config: the run's `config.json`.
    detail_prior: as `prior`, of the second level.
    """

    vqvae: Codec
    prior: GatedPixelCNN | None
    frame: Frame
    config: dict[str, Any]
    detail_prior: GatedPixelCNN | None = None

    def __iter__(self) -> Iterator[Any]:
        return iter((self.vqvae, self.prior, self.frame, self.config))

    @property
    def map_size(self) -> tuple[int, int]:
        """(h, w) of the code maps of the first level."""
        return self.frame.map_size(self.vqvae.downsample)

    @property
    def detail_size(self) -> tuple[int, int] | None:
        """(h, w) of the code maps of the second level; None of a run with one."""
        return self.frame.map_size(self.vqvae.downsample // FINER) if isinstance(self.vqvae, TwoLevelVQVAE) else None

    @property
    def slice_ends(self) -> tuple[int, int] | None:
        """The slice numbers whose positions are 0 and 1; None where the run's data said nothing of them."""
        return slice_ends_of(self.config["data"])

    @property
    def slice_numbers(self) -> np.ndarray | None:
        """The slice numbers that the run was trained on, lowest first; None where its data said nothing of them."""
        if self.slice_ends is None:
            return None
        stretches = self.config["data"].get("slice_numbers") or [self.slice_ends]  # version 0.1.0 did not record them
        return np.concatenate([np.arange(first, last + 1) for first, last in stretches])


def slice_ends_of(data: dict[str, Any]) -> tuple[int, int] | None:
    """The slice numbers whose positions are 0 and 1, from the data summary of a run; runs of version 0.1.0 began with 0."""
    slices = data["slices_per_subject"]
    if slices is None:
        return None
    first, last = data.get("slice_ends") or (0, slices - 1)
    return first, last


def load_run(
    directory: str | Path, device: torch.device | str = "cpu", decoder: str = "faithful", level: str = "both"
) -> Run:
    """Load a run folder's best weights.

    Args:
        directory: the run folder.
        device: to load to.
        decoder: "faithful", the VQ-VAE's own, or "sharp", the second one: which of them `vqvae.decode` uses.
        level: "both" levels of codes, of a run that has two, or the "first" alone.

    Raises:
        UserError: when the folder is no run, a file in it is damaged or belongs to another VQ-VAE, or it has no sharp decoder.
    """
    directory = Path(directory)
    config = read_config(directory)
    vqvae = load_codec(directory, level)
    prior = _load_prior(directory, "prior", first_of(vqvae), device)
    detail_prior = _load_prior(directory, "detail_prior", vqvae, device) if isinstance(vqvae, TwoLevelVQVAE) else None
    if decoder == "sharp":
        vqvae = with_sharp_decoder(vqvae, directory)
    vqvae = vqvae.to(device, memory_format=torch.channels_last)
    return Run(vqvae, prior, Frame(**config["data"]["frame"]), config, detail_prior)


def load_codec(directory: Path, level: str = "both") -> Codec:
    """The trained VQ-VAE of a run folder, with its second level where it has one and `level` does not leave it out.

    Raises:
        UserError: as `load_run`.
    """
    first, path = load_model(directory / "vqvae.safetensors", VQVAE), directory / DETAIL_WEIGHTS
    if level == "first" or not path.exists():
        return first
    check_belongs(path, hash_of(first.state_dict()), "detail")
    return TwoLevelVQVAE(first, load_model(path, DetailLevel)).eval()


def _load_prior(directory: Path, stage: str, codec: Codec, device: torch.device | str) -> GatedPixelCNN | None:
    """The prior that a stage left, of the codes of this VQ-VAE; None where there is none."""
    path = directory / f"{stage}.safetensors"
    if not path.exists():
        return None
    prior = load_model(path, GatedPixelCNN).to(device)
    check_belongs(path, hash_of(codec.state_dict()), stage)
    return prior


def check_belongs(path: Path, vqvae: str, stage: str) -> None:
    """Raise UserError for a file that was made from another VQ-VAE; one that does not say from which is taken as it is.

    Args:
        path: of codes or weights in a run folder.
        vqvae: `hash_of` the VQ-VAE that they are to be used with, both levels of it for what was made from both.
        stage: of the pipeline, that makes such a file.
    """
    if vqvae_named_by(path) not in (None, vqvae):
        what, again = ("codes", "encode") if stage == "encode" else ("trained on codes", "train it")
        both = stage not in ("detail", "prior") and (path.parent / DETAIL_WEIGHTS).exists()
        raise UserError(
            f"{path}: {what} of another VQ-VAE than {path.parent / 'vqvae.safetensors'}"
            f"{f' with {DETAIL_WEIGHTS}' if both else ''}; {again} anew with: "
            f"python train.py --stage {stage} --out {path.parent}"
        )


def decoder_to_use(directory: str | Path, asked: str | None = None, level: str = "both") -> str:
    """The decoder to paint pictures with: what was asked for, else "sharp" where the run has one, else "faithful". level: as in
    `load_run`.

    Raises:
        UserError: when a sharp decoder was asked for and there is none, or it paints on top of a level that is left out.
    """
    there, two = (Path(directory) / name for name in (SHARP_WEIGHTS, DETAIL_WEIGHTS))
    if level == "first" and two.exists():
        if asked == "sharp":
            raise UserError(
                f"--level first: the sharp decoder of {directory} paints on top of both levels; leave out --decoder sharp"
            )
        return "faithful"
    there = there.exists()
    if asked == "sharp" and not there:
        raise UserError(
            f"{directory}: this run has no sharp decoder; train it with: python train.py --stage sharpen --out {directory}"
        )
    return asked or ("sharp" if there else "faithful")


def with_sharp_decoder(vqvae: Codec, directory: str | Path) -> Codec:
    """The VQ-VAE with the run's second decoder in place of its own; the one given stays as it is.

    Raises:
        UserError: when there is none, or it was trained beside another VQ-VAE.
    """
    decoder_to_use(directory, "sharp")
    path = Path(directory) / SHARP_WEIGHTS
    check_belongs(path, hash_of(vqvae.state_dict()), "sharpen")
    decoder = load_model(path, SharpDetail if isinstance(vqvae, TwoLevelVQVAE) else SharpDecoder)
    device = next(vqvae.buffers()).device
    return vqvae.with_decoder(decoder.to(device, memory_format=torch.channels_last))


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


def read_codes(directory: Path, made_by: Codec | None = None) -> dict[str, CodeMaps]:
    """Code maps `[N, h, w]` of each split that the run's encode stage left, of each level; empty where it left none.

    made_by: of a folder that has no VQ-VAE of its own: where the codes are of another one than this, they count as none.

    Raises:
        UserError: when they are damaged, or codes of another VQ-VAE than the one beside them.
    """
    path, vqvae = directory / CODES, directory / "vqvae.safetensors"
    try:
        there = path.exists() and (made_by is None or vqvae_named_by(path) == hash_of(made_by.state_dict()))
        maps = load_file(path) if there else {}
        if maps and vqvae.exists():
            check_belongs(path, hash_of(load_codec(directory).state_dict()), "encode")
    except (SafetensorError, ValueError, AttributeError) as error:
        again = (
            f"encode anew with: python train.py --stage encode --out {directory}" if made_by is None else "delete it"
        )
        raise UserError(f"{path}: damaged ({error}); {again}") from None
    detail = {name.removeprefix(OF_DETAIL): maps.pop(name) for name in list(maps) if name.startswith(OF_DETAIL)}
    return {name: Codes(first, detail[name]) if name in detail else first for name, first in maps.items()}


def save_codes(directory: Path, codes: Mapping[str, CodeMaps], vqvae: Codec) -> None:
    """Keep code maps of splits for `read_codes`. vqvae: that made them."""
    maps = {name: first_level(each) for name, each in codes.items()}
    maps |= {f"{OF_DETAIL}{name}": each.detail for name, each in codes.items() if isinstance(each, Codes)}
    save_tensors(directory / CODES, maps, {}, hash_of(vqvae.state_dict()))


def run_folder(name: str | None, holding: str = "vqvae.safetensors") -> Path:
    """The run folder that `--run` names: a path, or "pretrained" for the weights that come with the toolkit. Where none is named,
    the newest under runs/, else the pretrained ones."""
    if name is not None:
        place = Path(name)
        if name == PRETRAINED.name and not (place / "config.json").is_file():
            return PRETRAINED
        return PRETRAINED if place.exists() and PRETRAINED.exists() and place.samefile(PRETRAINED) else place
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
