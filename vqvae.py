"""The first stage: a vector-quantised autoencoder (VQ-VAE, arXiv 1711.00937) for single-channel slices.

    model = VQVAE(num_codes=512, code_dim=64, downsample=8)
    out = model(images)                      # images [B, 1, H, W] in 0..1
    loss = reconstruction_loss(out.images, images) + 0.25 * out.commitment_loss
    loss.backward(); optimizer.step()
    model.quantizer.update(out.latents, out.codes)   # the codebook learns by moving averages, not by gradient

    codes = model.encode(images)             # [B, H/f, W/f] int64
    images = model.decode(codes)             # [B, 1, H, W] in 0..1

`forward`, `encode` and `decode` never change state; the codebook moves in `VectorQuantizer.update` alone.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from common import ranks

NEAR_TIE = 2e-5  # of the codes' length: how far float32 may round a latent, with a margin
FLAT = 0.5 / 255  # range of the grey values of a patch without texture: less than one step of 8 bits
SLOPE = 0.1  # of leaky ReLU below zero: plain ReLU left 1 unit in 256 of the encoder's coarse blocks alive
STEM_FACTOR = 4  # pixels per side folded into channels before the first convolution


@dataclass
class QuantizerOutput:
    """What `VectorQuantizer` returns.

    quantized: `[B, D, h, w]` float32, the nearest codes, with the gradient passed straight through to the latents.
    codes: `[B, h, w]` int64 in 0..K-1. commitment_loss: scalar, mean squared distance of the latents to their (detached) codes.
    """

    quantized: Tensor
    codes: Tensor
    commitment_loss: Tensor


@dataclass
class VQVAEOutput:
    """What `VQVAE.forward` returns.

    images: `[B, 1, H, W]` reconstruction, unclamped so that every pixel keeps its gradient. codes: `[B, h, w]` int64.
    commitment_loss: scalar; weight it by beta (0.25 in the paper) and add it to the reconstruction loss.
    latents: `[B, D, h, w]` float32, detached encoder output, for `VectorQuantizer.update`.
    """

    images: Tensor
    codes: Tensor
    commitment_loss: Tensor
    latents: Tensor


class VectorQuantizer(nn.Module):
    """Nearest-neighbour codebook learned by exponential moving averages (appendix A.1 of arXiv 1711.00937).

    The sums and counts start at zero and only their ratio is used, so both averages carry the same bias and it cancels:
    no code blows up on the first step, and no smoothing constant is needed. A code that receives no vectors keeps its
    place; one that stays rare is revived from badly quantised vectors, since random ones are mostly flat background.
    All arithmetic is float32 under any autocast.

    Args:
        num_codes: K, at least 2.
        code_dim: D, at least 1.
        decay: of the moving averages, 0..1.
        revive_below: a code whose average count is under this share of the mean count is dead.
        revive_every: updates between two revivals.
        chunk: vectors whose distances to all codes are held at a time, so that memory does not grow as N x K.
    """

    def __init__(
        self,
        num_codes: int = 512,
        code_dim: int = 64,
        decay: float = 0.99,
        revive_below: float = 0.02,
        revive_every: int = 20,
        chunk: int = 16384,
    ):
        super().__init__()
        if num_codes < 2 or code_dim < 1:
            raise ValueError(f"expected at least 2 codes of at least 1 dimension, got {num_codes} of {code_dim}")
        self.num_codes, self.code_dim = num_codes, code_dim
        self.decay, self.revive_below, self.revive_every, self.chunk = decay, revive_below, revive_every, chunk
        self.register_buffer("codebook", torch.randn(num_codes, code_dim))
        self.register_buffer("sums", torch.zeros(num_codes, code_dim))
        self.register_buffer("counts", torch.zeros(num_codes))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def forward(self, latents: Tensor) -> QuantizerOutput:
        """Quantise `[B, D, h, w]` latents. Changes no state.

        Raises:
            ValueError: when the channels are not D.
        """
        if latents.dim() != 4 or latents.shape[1] != self.code_dim:
            raise ValueError(f"expected latents of shape [B, {self.code_dim}, h, w], got {list(latents.shape)}")
        with torch.autocast(latents.device.type, enabled=False):
            latents = latents.float()
            codes = self.nearest(latents)
            chosen = self.lookup(codes)
            commitment_loss = F.mse_loss(latents, chosen)
            return QuantizerOutput(latents + (chosen - latents).detach(), codes, commitment_loss)

    @torch.no_grad()
    def nearest(self, latents: Tensor) -> Tensor:
        """The code nearest to each latent by Euclidean distance: `[B, D, h, w]` -> `[B, h, w]` int64."""
        vectors = _as_vectors(latents.float())
        half_norms = self.codebook.square().sum(1) / 2  # |z - e|^2 / 2 = |z|^2 / 2 + (|e|^2 / 2 - z.e)
        codes = torch.cat(
            [torch.addmm(half_norms, part, self.codebook.t(), alpha=-1).argmin(1) for part in vectors.split(self.chunk)]
        )
        return codes.view(latents.shape[0], *latents.shape[2:])

    @torch.no_grad()
    def nearest_surely(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """The nearest codes, and where rounding errors of the latents could have decided between the nearest two.

        Returns:
            codes: `[B, h, w]` int64. unsure: `[B, h, w]` bool, true where a latent lies within `NEAR_TIE` times the codes' length
            of the plane halfway between its two nearest codes.
        """
        vectors, half_norms = _as_vectors(latents), self.codebook.square().sum(1) / 2
        device = latents.device
        exact = torch.device("cpu") if device.type == "mps" else device  # mps has no float64
        reach = NEAR_TIE * (2 * half_norms.mean()).sqrt().to(exact).double()
        codes, unsure = [], []
        for part in vectors.split(self.chunk):
            distances = torch.addmm(half_norms, part.float(), self.codebook.t(), alpha=-1)
            first = distances.argmin(1)
            second = distances.scatter_(1, first[:, None], torch.inf).argmin(1)
            near, far = (self.codebook[chosen].to(exact).double() for chosen in (first, second))
            apart = far - near
            length = apart.norm(dim=1).clamp(min=1e-30)
            nearer_far = ((part.to(exact) - (near + far) / 2) * apart).sum(1) / length  # signed distance
            codes.append(torch.where((nearer_far > 0).to(device), second, first))
            unsure.append((nearer_far.abs() < reach).to(device))
        shape = (latents.shape[0], *latents.shape[2:])
        return torch.cat(codes).view(shape), torch.cat(unsure).view(shape)

    def lookup(self, codes: Tensor) -> Tensor:
        """The code vectors of a map: `[B, h, w]` int64 -> `[B, D, h, w]` float32."""
        return F.embedding(codes, self.codebook).permute(0, 3, 1, 2)

    @torch.no_grad()
    def start(self, latents: Tensor, iterations: int = 10) -> None:
        """Put the codes where the data is: k-means on these latents (`[B, D, h, w]`), started from random distinct rows.

        Copies of a row would share its fate: uniform patches all have the same latent. With fewer distinct rows than codes the
        rest of the codes are jittered copies; they are revived once training runs.
        """
        vectors = _as_vectors(latents.float())
        vectors = vectors[torch.randperm(len(vectors), device=vectors.device)]
        distinct = _distinct(vectors)
        vectors = vectors[: 32 * self.num_codes]  # 32 rows a code place the centres well enough
        copies = -(-self.num_codes // len(distinct))
        rows = distinct.repeat(copies, 1)[: self.num_codes].clone()
        rows[len(distinct) :] += 0.01 * vectors.std() * torch.randn_like(rows[len(distinct) :])
        self.codebook.copy_(ranks.of_first(rows))
        for _ in range(iterations):
            sums, counts = self._batch_statistics(vectors, self.nearest(vectors[:, :, None, None]).flatten())
            moved = counts > 0
            self.codebook[moved] = sums[moved] / counts[moved, None]
        self.sums.zero_(), self.counts.zero_(), self.updates.zero_()

    @torch.no_grad()
    def update(self, latents: Tensor, codes: Tensor) -> None:
        """One step of the moving averages; call once per optimizer step.

        Only codes assigned in this batch move. Statistics are summed over all processes, so that every copy of the
        codebook stays the same.

        Args:
            latents: `[B, D, h, w]` encoder output.
            codes: `[B, h, w]` what `forward` assigned them to.
        """
        vectors, codes = _as_vectors(latents.float()), codes.flatten()
        sums, counts = self._batch_statistics(vectors, codes)
        self.sums.mul_(self.decay).add_(sums, alpha=1 - self.decay)
        self.counts.mul_(self.decay).add_(counts, alpha=1 - self.decay)
        self.updates += 1
        moved = counts > 0
        self.codebook[moved] = self.sums[moved] / self.counts[moved, None]
        if self.updates % self.revive_every == 0:
            self._revive(vectors, codes)

    def _batch_statistics(self, vectors: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Sum `[K, D]` and number `[K]` of the vectors assigned to each code, over all processes."""
        sums = torch.zeros_like(self.codebook).index_add_(0, codes, vectors)
        counts = torch.bincount(codes, minlength=self.num_codes).to(sums.dtype)
        return ranks.summed(sums), ranks.summed(counts)

    def _revive(self, vectors: Tensor, codes: Tensor) -> None:
        """Move dead codes onto vectors, of all processes, drawn with probability proportional to their squared error."""
        mean_count = self.counts.mean()
        dead = (self.counts < self.revive_below * mean_count).nonzero().flatten()
        if len(dead) == 0:
            return
        errors = (vectors - self.codebook[codes]).square().sum(1)
        # exponential race: the largest of errors / Exp(1) are a draw without replacement, for any number of vectors
        race = (errors / ranks.exponential_like(errors)).topk(min(len(dead), len(errors)))
        times, rows = race.values.new_zeros(len(dead)), vectors.new_zeros(len(dead), self.code_dim)
        times[: len(race.values)], rows[: len(race.values)] = race.values, vectors[race.indices]
        times, rows = ranks.gathered(times), ranks.gathered(rows)
        winners = times.topk(len(dead)).indices
        winners = winners[times[winners] > 0]  # a vector without error needs no code
        dead, rows = dead[: len(winners)], rows[winners]
        self.codebook[dead] = rows
        self.counts[dead] = mean_count * self.revive_below * 2  # a grace period, then it must earn its place
        self.sums[dead] = rows * self.counts[dead, None]


