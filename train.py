"""Train a VQ-VAE on brain slices, a second level of finer codes, PixelCNN priors of both and a decoder that restores texture;
draw new slices.

    python train.py                                          # the built-in synthetic cohort, some minutes on 2 cores
    python train.py --data data/keras_png_slices_data        # OASIS-1 slices
    python train.py --preset oasis-f8 --data data/keras_png_slices_data     # the flags of the shipped weights
    python train.py --data DIR --downsample 4 --epoch 20 --out runs/mine
    python train.py --data BIDS --table BIDS/participants.tsv --condition age,sex
    python train.py --resume --out runs/mine                 # go on where it was stopped
    python train.py --stage prior --out runs/mine            # one stage of a run anew
    python train.py --stage detail --out runs/mine           # a second level for a run that has one; then --resume
    torchrun --nproc_per_node=2 train.py --data DIR          # two processes share every batch: the same result (--dim for --d)

The run folder then holds the weights, the curves, the scores, the pictures and `report.md`; `generate.py` and `evaluate.py`
work on it.
"""

import signal
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

from common import ranks
from common.cli import parse_flags, run_main
from common.files import check_writable
from common.runtime import resolve_device
from training.job import Job, prepare, write_config
from training.loop import Interrupted
from training.pipeline import check_stages, run_stages
from training.plan import plan
from training.settings import EPOCHS, PLACES, Settings, with_preset
from training.standing import begin_anew, begin_run
from utils import held


def main(argv: Sequence[str] | None = None) -> None:
    given = with_preset(parse_flags(Settings, __doc__, argv))
    settings, folder = plan(given)
    settings.check()
    device = ranks.join(resolve_device(settings.device))
    folder = ranks.from_first(lambda: folder)
    job = prepare(settings, folder, device)
    check_stages(job)
    check_writable(folder, "--out")
    ranks.wait()  # all have read what is there, now it may change
    try:
        with held(folder) if ranks.first() else nullcontext():
            if ranks.first():
                begin(job, given)
            ranks.wait()
            run_stages(job)
        ranks.leave()
    except (Interrupted, KeyboardInterrupt) as stop:
        name = str(stop) or "SIGINT"
        print(f"stopped by {name}; go on with: python train.py --resume --out {folder}", flush=True)
        raise SystemExit(128 + signal.Signals[name]) from None


def begin(job: Job, given: dict[str, Any]) -> None:
    """Write what is to be done: that a stage is made anew before with which flags, so that no stage is said to be finished with
    flags that it was not run with."""
    if job.settings.resume:
        if given.keys() & {*EPOCHS, *PLACES}:
            write_config(job)
        return
    if (job.folder / "config.json").exists():
        begin_anew(job.folder, job.settings.stage)
    else:
        begin_run(job.folder)
    write_config(job)


if __name__ == "__main__":
    run_main(main)
