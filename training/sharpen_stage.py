"""The last training: how the sharp decoder takes a batch, and how it is scored after an epoch."""

import math

import numpy as np
import torch
from torch import Tensor

from common.runtime import at_a_time, autocast
from dataset import Frame, spread_over
from models.codes import CodeMaps, as_taken, first_level
from models.detail import Codec, Painted, TwoLevelVQVAE, first_of
from models.sharp_decoder import SharpDecoder, SharpDetail
from scoring.classifier import SMALLEST_SIDE
from scoring.metrics import fine_power, ssim
from scoring.realism import sliced_wasserstein
from scoring.texture import texture_summary, texture_values
from training.coded_slices import CodedSlices
from training.loop import Stage, adamw, scored_slices
from training.texture_losses import CodeScore, SpectrumScore, TextureScore
from training.vqvae_stage import PIXELS

RESIDUAL_SLICES = 128  # training slices that say how strong texture is
SPECTRUM_WEIGHT = 3.0  # of the distance of spectra in the loss
CODE_WEIGHT = 0.4  # of finding the codes again in the pictures
DECODED = 32  # slices decoded at a time when scoring
TEXTURE_WEIGHT = 0.25  # of each |ln ratio| of where fine detail lies, in the score
LEAST = 0.01  # the smallest such ratio; what is not there at all counts as this