def _as_vectors(latents: Tensor) -> Tensor:
    """`[B, D, h, w]` -> `[B*h*w, D]`."""
    return latents.permute(0, 2, 3, 1).reshape(-1, latents.shape[1])


def _distinct(vectors: Tensor) -> Tensor:
    """The distinct ones of `[N, D]` vectors, in their order; those that differ by rounding alone are one."""
    rounded = (vectors / (1e-4 * vectors.std()).clamp(min=1e-12)).round()
    group = torch.unique(rounded, dim=0, return_inverse=True)[1]
    order = torch.arange(len(vectors), device=vectors.device)
    first = torch.full_like(order, len(vectors)).scatter_reduce_(0, group, order, "amin")
    return vectors[first[first < len(vectors)].sort().values]


class ResidualBlock(nn.Module):
    """Pre-activation residual block, 3x3 then 1x1, that starts as the identity. `[B, C, H, W]` -> the same."""

    def __init__(self, channels: int):
        super().__init__()
        self.spatial = nn.Conv2d(channels, channels, 3, padding=1)
        self.mix = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.mix.weight)
        nn.init.zeros_(self.mix.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mix(F.leaky_relu(self.spatial(F.leaky_relu(x, SLOPE)), SLOPE))


def _widths(width: int, downsample: int) -> tuple[int, list[int]]:
    """Stem factor and channels of each scale, fine to coarse: one scale at the stem, one more a halving."""
    stem = min(STEM_FACTOR, downsample)
    halvings = (downsample // stem).bit_length() - 1
    return stem, [width * 2**i for i in range(halvings + 1)]


class Encoder(nn.Module):
    """Slices to latents: `[B, 1, H, W]` -> `[B, D, H/f, W/f]`.

    A space-to-depth stem, so that nothing is computed at full resolution, then residual blocks at each scale.
    """

    def __init__(self, code_dim: int, downsample: int, width: int, blocks: int):
        super().__init__()
        stem, widths = _widths(width, downsample)
        layers: list[nn.Module] = [nn.PixelUnshuffle(stem), nn.Conv2d(stem**2, widths[0], 3, padding=1)]
        layers += [ResidualBlock(widths[0]) for _ in range(blocks)]
        for fine, coarse in pairwise(widths):
            layers += [nn.Conv2d(fine, coarse, 4, stride=2, padding=1)]
            layers += [ResidualBlock(coarse) for _ in range(blocks)]
        layers += [nn.LeakyReLU(SLOPE), nn.Conv2d(widths[-1], code_dim, 1)]
        self.layers = nn.Sequential(*layers)

    @property
    def reach(self) -> int:
        """Pixels beyond its own patch, on each side, that a latent can depend on, at most."""
        pixels, step = 0, 1
        for layer in self.layers.modules():
            if isinstance(layer, nn.PixelUnshuffle):
                step *= layer.downscale_factor
            elif isinstance(layer, nn.Conv2d):
                pixels += (layer.kernel_size[0] - 1 - layer.padding[0]) * step
                step *= layer.stride[0]
        return pixels

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


class Decoder(nn.Module):
    """Code vectors to slices: `[B, D, h, w]` -> `[B, 1, h*f, w*f]`, upsampling by sub-pixel convolution (arXiv 1609.05158)."""

    def __init__(self, code_dim: int, downsample: int, width: int, blocks: int):
        super().__init__()
        stem, widths = _widths(width, downsample)
        layers: list[nn.Module] = [nn.Conv2d(code_dim, widths[-1], 3, padding=1)]
        layers += [ResidualBlock(widths[-1]) for _ in range(blocks)]
        for coarse, fine in zip(widths[:0:-1], widths[-2::-1]):
            layers += [nn.Conv2d(coarse, fine * 4, 1), nn.PixelShuffle(2)]
            layers += [ResidualBlock(fine) for _ in range(blocks)]
        layers += [nn.LeakyReLU(SLOPE), nn.Conv2d(widths[0], stem**2, 3, padding=1), nn.PixelShuffle(stem)]
        self.layers = nn.Sequential(*layers)

    def forward(self, quantized: Tensor) -> Tensor:
        return self.layers(quantized)

    def painted(self, quantized: Tensor) -> tuple[Tensor, Tensor]:
        """The last features, `[B, C, h*f/s, w*f/s]` for s pixels a side of the last shuffle, and the picture."""
        features = self.layers[:-3](quantized)
        return features, self.layers[-3:](features).float()


class VQVAE(nn.Module):
    """Vector-quantised autoencoder (arXiv 1711.00937) for `[B, 1, H, W]` slices in 0..1.

    Args:
        num_codes: K, entries of the codebook.
        code_dim: D, dimension of a code.
        downsample: f, pixels a code covers along each side: a power of two from 2 to 32.
        width: channels at the finest scale; each halving doubles them. blocks: residual blocks at each scale of both networks.
    """

    def __init__(self, num_codes: int = 512, code_dim: int = 64, downsample: int = 8, width: int = 64, blocks: int = 2):
        super().__init__()
        if downsample not in (2, 4, 8, 16, 32):
            raise ValueError(f"downsample must be 2, 4, 8, 16 or 32, got {downsample}")
        self.downsample = downsample
        self.arguments = dict(num_codes=num_codes, code_dim=code_dim, downsample=downsample, width=width, blocks=blocks)
        self.encoder = Encoder(code_dim, downsample, width, blocks)
        self.quantizer = VectorQuantizer(num_codes, code_dim)
        self.decoder = Decoder(code_dim, downsample, width, blocks)
        self.flat_latent = nn.Conv2d(1, code_dim, 1)

    def hidden_weights(self) -> list[nn.Parameter]:
        """The kernels between the first and the last convolution, which Muon is for."""
        ends = (self.encoder.layers[1].weight, self.decoder.layers[-2].weight, self.flat_latent.weight)
        return [weight for weight in self.parameters() if weight.dim() > 1 and all(weight is not end for end in ends)]

    def forward(self, images: Tensor) -> VQVAEOutput:
        """Encode, quantise and decode `[B, 1, H, W]` slices; H and W must be multiples of f. Changes no state."""
        latents = self.latents(images)
        out = self.quantizer(latents)
        images = self.decoder(out.quantized).float()
        return VQVAEOutput(images, out.codes, out.commitment_loss, latents.detach().float())

    @torch.no_grad()
    def start(self, images: Tensor) -> None:
        """Scale the untrained encoder so that its latents of `[B, 1, H, W]` slices have zero mean and unit variance, then
        place the codes among them.

        Untrained latents are tiny, and a decoder that is fed almost nothing learns slowly.
        """
        standardise(self.encoder.layers[-1], self.encoder(images))
        self.quantizer.start(self.latents(images))

    def autoencode(self, images: Tensor) -> Tensor:
        """Encode and decode `[B, 1, H, W]` slices without quantising in between; unclamped."""
        return self.decoder(self.latents(images)).float()

    def latents(self, images: Tensor) -> Tensor:
        """Encoder output before quantisation, `[B, D, h, w]`.

        A uniform patch is encoded by its grey value alone, so that constant background has the same code wherever it lies and
        whatever is next to it: those codes cost the prior nothing.

        Raises:
            ValueError: when the images are not `[B, 1, H, W]` with H and W multiples of f.
        """
        if images.dim() != 4 or images.shape[1] != 1:
            raise ValueError(f"expected images of shape [B, 1, H, W], got {list(images.shape)}")
        height, width, f = *images.shape[2:], self.downsample
        if height % f or width % f:
            raise ValueError(f"height and width must be multiples of the downsampling {f}, got {height}x{width}")
        grey = F.avg_pool2d(images, f)
        return torch.where(self.flat(images), self.flat_latent(grey), self.encoder(images))

    def flat(self, images: Tensor) -> Tensor:
        """Which patches of `[B, 1, H, W]` slices have no texture, `[B, 1, h, w]` bool."""
        return flat_patches(images, self.downsample)

    def encode(self, images: Tensor) -> Tensor:
        """Code maps `[B, h, w]` int64 of `[B, 1, H, W]` slices: the same for a slice in any batch and on any device.

        Always in float32: a bf16 encoder flips codes whose two nearest neighbours are close. Even float32 rounds differently in
        other batches and on other devices, so where a latent lies almost halfway between two codes, about one position in some
        thousands, it is computed again in float64.
        """
        with torch.inference_mode(), torch.autocast(images.device.type, enabled=False), full_float32():
            images = images.float()
            codes, unsure = self.quantizer.nearest_surely(self.latents(images))
            if unsure.any():
                self._settle(codes, unsure, images)
        return codes.clone()  # out of inference mode, so that the caller may train on it

    def _settle(self, codes: Tensor, unsure: Tensor, images: Tensor) -> None:
        """Replace the unsure codes by those of float64 latents, on the CPU, since not every device has float64: each computed
        from the pixels that it depends on, or from the whole slice where that is less work."""
        exact = copy.deepcopy(self).cpu().double()
        codebook, f = self.quantizer.codebook.cpu().double(), self.downsample
        reach = -(-self.encoder.reach // f)  # in positions
        for index in unsure.flatten(1).any(1).nonzero()[:, 0].tolist():
            image, places = images[index, None].cpu().double(), unsure[index].nonzero().tolist()
            whole = exact.latents(image) if len(places) * (2 * reach + 1) ** 2 > unsure[index].numel() else None
            for row, column in places:
                top, left = max(0, row - reach), max(0, column - reach)
                if whole is not None:
                    latent = whole[0, :, row, column]
                else:
                    pixels = image[:, :, top * f : (row + reach + 1) * f, left * f : (column + reach + 1) * f]
                    latent = exact.latents(pixels)[0, :, row - top, column - left]
                codes[index, row, column] = (codebook - latent).square().sum(1).argmin()

    def with_decoder(self, decoder: nn.Module) -> "VQVAE":
        """The same encoder and codebook with another decoder `[B, D, h, w]` -> `[B, 1, h*f, w*f]`; this one stays as it is."""
        with torch.device("meta"):  # its own networks are thrown away
            other = VQVAE(**self.arguments)
        other.encoder, other.flat_latent, other.quantizer = self.encoder, self.flat_latent, self.quantizer
        other.decoder, other.training = decoder, self.training
        return other

    def decode(self, codes: Tensor, noise: Tensor | None = None) -> Tensor:
        """Slices `[B, 1, h*f, w*f]` in 0..1 of `[B, h, w]` code maps. noise: of the slices' size, for a decoder that takes it."""
        with torch.inference_mode():
            vectors = self.quantizer.lookup(codes)
            images = (self.decoder(vectors) if noise is None else self.decoder(vectors, noise)).float().clamp(0, 1)
        return images.clone()


def flat_patches(images: Tensor, side: int) -> Tensor:
    """Which patches of so many pixels a side have no texture: `[B, 1, H, W]` -> `[B, 1, H/side, W/side]` bool."""
    return F.max_pool2d(images, side) + F.max_pool2d(-images, side) < FLAT


@torch.no_grad()
def standardise(layer: nn.Conv2d, outputs: Tensor) -> None:
    """Scale an untrained layer so that these outputs of it, `[B, C, h, w]`, would have zero mean and unit variance."""
    mean, scale = outputs.mean((0, 2, 3)), outputs.std((0, 2, 3)).clamp(min=1e-6)
    layer.weight.div_(scale[:, None, None, None])
    layer.bias.sub_(mean).div_(scale)


@contextmanager
def full_float32() -> Iterator[None]:
    """Convolutions and products of CUDA in float32 throughout; its default rounds them to TF32."""
    matmul = torch.backends.cuda.matmul
    before, matmul.allow_tf32 = matmul.allow_tf32, False
    try:
        with torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, allow_tf32=False):
            yield
    finally:
        matmul.allow_tf32 = before
