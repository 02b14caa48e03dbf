"""Laws of the training loop, on a stage that is nothing but a few numbers."""

import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from training.loop import FitSettings, Interrupted, Stage, adamw, fit, read_metrics


class Numbers(nn.Module):
    """What `Toy` trains: a point that is drawn to each of the examples."""

    def __init__(self):
        super().__init__()
        self.arguments = {}
        self.point = nn.Parameter(torch.zeros(3))


class Toy(Stage):
    """23 examples, each a target of the point; notes all that the loop does with it."""

    name, score, higher_is_better = "toy", "validate_error", False
    size, chances = 23, 2

    def __init__(self, micro_batch: int = 100, strength: float = 1.0, average_decay: float | None = None):
        self.model, self.micro_batch, self.strength, self.average_decay = (
            Numbers(),
            micro_batch,
            strength,
            average_decay,
        )
        self.targets = torch.randn(self.size, 3, generator=torch.Generator().manual_seed(5)) + 2
        self.batches: list[list[int]] = []
        self.rates: list[float] = []
        self.norms: list[float] = []
        self.random: list[float] = []
        self.points: list[Tensor] = []
        self.scored: list[Tensor] = []
        self.errors: list[float] = []

    def optimizers(self, lr: float) -> list[torch.optim.Optimizer]:
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr)
        return [self.optimizer]

    def before_step(self, step: int, steps: int) -> None:
        self.batches.append([])
        self.rates.append(self.optimizer.param_groups[0]["lr"])
        self.random.append(float(torch.rand(1)))

    def losses(self, indices: np.ndarray, chance: Tensor) -> dict[str, Tensor]:
        self.batches[-1] += indices.tolist()
        wanted = self.targets[torch.from_numpy(indices)] + chance.float().mean(1, keepdim=True)
        return {"loss": self.strength * (self.model.point - wanted).square().mean()}

    def after_step(self) -> dict[str, float]:
        self.norms.append(float(self.model.point.grad.norm()))
        self.points.append(self.model.point.detach().clone())
        return {}

    def validate(self, model: nn.Module) -> dict[str, float]:
        self.scored.append(model.point.detach().clone())
        away = float((self.scored[-1] - 2).square().mean())
        error = self.errors[len(self.scored) - 1] if self.errors else away
        return {"validate_error": error}


def settings(**changes: object) -> FitSettings:
    return FitSettings(**(dict(epochs=3, batch=5, lr=0.05, patience=0, seed=0, save_every=5.0) | changes))


def trained(folder: Path, stage: Toy, resume: bool = False, **changes: object) -> Toy:
    folder.mkdir(exist_ok=True)
    fit(stage, settings(**changes), folder, resume)
    return stage


