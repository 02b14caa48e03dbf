"""How far a run is: which stages have finished and from what, and the trainings that were interrupted (`checkpoint.pt`).

The rule, which `--resume` and `--stage` share:

- A stage is marked when it has finished, and by nothing else. The mark says which weights it was made from, by their hashes.
- A stage counts as finished as long as its mark stands, what it left is there, and the weights that it was made from are still
  those in the folder. After `--stage prior` the pictures and the report of the old prior are therefore out of date; after
  `--stage encode`, which finds the same codes, nothing is.
- `--resume` runs, in order, the stages that do not count as finished; one that was interrupted goes on where it stopped.
- `--stage X` makes X anew: its own mark and its interrupted training are forgotten first, before anything else is written, those
  of the other stages stay. It is refused unless the stages that it reads from count as finished (`needs`).

| | interrupted in the middle of Y | finished |
|---|---|---|
| `--resume` | goes on with Y, then what comes after it | nothing to do |
| `--stage X`, X needs Y | refused | X anew |
| `--stage Y` | Y from its start | Y anew |
| `--stage X`, X does not need Y | X anew; Y can still be resumed | X anew |
| then `--resume` | Y, and what is not finished | what was made from the weights that X replaced |
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import hash_of_file, load_checkpoint, previous_checkpoint, save_checkpoint
from utils import CODES, DETAIL_PRIOR_WEIGHTS, DETAIL_WEIGHTS, SHARP_WEIGHTS

CHECKPOINT = "checkpoint.pt"
LEAVES = {  # what other stages read of a stage
    "vqvae": "vqvae.safetensors",
    "detail": DETAIL_WEIGHTS,
    "encode": CODES,
    "prior": "prior.safetensors",
    "detail_prior": DETAIL_PRIOR_WEIGHTS,
    "sharpen": SHARP_WEIGHTS,
}
MAY_LEAVE_NOTHING = ("detail", "detail_prior", "sharpen")  # --no_detail, --no_sharpen
READS = {  # the stages that must have finished before one
    "vqvae": (),
    "detail": ("vqvae",),
    "encode": ("vqvae", "detail"),
    "prior": ("vqvae", "encode"),
    "detail_prior": ("vqvae", "detail", "encode"),
    "sharpen": ("vqvae", "detail", "encode"),
    "sample": ("vqvae", "detail", "encode", "prior", "detail_prior", "sharpen"),
    "report": ("vqvae", "detail", "encode", "prior", "detail_prior", "sharpen", "sample"),
}
# stages by whose weights others are out of date: what the others leave follows from these
WEIGHTS = ("vqvae", "detail", "prior", "detail_prior", "sharpen")
ABOUT_ALL = ("stage", "finished", "made_from", "waiting")  # keys of a checkpoint that are not of the training in it


@dataclass
class Standing:
    """What `checkpoint.pt` says of a run.

    finished: what each finished stage was made from, as `made_from` gives it, or None where a version wrote it that did not say.
    trainings: what is needed to go on with each training that was begun and has not ended, by the name of its `Stage`.
    """

    finished: dict[str, dict[str, str] | None] = field(default_factory=dict)
    trainings: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: Path) -> "Standing":
        """What a run folder's checkpoint says, this version's or an older one's; nothing where there is none.

        Raises:
            UserError: when it is no checkpoint of a run of this toolkit, or damaged.
        """
        path = folder / CHECKPOINT
        if not path.exists():
            return cls()
        state = load_checkpoint(path)
        if not isinstance(state, dict) or not {"stage", "finished"} <= state.keys():
            raise UserError(f"{path}: not a checkpoint of this toolkit; start again without --resume")
        trainings = dict(state.get("waiting", {}))
        if state["stage"] is not None:
            trainings[state["stage"]] = {name: value for name, value in state.items() if name not in ABOUT_ALL}
        made_from = state.get("made_from", {})
        return cls({name: made_from.get(name) for name in state["finished"] if name in READS}, trainings)

    def save(self, folder: Path) -> None:
        """Write it whole, with the training that was begun last on top: readers of older versions find it there."""
        *waiting, last = self.trainings or [None]
        state = {
            "stage": last,
            "finished": list(self.finished),
            "made_from": {name: made for name, made in self.finished.items() if made is not None},
            "waiting": {name: self.trainings[name] for name in waiting},
        }
        save_checkpoint(folder / CHECKPOINT, state | (self.trainings[last] if last else {}))

    def counts(self, folder: Path, name: str) -> bool:
        """Whether a stage counts as finished: it is marked, what it left is there, and what it was made from has not changed."""
        if name not in self.finished or not _is_there(folder, name):
            return False
        made = self.finished[name]
        return made is None or made_from(folder, name) == {other: made.get(other, "") for other in _weights_read(name)}


def is_finished(folder: Path, name: str) -> bool:
    """Whether a stage of the run counts as finished."""
    return Standing.of(folder).counts(folder, name)


def mark_finished(folder: Path, name: str) -> None:
    """Record that a stage has ended; its checkpoint is no longer needed."""
    standing = Standing.of(folder)
    standing.finished[name] = made_from(folder, name)
    standing.trainings.pop(_training(name), None)
    standing.save(folder)


def begin_anew(folder: Path, name: str) -> None:
    """Forget that a stage of the run has finished, or how far its training came."""
    standing = Standing.of(folder)
    for other, made in standing.finished.items():
        if made is None:  # from an older version: what is there now is what it was made from
            standing.finished[other] = made_from(folder, other)
    standing.finished.pop(name, None)
    standing.trainings.pop(_training(name), None)
    standing.save(folder)


def begin_run(folder: Path) -> None:
    """Forget what another run may have left in the folder of a new one."""
    for path in (folder / CHECKPOINT, previous_checkpoint(folder / CHECKPOINT)):
        path.unlink(missing_ok=True)


def needs(folder: Path, name: str) -> list[str]:
    """The stages that must have finished before one: a second level and the sharp decoder only where the run has them, finished
    or not."""
    return [other for other in READS[name] if other not in MAY_LEAVE_NOTHING or (folder / LEAVES[other]).exists()]


def check_needs(folder: Path, name: str) -> None:
    """Raise UserError for a stage of which something that it reads has not finished."""
    standing = Standing.of(folder)
    for other in needs(folder, name):
        if other not in standing.finished:
            raise UserError(
                f"--stage {name}: the stage {other}, from which it starts, has not finished in {folder}; "
                f"go on with: python train.py --resume --out {folder}"
            )


def check_up_to_date(folder: Path, name: str) -> None:
    """Raise UserError for a stage that reads what was made from weights that are no longer there."""
    standing = Standing.of(folder)
    for other in needs(folder, name):
        if not standing.counts(folder, other):
            raise UserError(
                f"--stage {name}: what the stage {other}, from which it starts, left in {folder} was made from other weights "
                f"than are there; go on with: python train.py --resume --out {folder}"
            )


def made_from(folder: Path, name: str) -> dict[str, str]:
    """The weights that a stage starts from, as they are now: a hash by stage, empty where the run has none."""
    return {other: _mark(folder, other) for other in _weights_read(name)}


def _weights_read(name: str) -> list[str]:
    return [other for other in READS[name] if other in WEIGHTS]


def _mark(folder: Path, name: str) -> str:
    path = folder / LEAVES[name]
    return hash_of_file(path) if path.exists() else ""


def _is_there(folder: Path, name: str) -> bool:
    return name not in LEAVES or name in MAY_LEAVE_NOTHING or (folder / LEAVES[name]).exists()


def _training(name: str) -> str:
    """How the `Stage` of a stage of the pipeline is called: as its weights."""
    return Path(LEAVES.get(name, name)).stem
