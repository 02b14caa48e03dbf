"""What this toolkit's VQ-VAE is compared with, each trained by its own recipe.

`Reference`: the VQ-VAE of the student project that this toolkit started from (PatternFlow, recognition/45678044), written anew
layer by layer from what it published: two strided 4x4 convolutions of width D, two residual blocks, the same backwards, a ReLU
after each, the last one too, batch norm inside the residual blocks alone; codebook learned by gradient from uniform +-1/K,
codebook and commitment terms of weight 1, mean squared error, Adam at 0.002, 32 slices a step, float32, whole slices in 0..1.

`Monai`: MONAI's `VQVAE` with its default channels and residual layers, one strided level a halving, and the recipe of its
tutorial: L1 plus its quantiser's loss, Adam; whole slices.

`Ours`: `vqvae.VQVAE` and its losses on the content frame, for the speed table; its trainings go through `train.py`.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F
from monai.networks.nets import VQVAE as MonaiVQVAE
from torch import Tensor

from common.runtime import autocast
from dataset import Frame, Split
from scoring.metrics import CodeUsage, ssim
from training.loop import muon_and_adamw
from training.reconstruction_loss import reconstruction_loss
from training.vqvae_stage import COMMITMENT, MUON_SCALE
from vqvae import VQVAE

NUM_CODES, CODE_DIM = 512, 64
TARGET_SSIM = 0.9068  # what the student project reports, of grids of slices
BATCH = 32  # slices at a time when scoring
MONAI_CHANNELS = 96  # its default


class Peer:
    """A model with its optimizer.

    name: in tables. batch: slices a step. precision: of training, encoding and decoding, "float32" or "bf16" (autocast).
    """

    name: str
    batch = 32
    precision = "float32"
    model: nn.Module
    optimizers: list[torch.optim.Optimizer]

    def loss(self, images: Tensor) -> Tensor:
        """Training loss of whole slices `[B, 1, H, W]` in 0..1."""
        raise NotImplementedError

    def encode(self, images: Tensor) -> Tensor:
        """Code maps `[B, h, w]` of whole slices."""
        raise NotImplementedError

    def decode(self, codes: Tensor) -> Tensor:
        """Whole slices in 0..1 of code maps."""
        raise NotImplementedError

    def step(self, images: Tensor) -> float:
        """One optimizer step; returns the loss."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        with autocast(images.device, self.precision):
            loss = self.loss(images)
        loss.backward()
        for optimizer in self.optimizers:
            optimizer.step()
        return loss.item()


