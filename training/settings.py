"""The flags of `train.py`."""

from dataclasses import asdict, dataclass
from typing import Any

from common.cli import flag, require
from models.codes import FINER, FINEST
from sources.options import DataOptions
from sources.scans import FORMATS
from sources.volumes import AXES
from training.loop import FitSettings

PLACES = ("data", "table", "split_file")  # flags that say where the data lies: it may move, its content is compared
WHILE_RESUMING = ("out", "device", "resume", "save_every", "cache", *PLACES)  # flags that may differ from the run's own
# flags that may be raised, and their stages
EPOCHS = {"epoch": "vqvae"} | {f"epoch_{stage}": stage for stage in ("detail", "prior", "detail_prior", "sharpen")}
# flags of one stage alone, which no other stage may change: config.json would say what its weights were not trained with
OF_STAGE = {
    **EPOCHS,
    **dict.fromkeys(("batch", "lr", "k", "d", "downsample"), "vqvae"),
    **{f"{name}_{stage}": stage for name in ("batch", "lr") for stage in EPOCHS.values() if stage != "vqvae"},
    **dict.fromkeys(("detail_k", "detail_d"), "detail"),
    **dict.fromkeys(("no_context", "no_mirrored_half"), "prior"),
}
LEFT_OUT_BY = {
    "no_detail": ("detail", "detail_prior"),
    "no_sharpen": ("sharpen",),
}  # flags, and stages that they leave out
# flags under a name: what was found best for a kind of data, on validation subjects
PRESETS: dict[str, dict[str, Any]] = {
    "oasis-f8": {
        "epoch": 7,
        "batch": 8,
        "epoch_detail": 4,
        "epoch_prior": 12,
        "batch_prior": 16,
        "lr_prior": 0.002,
        "epoch_detail_prior": 2,
        "epoch_sharpen": 3,
    },
}


def with_preset(given: dict[str, Any]) -> dict[str, Any]:
    """The flags that were given, and those of the preset among them that were not."""
    return PRESETS.get(given.get("preset"), {}) | given


def in_words(preset: str) -> str:
    """A preset as the flags that it stands for."""
    return " ".join(f"--{name} {value}" for name, value in PRESETS[preset].items())


