"""The pictures of a run: which slices, code maps and spectra go into which figure."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from dataset import Frame, Split, spread_over
from inference.coding import decode
from inference.drawing import Samples
from models.codes import CodeMaps, Codes, first_level
from models.detail import Codec, DetailLevel, first_of
from reporting import diagram, figures
from utils import Run
from vqvae import VQVAE

BESIDE, PAIRS = 8, 4  # columns of real above generated slices; code maps shown beside their slices
CODES_SHOWN = 128


@dataclass(frozen=True)
class HeldOut:
    """Held-out slices and what a run makes of them.

    name: of the split. split: the slices shown. title: of the data. images, decoded: `[N, 1, H, W]` slices and reconstructions.
    codes: `[N, h, w]` of each level. sharp, first: reconstructions by the sharp decoder, and of the first of two levels alone;
    None where the run has none.
    """

    name: str
    split: Split
    title: str
    images: Tensor
    codes: CodeMaps
    decoded: Tensor
    sharp: Tensor | None = None
    first: Tensor | None = None


def code_ranks(level: VQVAE | DetailLevel) -> np.ndarray:
    """Rank of each code by which maps are coloured, `figures.code_ranks`."""
    return figures.code_ranks(level.quantizer.codebook.cpu().numpy())


def shown_codes(vqvae: Codec, codes: CodeMaps) -> dict[str, Any]:
    """Code maps of each level and their ranks, as `figures.code_grid` takes them."""
    shown = {"codes": first_level(codes).numpy(), "ranks": code_ranks(first_of(vqvae))}
    return shown | ({"detail": (codes.detail.numpy(), code_ranks(vqvae.detail))} if isinstance(codes, Codes) else {})


def held_out(run: Run, shown: HeldOut, folder: Path) -> None:
    """Held-out slices, their reconstructions and their code maps: four grids."""
    labels = [
        subject if number is None else f"{subject}, slice {number}"
        for subject, number in zip(shown.split.subjects, shown.split.slice_numbers)
    ]
    name, title, decoded = shown.name, shown.title, shown.decoded[:, 0].numpy()
    figures.slice_grid(shown.images[:, 0].numpy(), folder / "original.png", f"Original {name} slices, {title}", labels)
    figures.slice_grid(decoded, folder / "reconst.png", f"Reconstructed {name} slices, {title}", labels)
    figures.code_grid(
        path=folder / "test_q.png",
        title=f"Codes q(z|x) of {name} slices",
        labels=labels,
        **shown_codes(run.vqvae, shown.codes),
    )
    figures.slice_grid(decoded, folder / "test_imgs.png", f"Decoded codes of {name} slices, {title}", labels)


def drawn(run: Run, sets: Sequence[tuple[int, Samples]], title: str, folder: Path) -> None:
    """Two sets of drawn code maps, by seed, and the slices they decode to; some maps of the first beside their slices."""
    for suffix, (seed, samples) in zip(("", "2"), sets):
        figures.code_grid(
            path=folder / f"generated_q{suffix}.png",
            title=f"Codes drawn from the prior, seed {seed}",
            labels=samples.labels,
            **shown_codes(run.vqvae, samples.codes),
        )
        figures.slice_grid(
            samples.images.numpy(),
            folder / f"generated_imgs{suffix}.png",
            f"Generated slices, seed {seed} (trained on {title})",
            samples.labels,
        )
    _, first = sets[0]
    some = spread_over(len(first), PAIRS)
    figures.codes_beside_slices(
        images=first.images[some].numpy(),
        path=folder / "codes_and_slices.png",
        title=f"Code maps drawn from the prior and the slices they decode to (trained on {title})",
        labels=[first.labels[i] for i in some],
        **shown_codes(run.vqvae, first.codes[some]),
    )


def side_by_side(shown: HeldOut, samples: Samples, folder: Path) -> None:
    """Real, reconstructed and generated slices of the same positions above each other."""
    some = spread_over(len(shown.split), BESIDE)
    named = {
        f"real ({shown.name})": shown.images,
        "reconstructed,\nfirst level": shown.first,
        "reconstructed": shown.decoded,
        "reconstructed,\nsharp": shown.sharp,
    }
    rows = [(name, each[some, 0].numpy()) for name, each in named.items() if each is not None]
    rows.append(("generated", samples.images[some].numpy()))
    numbers = shown.split.slice_numbers
    figures.rows_of_slices(
        rows,
        folder / "real_and_generated.png",
        f"Real and generated slices, {shown.title}",
        ["" if numbers[i] is None else f"slice {numbers[i]}" for i in some],
    )


def architecture(run: Run, folder: Path) -> None:
    """The diagram of both stages, with the shapes of this run."""
    vqvae, prior = first_of(run.vqvae).arguments, run.prior.arguments
    detail = run.vqvae.detail.arguments if run.detail_prior is not None else None
    diagram.architecture(
        folder / "architecture.png",
        vqvae["downsample"],
        vqvae["num_codes"],
        vqvae["code_dim"],
        (run.frame.height, run.frame.width),
        prior["channels"],
        prior["layers"],
        detail and (detail["num_codes"], detail["code_dim"], run.detail_prior.arguments["layers"]),
    )


def sharpness(rows: dict[str, Tensor], spectra: dict[str, np.ndarray], frame: Frame, path: Path, title: str) -> None:
    """The middle one of some slices and its reconstructions, by name `[N, 1, H, W]`, and the mean spectra of all."""
    images = {name: frame.crop(each)[len(each) // 2, 0].numpy() for name, each in rows.items()}
    figures.sharpness(images, spectra, path, title)


def worst_reconstructions(
    split: Split, decoded: Tensor, worst: np.ndarray, ssim_frame: np.ndarray, path: Path, title: str
) -> None:
    """The slices that are reconstructed worst. decoded: `[len(worst), 1, H, W]`, of the slices at these indices."""
    real, decoded = split.batch(worst)[:, 0].numpy(), decoded[:, 0].numpy()
    figures.rows_of_slices(
        [("real", real), ("reconstructed", decoded), ("difference x4", np.clip(4 * np.abs(real - decoded), 0, 1))],
        path,
        f"The worst reconstructions by SSIM, {title}",
        [f"{Path(split.names[i]).name.split('.')[0]}\nSSIM {ssim_frame[i]:.3f}" for i in worst],
    )


def codebook(vqvae: VQVAE, counts: Tensor, path: Path, title: str) -> None:
    """The codes used most, each decoded alone: a map of nothing but it, of which a patch in the middle is shown.

    counts: `[K]`, how often each code is used.
    """
    factor, side, used = vqvae.downsample, 5, int((counts > 0).sum())
    order = counts.argsort(descending=True, stable=True)[: min(CODES_SHOWN, used)]
    device = vqvae.quantizer.codebook.device
    images = vqvae.decode(order.to(device)[:, None, None].expand(-1, side, side)).cpu()
    middle = slice(side // 2 * factor, (side // 2 + 1) * factor)
    shares = counts[order].double() / counts.sum()
    figures.slice_grid(
        images[:, 0, middle, middle].numpy(),
        path,
        f"The {len(order)} codes used most, each decoded alone, with their shares of the {title}; "
        f"{used} of {len(counts)} used)",
        [f"{100 * share:.2g} %" for share in shares.tolist()],
        columns=16,
    )


def neighbours(
    run: Run, samples: CodeMaps, nearest: CodeMaps, distances: Sequence[tuple[float, float]], path: Path, title: str
) -> None:
    """Samples above the training slices nearest to them, all painted by the reconstruction decoder within the frame.

    samples, nearest: `[N, h, w]` code maps of each level. distances: in pixels and in codes (0..1), of each pair.
    """
    rows = [
        (name, run.frame.crop(decode(run.vqvae, codes, run.frame)[:, 0]).numpy())
        for name, codes in (("sample", samples), ("nearest in\ntraining", nearest))
    ]
    labels = [f"pixels {pixels:.3f}\ncodes {100 * codes:.0f} %" for pixels, codes in distances]
    figures.rows_of_slices(rows, path, title, labels)
