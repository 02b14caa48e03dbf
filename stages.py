"""The trained stages: how the VQ-VAE, the prior and the sharper decoder take a batch, and how they are scored after an epoch."""

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from dataset import Frame, Split, spread_over
from metrics import CodeUsage, fine_power, ssim
from optimizer import Muon
from pixelcnn import GatedPixelCNN, PositionalMarginal
from realism import sliced_wasserstein
from scoring import encode_split, known_batch, mean_bits, mean_ssim
from sharpening import CodeScore, SharpDecoder, SpectrumScore, TextureScore
from training import WEIGHT_DECAY, Stage, adamw
from utils import autocast
from vqvae import VQVAE, reconstruction_loss

MUON_SCALE = 0.4  # size of Muon's steps as a share of the learning rate: twice AdamW's
COMMITMENT = 0.25  # beta of arXiv 1711.00937
CONTINUOUS_SHARE, CONTINUOUS_STEPS = 0.1, 200  # share of the VQ-VAE's steps, and steps at most, without quantising
PLACING_SLICES = 128  # training slices whose latents the codes are placed among
EPOCH_SCORE_SLICES = 256  # slices per split scored after an epoch, at most; the final scores are over all
VQVAE_PIXELS = 32 * 208 * 176  # pixels whose VQ-VAE activations are held at a time
UNKNOWN_SHARE = 0.05  # of the training maps whose slice position, or another condition, is withheld from the prior
RESIDUAL_SLICES = 128  # training slices that say how strong texture is
SPECTRUM_WEIGHT = 3.0  # of the distance of spectra in the sharper decoder's loss
CODE_WEIGHT = 0.4  # of finding the codes again in the sharper decoder's pictures
SMALLEST_SIDE = 22  # pixels of slices whose sliced Wasserstein distance can be scored
PRIOR_PLACES = 24 * 22 * 26  # code-map places whose prior activations are held at a time


