"""A trained run as it is handed on: its weights alone, in 16 bits.

    python -m training.shipping runs/oasis-f8 pretrained

The folder then holds what `utils.load_run` and `train.py --init` need and, where the run's data is at hand, what is usual to
these weights (`held_out.safetensors`, for `score.py`). Rounding moves a weight by up to one part in 2,048, and a few codes of
slices with it, so scores of what was handed on are scores of those weights, not of the run's own.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from common.cli import run_main
from common.errors import UserError
from common.files import hash_of, header_of, save_tensors, write_json
from inference.run_data import holds_validation, load_data
from scoring.held_out import HELD_OUT, measure, save
from training.standing import LEAVES
from utils import CODES, DETAIL_WEIGHTS, decoder_to_use, load_codec, load_run, read_config

STORED = torch.float16
FIRST = "vqvae.safetensors"  # belongs to nothing
UPON_THE_FIRST = (DETAIL_WEIGHTS, "prior.safetensors")  # belong to the first level, all others to both


def ship(run: Path, to: Path) -> list[Path]:
    """Write the weights of a run to another folder, in 16 bits; each names the rounded VQ-VAE that it belongs to.

    Returns the files of weights.

    Raises:
        UserError: when weights of the run are damaged or do not belong together, or the folder is the run's own.
    """
    if to.resolve() == run.resolve():
        raise UserError(f"{to}: the run itself; name another folder")
    config = read_config(run)
    load_run(run, decoder=decoder_to_use(run))
    to.mkdir(parents=True, exist_ok=True)
    shipped = []
    (to / HELD_OUT).unlink(missing_ok=True)
    for name in (name for name in LEAVES.values() if name != CODES):  # in the order in which they were trained
        (to / name).unlink(missing_ok=True)
        if (run / name).exists():
            belongs_to = None
            if name != FIRST:
                belongs_to = hash_of(load_codec(to, "first" if name in UPON_THE_FIRST else "both").state_dict())
            save_tensors(to / name, rounded(load_file(run / name)), header_of(run / name), belongs_to)
            shipped.append(to / name)
    write_json(to / "config.json", config | {"flags": config["flags"] | {"out": to.name}})
    load_run(to, decoder=decoder_to_use(to))
    return shipped


@dataclass(frozen=True)
class _AsTheRun:
    """Data read as the run read it: what `inference.run_data.load_data` asks of a command line."""

    data: str | None = None
    split_file: str | None = None
    table: str | None = None
    split: str | None = None
    cache: str = ".cache"


def measure_usual(to: Path) -> Path:
    """Measure the validation scans of the run's data by the weights in a folder; returns the file, in the folder.

    Raises:
        UserError: when the weights have no prior, or the data is not at hand or is another.
    """
    run = load_run(to)
    if run.prior is None:
        raise UserError(f"{to}: these weights have no prior")
    data, _ = load_data(_AsTheRun(), run, to)
    if not holds_validation(run, data):
        raise UserError(f"{data.title} has not the run's validation split")
    found = measure(run, data.splits["validate"], data.splits.get("train"), "measuring held-out scans")
    save(to / HELD_OUT, found, run)
    return to / HELD_OUT


def rounded(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors with those of 32 bits in 16.

    Raises:
        UserError: for a number that is too large for 16 bits.
    """
    stored = {name: tensor.to(STORED) if tensor.dtype == torch.float32 else tensor for name, tensor in tensors.items()}
    for name, tensor in stored.items():
        if not torch.isfinite(tensor).all():
            raise UserError(f"{name} holds a number that 16 bits cannot")
    return stored


def main() -> None:
    """Hand on the run of the first argument to the folder of the second."""
    if len(sys.argv) != 3:
        raise UserError("give two folders: python -m training.shipping RUN TO")
    shipped = ship(Path(sys.argv[1]), Path(sys.argv[2]))
    try:
        shipped.append(measure_usual(Path(sys.argv[2])))
    except UserError as error:
        print(f"note: without {HELD_OUT}, so score.py has to measure what is usual itself ({error})")
    size = sum(path.stat().st_size for path in shipped)
    print(f"{sys.argv[2]}: {', '.join(path.name for path in shipped)}, {size / 2**20:.1f} MiB")


if __name__ == "__main__":
    run_main(main)