class ReferenceResidual(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class ReferenceNetwork(nn.Module):
    """Downsamples by 4; `[B, 1, H, W]` in 0..1, and so are the reconstructions, but for what is past 1."""

    def __init__(self, num_codes: int = NUM_CODES, code_dim: int = CODE_DIM):
        super().__init__()
        width = code_dim
        self.encoder = nn.Sequential(
            nn.Conv2d(1, width, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 4, stride=2, padding=1),
            nn.ReLU(),
            *self._blocks(width),
        )
        self.codebook = nn.Embedding(num_codes, code_dim)
        nn.init.uniform_(self.codebook.weight, -1 / num_codes, 1 / num_codes)
        self.decoder = nn.Sequential(
            *self._blocks(width),
            nn.ConvTranspose2d(width, width, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(width, 1, 4, stride=2, padding=1),
            nn.ReLU(),
        )

    @staticmethod
    def _blocks(width: int) -> list[nn.Module]:
        return [ReferenceResidual(width), nn.ReLU(), ReferenceResidual(width), nn.ReLU()]

    def codes(self, latents: Tensor) -> Tensor:
        vectors, codebook = latents.permute(0, 2, 3, 1).flatten(0, 2), self.codebook.weight
        nearest = torch.addmm(codebook.square().sum(1), vectors, codebook.t(), alpha=-2).argmin(1)
        return nearest.view(len(latents), *latents.shape[2:])

    def lookup(self, codes: Tensor) -> Tensor:
        return self.codebook(codes).permute(0, 3, 1, 2)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Reconstruction and codebook loss (equation 3 of arXiv 1711.00937, but with a weight of 1 for the commitment)."""
        latents = self.encoder(images)
        with torch.no_grad():
            codes = self.codes(latents)
        chosen = self.lookup(codes)
        codebook_loss = F.mse_loss(chosen, latents.detach()) + F.mse_loss(latents, chosen.detach())
        return self.decoder(latents + (chosen - latents).detach()), codebook_loss


class Reference(Peer):
    """The student project's network by its own recipe. codebook_loss: of the last step."""

    name = "reference"
    codebook_loss = 0.0

    def __init__(self, downsample: int, lr: float = 0.002):
        if downsample != 4:
            raise ValueError(f"the reference network downsamples by 4, not {downsample}")
        self.model = ReferenceNetwork()
        self.optimizers = [torch.optim.Adam(self.model.parameters(), lr)]

    def loss(self, images: Tensor) -> Tensor:
        decoded, codebook_loss = self.model(images)
        self.codebook_loss = codebook_loss.item()
        return F.mse_loss(decoded, images) + codebook_loss

    def encode(self, images: Tensor) -> Tensor:
        return self.model.codes(self.model.encoder(images))

    def decode(self, codes: Tensor) -> Tensor:
        return self.model.decoder(self.model.lookup(codes)).clamp(0, 1)


class Monai(Peer):
    name = "MONAI VQVAE"

    def __init__(
        self,
        downsample: int,
        precision: str = "float32",
        lr: float = 3e-4,
        batch: int = 32,
        channels: int = MONAI_CHANNELS,
    ):
        """channels: of every level but the last, which has twice as many."""
        self.precision, self.batch = precision, batch
        levels = downsample.bit_length() - 1
        widths = (*[channels] * (levels - 1), 2 * channels)  # its defaults at three levels: 96, 96, 192
        self.model = MonaiVQVAE(
            spatial_dims=2,
            in_channels=1,
            out_channels=1,
            channels=widths,
            num_res_channels=widths,
            downsample_parameters=((2, 4, 1, 1),) * levels,
            upsample_parameters=((2, 4, 1, 1, 0),) * levels,
            num_embeddings=NUM_CODES,
            embedding_dim=CODE_DIM,
        )
        quantizer = (
            self.model.quantizer
        )  # keeps its distances in float32 under CUDA's autocast alone; here under the CPU's too
        quantizer.forward = torch.autocast("cpu", enabled=False)(quantizer.forward)
        quantizer.quantize = torch.autocast("cpu", enabled=False)(quantizer.quantize)
        self.optimizers = [torch.optim.Adam(self.model.parameters(), lr)]

    def loss(self, images: Tensor) -> Tensor:
        decoded, quantization_loss = self.model(images)
        return F.l1_loss(decoded, images) + quantization_loss

    def encode(self, images: Tensor) -> Tensor:
        return self.model.index_quantize(images)

    def decode(self, codes: Tensor) -> Tensor:
        return self.model.decode_samples(codes).clamp(0, 1)


class Ours(Peer):
    """One training step as `training.vqvae_stage.VQVAEStage` takes it, on the content frame of whole slices."""

    name = "oasis-vqvae"

    def __init__(self, downsample: int, frame: Frame, examples: Tensor, precision: str = "float32", lr: float = 0.002):
        self.frame, self.precision = frame, precision
        self.model = VQVAE(NUM_CODES, CODE_DIM, downsample).to(memory_format=torch.channels_last)
        self.model.start(self._inside(examples))
        self.optimizers = muon_and_adamw(self.model, lr, MUON_SCALE)

    def loss(self, images: Tensor) -> Tensor:
        inside = self._inside(images)
        out = self.model(inside)
        self.model.quantizer.update(out.latents, out.codes)
        return reconstruction_loss(out.images, inside) + COMMITMENT * out.commitment_loss

    def encode(self, images: Tensor) -> Tensor:
        return self.model.encode(self._inside(images))

    def decode(self, codes: Tensor) -> Tensor:
        return self.frame.pad(self.model.decode(codes))

    def _inside(self, images: Tensor) -> Tensor:
        return self.frame.crop(images).contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def score_peer(peer: Peer, split: Split) -> dict[str, float]:
    """Mean SSIM of whole slices, and the use of the codebook."""
    peer.model.eval()
    values, codes = [], []
    for _, images in split.batches(BATCH):
        codes.append(peer.encode(images))
        values.append(ssim(peer.decode(codes[-1]).float(), images))
    peer.model.train()
    usage = CodeUsage.of(torch.cat(codes), NUM_CODES)
    return {
        "ssim": float(torch.cat(values).double().mean()),
        "codes_used": usage.used,
        "perplexity": usage.perplexity,
        "codes_per_slice": codes[0][0].numel(),
    }