def test_the_rate_rises_and_then_falls_along_half_a_cosine(tmp_path):
    rates = np.array(trained(tmp_path, Toy(), epochs=8, batch=1).rates) / 0.05
    steps, rising = 8 * 23, 9  # a twentieth of the steps
    assert len(rates) == steps and rates.max() == pytest.approx(1)
    assert rates[:rising] == pytest.approx(np.arange(1, rising + 1) / rising)
    falling = rates[rising:]
    assert (np.diff(falling) < 0).all() and falling[-1] == pytest.approx(0.02, abs=0.002)
    assert falling[len(falling) // 2] == pytest.approx(0.51, abs=0.01), "the middle between 1 and .02"
    assert falling[len(falling) // 4] == pytest.approx(0.02 + 0.98 * (1 + 0.5**0.5) / 2, abs=0.01)


def test_long_gradients_are_shortened_to_one_and_short_ones_left_alone(tmp_path):
    long, short = trained(tmp_path / "a", Toy(strength=1e2)), trained(tmp_path / "b", Toy(strength=1e-3))
    assert long.norms == pytest.approx([1.0] * 15, rel=1e-3)
    assert max(short.norms) < 0.01
    lengths = [(after - before).norm() for before, after in zip([torch.zeros(3), *long.points], long.points)]
    assert torch.stack(lengths).tolist() == pytest.approx(long.rates, rel=1e-3), "a step is the rate times the gradient"


def test_every_epoch_meets_every_example_once_in_an_order_of_its_own(tmp_path):
    stage, again, other = (trained(tmp_path / name, Toy(), seed=seed) for name, seed in (("a", 0), ("b", 0), ("c", 1)))
    orders = [[index for batch in stage.batches[start : start + 5] for index in batch] for start in (0, 5, 10)]
    assert all(sorted(order) == list(range(23)) for order in orders) and len(set(map(tuple, orders))) == 3
    assert again.batches == stage.batches != other.batches
    assert len(set(stage.random)) == 15, "each step has randomness of its own"
    assert again.random == stage.random and not set(stage.random) & set(other.random)


@pytest.mark.parametrize("micro_batch", [1, 2, 4])
def test_parts_of_a_batch_give_the_gradient_and_the_loss_of_the_whole(tmp_path, micro_batch):
    whole, parts = (trained(tmp_path / name, Toy(size, 0.1)) for name, size in (("a", 100), ("b", micro_batch)))
    assert max(whole.norms) < 1, "as they are, not shortened"
    for expected, found in zip(whole.points, parts.points):
        torch.testing.assert_close(found, expected)
    losses = [[record["loss"] for record in read_metrics(tmp_path / name)] for name in "ab"]
    assert losses[1] == pytest.approx(losses[0])
    still = trained(tmp_path / "c", Toy(strength=0.1), lr=1e-12, epochs=1)
    mean = 0.1 * float((still.targets + 0.5).square().mean())
    assert read_metrics(tmp_path / "c")[0]["loss"] == pytest.approx(mean, rel=0.15), "the mean over examples"


def test_the_averaged_weights_are_scored_and_kept_and_follow_in_a_short_run_too(tmp_path):
    stage = trained(tmp_path, Toy(strength=1e2, average_decay=0.999), epochs=8, lr=0.01)
    for epoch, scored in enumerate(stage.scored):
        path = stage.points[5 * epoch + 4].norm()
        assert 0.6 * path < scored.norm() < 0.99 * path, "on a straight road the average lags behind by a tenth of it"
    assert torch.equal(load_file(tmp_path / "toy.safetensors")["point"], stage.scored[-1])


def test_the_average_forgets_no_faster_than_its_decay(tmp_path):
    stage = trained(tmp_path, Toy(average_decay=0.5), epochs=2)
    expected = stage.points[0]
    for point in stage.points[1:]:
        expected = 0.5 * expected + 0.5 * point
    torch.testing.assert_close(stage.scored[-1], expected, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("higher_is_better", [False, True])
def test_the_best_weights_are_kept_and_patience_counts_epochs_without_better(tmp_path, higher_is_better):
    stage = Toy()
    stage.errors = [3.0, 1.0, 1.0, 2.0, 0.5, 0.9, 0.8, 0.7, 0.1]
    stage.higher_is_better = higher_is_better
    if higher_is_better:
        stage.errors = [-error for error in stage.errors]
    trained(tmp_path, stage, epochs=9, patience=3)
    assert len(stage.scored) == 8, "three epochs without a better one after the fifth"
    assert torch.equal(load_file(tmp_path / "toy.safetensors")["point"], stage.scored[4])


@pytest.mark.parametrize("steps", [3, 5, 8])
def test_a_stopped_stage_goes_on_as_if_it_had_not_been_stopped(tmp_path, steps):
    class Stopped(Toy):
        def after_step(self) -> dict[str, float]:
            if len(self.batches) == steps:
                signal.raise_signal(signal.SIGTERM)
            return super().after_step()

    def momentum(self: Toy, lr: float) -> list[torch.optim.Optimizer]:
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr, momentum=0.9)
        return [self.optimizer]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Toy, "optimizers", momentum)
        whole = trained(tmp_path / "whole", Toy(average_decay=0.9))
        with pytest.raises(Interrupted):
            trained(tmp_path / "parts", Stopped(average_decay=0.9))
        rest = trained(tmp_path / "parts", Toy(average_decay=0.9), resume=True)
    assert torch.equal(rest.points[-1], whole.points[-1]) and torch.equal(rest.scored[-1], whole.scored[-1])
    assert rest.batches == whole.batches[steps:]
    losses = [[record["loss"] for record in read_metrics(tmp_path / name)] for name in ("whole", "parts")]
    assert losses[0] == losses[1]


def test_adamw_decays_weights_that_have_no_gradient():
    weight = nn.Parameter(torch.ones(4))
    optimizer = adamw([weight], 0.1)
    weight.grad = torch.zeros(4)
    optimizer.step()
    torch.testing.assert_close(weight.detach(), torch.full((4,), 1 - 0.1 * 0.01))
