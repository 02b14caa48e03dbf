"""The second level of codes: it takes a batch, and is scored after an epoch, as the VQ-VAE does."""

from dataset import Frame, Split
from models.detail import TwoLevelVQVAE
from training.vqvae_stage import VQVAEStage


class DetailStage(VQVAEStage):
    """Trains the second level on the frames of the training slices, beside a first level that is frozen; scored by SSIM of what
    both paint on whole validation slices."""

    name = "detail"

    def __init__(
        self,
        levels: TwoLevelVQVAE,
        train: Split,
        validation: Split,
        frame: Frame,
        precision: str,
        trained: bool = False,
    ):
        """`trained`: the second level has been trained before, so its codes stay where they are."""
        super().__init__(levels.detail, train, validation, frame, precision, trained)
        levels.first.eval().requires_grad_(False)
        self.codec = levels