class SharpenStage(Stage):
    """Trains the second decoder on the code maps and slices of the training split; all else is frozen. Of a run with two levels
    of codes it adds texture to what both paint.

    Scored by the mixture of `sharpness_scores`, on whole validation slices.
    """

    name, score, higher_is_better = "sharp", "validate_mixture", True
    average_decay = 0.999
    chances = 3

    def __init__(
        self,
        vqvae: Codec,
        data: CodedSlices,
        frame: Frame,
        precision: str,
        decoder: SharpDecoder | SharpDetail | None = None,
    ):
        """decoder: one that has been trained before, to be trained further."""
        self.vqvae, self.data, self.frame, self.precision = vqvae.requires_grad_(False), data, frame, precision
        self.first = first_of(vqvae)
        if isinstance(vqvae, TwoLevelVQVAE):
            self.model = decoder or SharpDetail.after(vqvae)
        else:
            self.model = decoder or SharpDecoder.after(vqvae)
            self.model.load_state_dict(vqvae.decoder.state_dict(), strict=False)  # trained further since, it may be
        self.model = self.model.to(memory_format=torch.channels_last)
        self.model.texture.requires_grad_(True)
        self.size, self.device = len(data.train), self.first.quantizer.codebook.device
        self.micro_batch = max(1, at_a_time(PIXELS, self.device) // (2 * frame.height * frame.width))
        self.scored = data.validation.evenly(scored_slices(self.size))
        scored = spread_over(len(data.validation), scored_slices(self.size))
        self.scored_codes = data.validation_codes[torch.from_numpy(scored)]
        some = spread_over(self.size, RESIDUAL_SLICES)
        images, known = self._images(some), as_taken(data.codes[torch.from_numpy(some)], self.device)
        residuals = (images - vqvae.decode(known)).cpu()
        known = first_level(known)
        self.texture_score = TextureScore(residuals, known.cpu(), self.first.quantizer.num_codes)
        self.spectrum_score = SpectrumScore(images)
        self.code_score = CodeScore(self.first, images, known)

    def optimizers(self, lr: float) -> list[torch.optim.Optimizer]:
        return [adamw(self.model.texture.parameters(), lr)]

    def before_step(self, step: int, steps: int) -> None:
        self.texture_score.look_anew()

    def losses(self, indices: np.ndarray, chance: Tensor) -> dict[str, Tensor]:
        images, chosen = self._images(indices), torch.from_numpy(indices)
        swap = (chance[:, 0] < 0.5) & self.data.train.symmetric
        codes = as_taken(self.data.maps(chosen, swap), self.device)
        images = torch.where(swap[:, None, None, None].to(images.device), images.flip(2), images)
        with autocast(images.device, self.precision):
            painted = self._painted(codes)
            noise = [torch.Generator().manual_seed(int(x * 2**53)) for draw in (1, 2) for x in chance[:, draw].tolist()]
            twice = (each.repeat(2, 1, 1, 1) for each in painted)
            first, second = self.model.texture(*twice, noise).chunk(2)
            code_loss = self.code_score(first, first_level(codes), ~self.first.flat(images))
        texture_loss = self.texture_score(images, first, second, first_level(codes))
        spectrum_loss = (self.spectrum_score(images, first) + self.spectrum_score(images, second)) / 2
        loss = texture_loss + CODE_WEIGHT * code_loss + SPECTRUM_WEIGHT * spectrum_loss
        parts = {"texture": texture_loss, "recoding": code_loss, "spectrum": spectrum_loss}
        return {"loss": loss} | {name: part.detach() for name, part in parts.items()}

    def validate(self, model: SharpDecoder | SharpDetail) -> dict[str, float]:
        decoded, sharp = [], self.vqvae.with_decoder(model)
        for part in self.scored_codes.split(DECODED):
            decoded.append(self.frame.pad(sharp.decode(as_taken(part, self.device)).cpu()))
        images = self.scored.batch(np.arange(len(self.scored)))
        return sharpness_scores(torch.cat(decoded), images, self.frame)

    def _painted(self, codes: CodeMaps) -> Painted:
        """What texture is added to: features and picture, neither of which is trained."""
        with torch.no_grad():
            if isinstance(self.vqvae, TwoLevelVQVAE):
                return self.vqvae.paint(codes)
            return self.model.smooth(self.vqvae.quantizer.lookup(codes))

    def _images(self, indices: np.ndarray) -> Tensor:
        return self.data.train.batch(indices, self.frame).to(self.device, memory_format=torch.channels_last)


def sharpness_scores(decoded: Tensor, images: Tensor, frame: Frame) -> dict[str, float]:
    """What the sharp decoder is chosen by, of whole `[N, 1, H, W]` slices, as validate_...:

    mixture = ssim - 0.1 |log10 sharpness| - 0.5 swd_0 / 1000
              - `TEXTURE_WEIGHT` (|ln texture_kurtosis| + |ln edge_to_smooth| + |ln tissue_noise|)

    sharpness: fine power, decoded / real. swd_0: sliced Wasserstein distance of the finest level of the Laplacian pyramid, times
    1000. texture_kurtosis, edge_to_smooth, tissue_noise: those of `scoring.texture`, decoded / real: where fine detail lies, so
    that grain strewn over smooth tissue is not taken for it. A tenth too much or too little of one costs .024, which is the SSIM
    (.954 less .930) that the sharp decoder of the weights that come with the toolkit gives up for its texture. A term that small
    or empty slices do not allow is left out.
    """
    inside, decoded_inside = frame.crop(images)[:, 0], frame.crop(decoded)[:, 0]
    similarity = float(torch.cat([ssim(*pair) for pair in zip(decoded.split(32), images.split(32))]).double().mean())
    sharpness = float(fine_power(decoded).double().sum() / fine_power(images).double().sum().clamp(min=1e-12))
    scores = {"validate_ssim": similarity, "validate_sharpness": sharpness}
    mixture = similarity - 0.1 * abs(math.log10(max(sharpness, 1e-6)))
    if min(inside.shape[1:]) >= SMALLEST_SIDE:
        swd = sliced_wasserstein(decoded_inside, inside, torch.Generator().manual_seed(0))[0]
        scores["validate_swd_0"] = swd
        mixture -= 0.5 * swd / 1000
    real, found = (texture_summary(texture_values(one)) for one in (inside, decoded_inside))
    for name, value in real.items():
        if value > 0:
            ratio = max(found.get(name, 0) / value, LEAST)
            scores[f"validate_{name}"] = ratio
            mixture -= TEXTURE_WEIGHT * abs(math.log(ratio))
    return scores | {"validate_mixture": mixture}