@dataclass(frozen=True)
class Settings:
    """The flags of `train.py`."""

    preset: str | None = flag(
        None,
        "Flags under a name; those given beside it win. "
        + "; ".join(f"{name}, for the OASIS-1 slices: {in_words(name)}" for name in PRESETS)
        + ".",
        tuple(PRESETS),
    )
    epoch: int = flag(50, "Epochs of VQ-VAE training.")
    batch: int = flag(32, "Batch size of VQ-VAE training.")
    lr: float = flag(0.002, "Learning rate of VQ-VAE training.")
    epoch_detail: int = flag(5, "Epochs of training the second level of codes.")
    batch_detail: int = flag(8, "Batch size of training the second level.")
    lr_detail: float = flag(0.002, "Learning rate of training the second level.")
    detail_k: int | None = flag(None, "Number of codes of the second level; as --k where it is not given.")
    detail_d: int = flag(32, "Dimension of a code of the second level.")
    no_detail: bool = flag(
        False,
        "Leave out the second level, whose codes cover half as many pixels a side and say what the first leaves out.",
    )
    epoch_prior: int = flag(100, "Epochs of PixelCNN training.")
    batch_prior: int = flag(64, "Batch size of PixelCNN training.")
    lr_prior: float = flag(0.001, "Learning rate of PixelCNN training.")
    no_context: bool = flag(
        False, "Do not tell the prior the code map of a neighbouring slice: it then draws single slices alone."
    )
    no_mirrored_half: bool = flag(
        False, "Do not tell the prior the half of a map that it has drawn, reflected, where it draws the other half."
    )
    epoch_detail_prior: int = flag(4, "Epochs of training the PixelCNN of the second level.")
    batch_detail_prior: int = flag(8, "Batch size of training the PixelCNN of the second level.")
    lr_detail_prior: float = flag(0.002, "Learning rate of training the PixelCNN of the second level.")
    epoch_sharpen: int = flag(4, "Epochs of training the sharp decoder.")
    batch_sharpen: int = flag(8, "Batch size of training the sharp decoder.")
    lr_sharpen: float = flag(0.002, "Learning rate of training the sharp decoder.")
    no_sharpen: bool = flag(False, "Leave out the sharp decoder: samples are then as smooth as reconstructions.")
    k: int = flag(512, "Number of codes.")
    d: int = flag(
        64, "Dimension of a code; torchrun takes --d for a flag of its own, --dim it leaves alone.", alias="dim"
    )
    downsample: int = flag(8, "Pixels a code covers along each side.", (2, 4, 8, 16, 32))
    data: str | None = flag(
        None,
        "Folder of slices or volumes, see --format; the built-in synthetic cohort where it is not given.",
    )
    format: str = flag(
        "auto",
        "What --data holds: "
        + "; ".join(f"{name}: {what}" for name, what in FORMATS.items())
        + "; auto recognises it.",
        ("auto", *FORMATS),
    )
    contrast: str | None = flag(
        None,
        "Which scans to take where a folder holds several of a person: T1, T2, FLAIR, PD, a word of their names or "
        "folders such as MNI, or all; the T1 where it is not given.",
    )
    subject: str | None = flag(
        None,
        "A regular expression whose first group is the person, in the path of each file from --data on, where names are not "
        "understood by themselves.",
    )
    axis: str = flag("axial", "Which way volumes are sliced.", tuple(AXES))
    spacing: float = flag(1.0, "Millimetres between voxels that volumes are resampled to.")
    slices: int = flag(32, "Slices of each volume, spread evenly over its central part that holds brain.")
    slice_range: str | None = flag(
        None,
        "Shares of the axis, low:high in 0..1, that the slices of volumes are spread over instead, such as 0.3:0.7.",
    )
    split: str = flag(
        "85,10,5",
        "Percent of the subjects for training, validation and test where the data has no splits; which split a subject is in "
        "depends on its name alone.",
    )
    split_file: str | None = flag(
        None,
        "A table with the columns subject and split, such as a run's split.csv, that decides it for the subjects that it names.",
    )
    skip_bad: bool = flag(
        False, "Leave out volumes and images that cannot be read, and say which, instead of stopping."
    )
    window: str | None = flag(
        None,
        "Grey values low:high that become black and white, such as -100:300 of a CT; where it is not given, percentiles of each "
        "volume, and the range of all images of more than 8 bits together.",
    )
    table: str | None = flag(
        None, "A .csv or .tsv file with a line a subject, or a subject and session, such as participants.tsv."
    )
    condition: str | None = flag(
        None, "Columns of --table, separated by commas, that the prior is told, such as cdr,age,sex."
    )
    init: str | None = flag(
        None,
        "Run folder, or pretrained, whose weights the networks start from; they are trained further on the data given here.",
    )
    image_size: int | None = flag(
        None,
        "Resample slices to this many pixels a side; their own size where it is not given "
        "(112 for the built-in cohort).",
    )
    out: str | None = flag(None, "Run folder; a new one under runs/ where it is not given.")
    seed: int = flag(0, "Seed of everything random.")
    device: str = flag("auto", "auto, cpu, cuda, cuda:1, mps.")
    precision: str = flag(
        "auto",
        "Arithmetic of training; auto is bf16 where the hardware has it. Codes are always computed in float32.",
        ("auto", "float32", "bf16"),
    )
    patience: int = flag(
        10, "Epochs without a better validation score after which a stage stops early; 0 never stops early."
    )
    save_every: float = flag(5.0, "Minutes between two checkpoints within an epoch; every epoch ends with one.")
    stage: str = flag(
        "all",
        "Run one stage alone, from what the stages before it left in the run folder.",
        ("all", "vqvae", "detail", "encode", "prior", "detail_prior", "sharpen", "sample", "report"),
    )
    resume: bool = flag(
        False, "Go on with the run of --out (the newest run where it is not given) where it was stopped."
    )
    cache: str = flag(".cache", "Folder for decoded slices.")

    def check(self) -> None:
        """Raise UserError for a value that cannot work."""
        for name in EPOCHS:
            for counted in (name, name.replace("epoch", "batch")):
                require(getattr(self, counted) >= 1, f"--{counted} is {getattr(self, counted)}; expected at least 1")
            lr = name.replace("epoch", "lr")
            require(0 < getattr(self, lr) < 1, f"--{lr} is {getattr(self, lr)}; expected a number between 0 and 1")
        for name in ("d", "detail_d"):
            require(
                1 <= getattr(self, name) <= 4096, f"--{name} is {getattr(self, name)}; expected 1 to 4096 dimensions"
            )
        for name in ("k", "detail_k"):
            codes = getattr(self, name)
            require(codes is None or 2 <= codes <= 2**16, f"--{name} is {codes}; expected 2 to 65536 codes")
        require(self.patience >= 0, f"--patience is {self.patience}; expected 0 (never stop early) or more")
        require(self.save_every > 0, f"--save_every is {self.save_every}; expected minutes above 0")
        require(
            self.image_size is None or 8 <= self.image_size <= 4096,
            f"--image_size is {self.image_size}; expected 8 to 4096 pixels",
        )
        self.data_options.check()
        self._check_left_out()

    def _check_left_out(self) -> None:
        """Raise UserError for a stage that another flag leaves out."""
        for name, stages in LEFT_OUT_BY.items():
            require(
                not (getattr(self, name) and self.stage in stages),
                f"--{name} leaves out what --stage {self.stage} trains",
            )
        require(
            self.stage not in self.left_out,
            f"--stage {self.stage}: --downsample {self.downsample} leaves no room for a second level, whose codes cover half as "
            f"many pixels a side and at least {FINEST}",
        )

    @property
    def left_out(self) -> set[str]:
        """The stages that this run does without."""
        stages = {stage for name, those in LEFT_OUT_BY.items() if getattr(self, name) for stage in those}
        return stages | (set(LEFT_OUT_BY["no_detail"]) if self.downsample < FINER * FINEST else set())

    def fit_settings(self, stage: str) -> FitSettings:
        """How long and how fast a stage trains."""
        suffix = "" if stage == "vqvae" else f"_{stage}"
        epochs, batch, lr = (getattr(self, f"{name}{suffix}") for name in ("epoch", "batch", "lr"))
        return FitSettings(epochs, batch, lr, self.patience, self.seed, self.save_every)

    @property
    def data_options(self) -> DataOptions:
        """Where the slices come from."""
        return DataOptions.of(asdict(self))
