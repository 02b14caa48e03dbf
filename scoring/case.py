"""What is scored, and how: a run, one split of a data set, and how much is drawn and compared.

    case = Case(run, data, "validate", codes, FULL, seed=0, pictures=Path("runs/mine/images"))

`scoring.evaluation` scores it; what has to be left out is noted in `case.notes`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from dataset import Dataset, Split
from inference.coding import decode, encode_split
from models.codes import CodeMaps, first_level
from models.detail import Codec, first_of
from utils import Run

COMPARED = 2048  # held-out slices, spread over the split, that sets of slices are compared with, at most: they are held in memory
PART = 256  # code maps decoded at a time


@dataclass(frozen=True)
class Effort:
    """samples: slices drawn. halvings: of the real subjects, `realism.realism`. train_maps: training maps scored by the prior.
    each_level: whether samples of two levels are scored as the first alone paints them too. heads: whole heads drawn; 0 scores
    none."""

    samples: int
    halvings: int
    train_maps: int
    each_level: bool = False
    heads: int = 0


FULL, QUICK = Effort(500, 4, 256, True), Effort(64, 1, 128)


@dataclass
class Case:
    """A run, the split it is scored on, and how.

    codes: code maps of the run's splits and of the mirrored training slices, as far as they are known (`codes.safetensors`).
    pictures: folder for the pictures. sharp: the VQ-VAE with the run's second decoder, None where it has none.
    decoder: "faithful" or "sharp", which of them paints the samples. notes: what was left out, filled on the way.
    trained_here: whether the training split of the data is the one that the run was trained on.
    """

    run: Run
    data: Dataset
    name: str
    codes: dict[str, CodeMaps]
    effort: Effort
    seed: int
    pictures: Path
    sharp: Codec | None = None
    decoder: str = "faithful"
    notes: list[str] = field(default_factory=list)
    trained_here: bool = True

    @property
    def split(self) -> Split:
        return self.data.splits[self.name]

    @property
    def training_split(self) -> Split | None:
        """The slices that the codes of "train" are of, where the data holds them."""
        split = self.data.splits.get("train") if self.trained_here else None
        return split if split is not None and len(split) == len(self.codes.get("train", ())) else None

    @property
    def training_maps(self) -> list[CodeMaps]:
        """Code maps of the training slices, and of the mirrored ones, as far as they are known."""
        return [self.codes[name] for name in ("train", "train_mirrored") if name in self.codes]

    @property
    def split_codes(self) -> CodeMaps:
        """Code maps of the split's slices: those that are known, or encoded now."""
        known = self.codes.get(self.name) if self.name != "train" or self.trained_here else None
        if known is not None and len(known) == len(self.split):
            return known
        return encode_split(self.run.vqvae, self.split, self.run.frame, f"encode {self.name}")

    @property
    def painter(self) -> Run:
        """The run, with the decoder that paints what is drawn."""
        return replace(self.run, vqvae=self.sharp) if self.decoder == "sharp" else self.run

    def faithful(self, codes: CodeMaps) -> Tensor:
        """Slices of code maps as the VQ-VAE's own decoder paints the first level of them, within the frame, `[N, H, W]` in 0..1,
        in float16 to save memory. Copies are looked for among these: one whose details were drawn anew is a copy."""
        run, parts = self.run, first_level(codes).split(PART)
        return torch.cat([run.frame.crop(decode(run.vqvae, part, run.frame)[:, 0]).half() for part in parts])

    def training_pictures(self) -> Iterator[tuple[int, Tensor, CodeMaps]]:
        """Parts of the training slices, and of the mirrored ones where their code maps are known, which count from the last of
        those on: the index of the first of the part, its `faithful` pictures and its code maps.

        The picture of a mirrored slice is taken to be the mirrored picture: with the shipped weights they are 0.03 apart (root
        mean square, OASIS-1, validation), slices of different people 0.08, and most of the time goes into decoding.
        """
        train, *mirrored = self.training_maps
        as_they_are = mirrored and torch.equal(first_level(train), first_level(mirrored[0]))  # slices that have sides
        for start in range(0, len(train), PART):
            some = slice(start, start + PART)
            images = self.faithful(train[some])
            yield start, images, train[some]
            for maps in mirrored:
                yield len(train) + start, images if as_they_are else images.flip(1), maps[some]

    def leave_out(self, note: str) -> None:
        """Note once what is left out, and why."""
        if note not in self.notes:
            self.notes.append(note)

    @property
    def num_codes(self) -> int:
        return first_of(self.run.vqvae).quantizer.num_codes

    @property
    def trained_on(self) -> str:
        return self.run.config["data"]["title"]