class VQVAEStage(Stage):
    """Trains the VQ-VAE on the frames of the training slices; scored by SSIM on whole validation slices.

    The first steps train a plain autoencoder: the codes are then placed among latents that already mean something, and
    nearly all of them find use.
    """

    name, score, higher_is_better = "vqvae", "validate_ssim", True
    chances = 1

    def __init__(
        self, model: VQVAE, train: Split, validation: Split, frame: Frame, precision: str, trained: bool = False
    ):
        """`trained`: the model has been trained before, so its codes stay where they are."""
        self.model, self.train, self.frame, self.precision, self.trained = model, train, frame, precision, trained
        self.size = len(train)
        self.micro_batch = max(1, VQVAE_PIXELS // (frame.height * frame.width))
        self.scored = {
            "train": train.evenly(scored_slices(self.size) // 2),
            "validate": validation.evenly(scored_slices(self.size)),
        }
        self.continuous = False  # whether this step trains without quantising
        self.pending: list[tuple[Tensor, Tensor]] = []  # latents and codes of the parts of this batch

    def optimizers(self, lr: float) -> list[torch.optim.Optimizer]:
        return vqvae_optimizers(self.model, lr)

    def start(self, indices: np.ndarray) -> None:
        if not self.trained:
            self.model.start(self._images(indices))

    def before_step(self, step: int, steps: int) -> None:
        first_quantised = 0 if self.trained else min(CONTINUOUS_STEPS, round(CONTINUOUS_SHARE * steps))
        self.continuous = step < first_quantised
        if step == first_quantised and not self.trained:
            self._place_codes()

    def losses(self, indices: np.ndarray, chance: Tensor) -> dict[str, Tensor]:
        images = self._images(indices)
        if self.train.symmetric:
            images = mirrored(images, chance[:, 0])
        with autocast(images.device, self.precision):
            out = None if self.continuous else self.model(images)
            decoded = self.model.autoencode(images) if out is None else out.images
        reconstruction = reconstruction_loss(decoded, images)
        if out is None:
            return {"loss": reconstruction, "reconstruction": reconstruction.detach(), "commitment": torch.zeros(())}
        self.pending.append((out.latents, out.codes))
        return {
            "loss": reconstruction + COMMITMENT * out.commitment_loss,
            "reconstruction": reconstruction.detach(),
            "commitment": out.commitment_loss.detach(),
        }

    def after_step(self) -> dict[str, float]:
        if self.continuous:
            return {}
        if not self.pending:  # this process had no share of the batch
            none = torch.empty(0, 1, 1, dtype=torch.int64, device=self.model.quantizer.codebook.device)
            self.pending = [(self.model.quantizer.codebook.new_empty(0, self.model.quantizer.code_dim, 1, 1), none)]
        latents, codes = (torch.cat(parts) for parts in zip(*self.pending))
        self.pending.clear()
        self.model.quantizer.update(latents, codes)
        usage = CodeUsage.of(codes.cpu(), self.model.quantizer.num_codes)
        return {"codes": usage.used, "perplexity": usage.perplexity}

    def before_validation(self) -> None:
        if self.continuous:
            self._place_codes()  # so that an early score is one of codes too

    def validate(self, model: VQVAE) -> dict[str, float]:
        scores = {}
        for name, split in self.scored.items():
            codes = encode_split(model, split, self.frame)
            usage = CodeUsage.of(codes, model.quantizer.num_codes)
            scores |= {
                f"{name}_ssim": mean_ssim(model, split, codes, self.frame),
                f"{name}_codes_used": usage.used,
                f"{name}_perplexity": usage.perplexity,
            }
        return scores

    @torch.no_grad()
    def _place_codes(self) -> None:
        """Put the codes among the latents of slices spread over the training split."""
        chosen = spread_over(self.size, PLACING_SLICES)
        parts = [
            self.model.latents(self._images(part)).float()
            for part in np.array_split(chosen, -(-len(chosen) // self.micro_batch))
        ]
        self.model.quantizer.start(torch.cat(parts))

    def _images(self, indices: np.ndarray) -> Tensor:
        device = next(self.model.parameters()).device
        return self.train.batch(indices, self.frame).to(device, memory_format=torch.channels_last)


class PriorStage(Stage):
    """Trains the prior on code maps; scored by bits per code on the validation maps.

    Half of the maps of an epoch are those of the mirrored slices, as the VQ-VAE saw them: twice as many heads to learn from.
    The prior's table of code frequencies by place counts all of these, but for the subject that it is learning from.

    codebook: `[K, D]`, the codes' vectors, which the prior starts from. trained: it has been trained before and starts from what
    it knows, but for that table.
    """

    name, score, higher_is_better = "prior", "validate_bits", False
    average_decay = 0.999

    def __init__(
        self,
        model: GatedPixelCNN,
        train: Tensor,
        mirrored: Tensor,
        validation: Tensor,
        train_known: Mapping[str, np.ndarray],
        validation_known: Mapping[str, np.ndarray],
        subjects: list[str],
        codebook: Tensor,
        precision: str,
        trained: bool = False,
    ):
        self.trained = trained
        self.model, self.train, self.mirrored, self.codebook = model, train, mirrored, codebook
        self.validation, self.precision = validation, precision
        self.marginal = PositionalMarginal([train, mirrored], model.num_codes, subjects)
        self.known = {"train": train_known, "validate": validation_known}
        self.withheld = max(1, len(model.arguments["conditions"]))  # chances of withholding something
        self.size, self.chances = len(train), 1 + self.withheld + model.chances
        self.micro_batch = max(1, PRIOR_PLACES // math.prod(train.shape[1:]))

    def start(self, indices: np.ndarray) -> None:
        if not self.trained:
            self.model.start_from_marginal(self.marginal.probabilities())
            self.model.start_from_codebook(self.codebook)
        elif self.model.log_marginal is not None:
            self.model.log_marginal.copy_(self.marginal.probabilities().log())

    def losses(self, indices: np.ndarray, chance: Tensor) -> dict[str, Tensor]:
        device = self.model.embedding.weight.device
        chosen = torch.from_numpy(indices)
        swap = chance[:, 0, None, None] < 0.5
        codes = torch.where(swap, self.mirrored[chosen], self.train[chosen]).long().to(device)
        told = known_batch(self.known["train"], indices, self.model)
        for number, name in enumerate(
            told, 1
        ):  # now and then without, so that the prior also knows slices of unknown position
            told[name] = torch.where(chance[:, number].to(device) < UNKNOWN_SHARE, math.nan, told[name])
        table = None if self.model.log_marginal is None else self.marginal.log_without(chosen).to(device)
        dropout = chance[:, 1 + self.withheld :].to(device)
        with autocast(device, self.precision):
            logits = self.model(codes, conditions=told, log_marginal=table, chance=dropout)
        return {"loss": nn.functional.cross_entropy(logits.float(), codes)}

    def validate(self, model: GatedPixelCNN) -> dict[str, float]:
        return {
            f"{name}_bits": self._some_bits(model, codes, self.known[name])
            for name, codes in (("train", self.train), ("validate", self.validation))
        }

    def _some_bits(self, model: GatedPixelCNN, codes: Tensor, known: Mapping[str, np.ndarray]) -> float:
        some = spread_over(len(codes), scored_slices(self.size))
        return mean_bits(model, codes[torch.from_numpy(some)], {name: values[some] for name, values in known.items()})


class SharpenStage(Stage):
    """Trains the second decoder on the code maps and slices of the training split; all else is frozen.

    Scored by a mixture, on whole validation slices: SSIM - 0.1 |decimal logarithm of sharpness| - 0.5 x the sliced Wasserstein
    distance of the finest level of the Laplacian pyramid.
    """

    name, score, higher_is_better = "sharp", "validate_mixture", True
    average_decay = 0.999
    chances = 3

    def __init__(
        self,
        vqvae: VQVAE,
        train: Split,
        validation: Split,
        codes: Tensor,
        mirrored_codes: Tensor,
        frame: Frame,
        precision: str,
        decoder: SharpDecoder | None = None,
    ):
        self.vqvae, self.train, self.frame, self.precision = vqvae.requires_grad_(False), train, frame, precision
        self.codes = codes, mirrored_codes
        self.model = (decoder or SharpDecoder.after(vqvae)).to(memory_format=torch.channels_last)
        self.model.load_state_dict(vqvae.decoder.state_dict(), strict=False)  # trained further since, it may be
        self.model.texture.requires_grad_(True)
        self.size = len(train)
        self.micro_batch = max(1, VQVAE_PIXELS // (2 * frame.height * frame.width))
        self.scored = validation.evenly(scored_slices(self.size))
        self.scored_codes = encode_split(vqvae, self.scored, frame)
        some = spread_over(self.size, RESIDUAL_SLICES)
        images, known = self._images(some), self._codes(codes[torch.from_numpy(some)])
        residuals = (images - vqvae.decode(known)).cpu()
        self.texture_score = TextureScore(residuals, known.cpu(), vqvae.quantizer.num_codes)
        self.spectrum_score = SpectrumScore(images)
        self.code_score = CodeScore(vqvae, images, known)

    def optimizers(self, lr: float) -> list[torch.optim.Optimizer]:
        return [adamw(self.model.texture.parameters(), lr)]

    def before_step(self, step: int, steps: int) -> None:
        self.texture_score.look_anew()

    def losses(self, indices: np.ndarray, chance: Tensor) -> dict[str, Tensor]:
        images, chosen = self._images(indices), torch.from_numpy(indices)
        swap = (chance[:, 0, None, None] < 0.5) & self.train.symmetric
        codes = self._codes(torch.where(swap, self.codes[1][chosen], self.codes[0][chosen]))
        images = torch.where(swap[..., None].to(images.device), images.flip(2), images)
        with autocast(images.device, self.precision):
            features, picture = self.model.smooth(self.vqvae.quantizer.lookup(codes))
            noise = [torch.Generator().manual_seed(int(x * 2**53)) for draw in (1, 2) for x in chance[:, draw].tolist()]
            twice = features.repeat(2, 1, 1, 1), picture.repeat(2, 1, 1, 1)
            first, second = self.model.textured(*twice, noise).chunk(2)
            code_loss = self.code_score(first, codes, ~self.vqvae.flat(images))
        texture_loss = self.texture_score(images, first, second, codes)
        spectrum_loss = (self.spectrum_score(images, first) + self.spectrum_score(images, second)) / 2
        loss = texture_loss + CODE_WEIGHT * code_loss + SPECTRUM_WEIGHT * spectrum_loss
        parts = {"texture": texture_loss, "recoding": code_loss, "spectrum": spectrum_loss}
        return {"loss": loss} | {name: part.detach() for name, part in parts.items()}

    def validate(self, model: SharpDecoder) -> dict[str, float]:
        decoded = []
        for part in self.scored_codes.split(PLACING_SLICES // 4):
            with torch.inference_mode():
                sharp = model(self.vqvae.quantizer.lookup(self._codes(part))).float().clamp(0, 1)
            decoded.append(self.frame.pad(sharp.cpu()))
        images = self.scored.batch(np.arange(len(self.scored)))
        return sharpness_scores(torch.cat(decoded), images, self.frame)

    def _images(self, indices: np.ndarray) -> Tensor:
        device = self.vqvae.quantizer.codebook.device
        return self.train.batch(indices, self.frame).to(device, memory_format=torch.channels_last)

    def _codes(self, codes: Tensor) -> Tensor:
        return codes.long().to(self.vqvae.quantizer.codebook.device)


def sharpness_scores(decoded: Tensor, images: Tensor, frame: Frame) -> dict[str, float]:
    """What the sharper decoder is chosen by, of whole `[N, 1, H, W]` slices."""
    inside, decoded_inside = frame.crop(images)[:, 0], frame.crop(decoded)[:, 0]
    similarity = float(torch.cat([ssim(*pair) for pair in zip(decoded.split(32), images.split(32))]).double().mean())
    sharpness = float(fine_power(decoded).double().sum() / fine_power(images).double().sum().clamp(min=1e-12))
    scores = {"validate_ssim": similarity, "validate_sharpness": sharpness}
    swd = 0.0
    if min(inside.shape[1:]) >= SMALLEST_SIDE:
        swd = sliced_wasserstein(decoded_inside, inside, torch.Generator().manual_seed(0))[0]
        scores["validate_swd_0"] = swd
    mixture = similarity - 0.1 * abs(math.log10(max(sharpness, 1e-6))) - 0.5 * swd / 1000
    return scores | {"validate_mixture": mixture}


def vqvae_optimizers(model: VQVAE, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the hidden kernels, AdamW for the ends, the biases and what is no kernel."""
    hidden = model.hidden_weights()
    orthogonal = {id(weight) for weight in hidden}
    others = [param for param in model.parameters() if id(param) not in orthogonal]
    return [Muon(hidden, lr, weight_decay=WEIGHT_DECAY, scale=MUON_SCALE), adamw(others, lr)]


def scored_slices(training_slices: int) -> int:
    """How many slices to score after an epoch, so that scoring takes no large part of the time."""
    return max(8, min(EPOCH_SCORE_SLICES, training_slices // 8))


def mirrored(images: Tensor, chance: Tensor) -> Tensor:
    """Each slice of `[B, 1, H, W]` mirrored left to right (its rows, as the head lies on its side) where its chance is below a
    half."""
    return torch.where(chance[:, None, None, None].to(images.device) < 0.5, images.flip(2), images)
