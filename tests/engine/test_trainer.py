"""The step of a training: seeds, precision, clipping, averages, and losses that are not finite."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from detectron2.engine import HookBase

from piip.data import build_train_loader
from piip.engine.ema import ModelEMA
from piip.engine.hooks import EMAHook
from piip.engine.seeding import seed_step
from piip.engine.trainer import DivergenceError, Trainer
from piip.errors import ConfigError
from tests.engine.tiny import Jitter, TinyNet, tiny_points


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Layers this small are slower on several."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make(seed: int = 0, noise: float = 0.1, num_workers: int = 0, amount: float = 0.1, lr: float = 0.01, **options):
    seed_step(seed, 0)
    model = TinyNet(noise=noise, break_at=options.pop("break_at", None))
    loader = build_train_loader(tiny_points(), Jitter(amount), total_batch_size=8, num_workers=num_workers, seed=seed)
    return Trainer(model, loader, torch.optim.AdamW(model.parameters(), lr), seed=seed, **options)


def weights(trainer: Trainer) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


def draw() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_seed_depends_on_every_part() -> None:
    drawn = set()
    for parts in [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)]:
        seed_step(*parts)
        first = draw()
        seed_step(*parts)
        assert draw() == first
        drawn.update(first)
    assert len(drawn) == 15, "all generators differ for all parts"


def test_training_learns_and_repeats() -> None:
    trainers = [make(), make(), make(seed=1)]
    for trainer in trainers:
        random.seed()  # what was before does not matter
        trainer.train(0, 40)
    assert torch.equal(weights(trainers[0]), weights(trainers[1]))
    assert not torch.equal(weights(trainers[0]), weights(trainers[2]))
    losses = [value for value, _ in trainers[0].storage.history("total_loss").values()]
    assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:5])


def test_workers_change_nothing() -> None:
    alone, helped = make(), make(num_workers=2)
    alone.train(0, 5)
    helped.train(0, 5)
    assert torch.equal(weights(alone), weights(helped))


def test_random_numbers_between_steps_change_nothing() -> None:
    class Disturbance(HookBase):
        def after_step(self) -> None:
            draw()

    calm, disturbed = make(), make()
    disturbed.register_hooks([Disturbance()])
    calm.train(0, 5)
    disturbed.train(0, 5)
    assert torch.equal(weights(calm), weights(disturbed))


def test_bfloat16_trains_on_the_cpu() -> None:
    dtypes = set()
    trainer = make(amp_dtype=torch.bfloat16)
    trainer.model.hidden.register_forward_hook(lambda module, inputs, output: dtypes.add(output.dtype))
    trainer.train(0, 40)
    assert dtypes == {torch.bfloat16}
    assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}
    exact = make()
    exact.train(0, 40)
    last = [t.storage.history("total_loss").avg(10) for t in (trainer, exact)]
    assert last[0] == pytest.approx(last[1], rel=0.1)


def test_gradient_is_clipped_and_logged() -> None:
    clipped = make(max_norm=0.01)
    norms = []

    class Norm(HookBase):
        def after_step(self) -> None:
            gradients = [p.grad.flatten() for p in clipped.model.parameters()]
            norms.append(float(torch.cat(gradients).norm()))

    clipped.register_hooks([Norm()])
    clipped.train(0, 5)
    assert norms == pytest.approx([0.01] * 5, rel=1e-3)
    logged = [value for value, _ in clipped.storage.history("grad_norm").values()]
    assert min(logged) > 0.1, "the norm before clipping"


def test_adaptive_clipping_is_relative_to_the_weights_of_every_unit() -> None:
    clipped, plain = make(max_norm=0.02, adaptive=True), make()
    checked = []

    class Units(HookBase):
        def before_step(self) -> None:
            self.weights = [p.detach().clone() for p in clipped.model.parameters()]

        def after_step(self) -> None:
            for weight, parameter in zip(self.weights, clipped.model.parameters(), strict=True):
                dims = tuple(range(1, weight.dim())) or (0,)
                limits = 0.02 * weight.norm(dim=dims).clamp(min=1e-3)
                assert (parameter.grad.norm(dim=dims) <= limits * 1.001).all()
            checked.append(clipped.iter)

    clipped.register_hooks([Units()])
    clipped.train(0, 5)
    plain.train(0, 1)
    assert checked == list(range(5))
    logged = clipped.storage.history("grad_norm").values()[0][0]
    gradient = torch.cat([p.grad.flatten() for p in plain.model.parameters()])
    assert 0 < logged < gradient.norm()


def test_ema_is_the_recursion() -> None:
    trainer = make()
    ema = ModelEMA(trainer.model, decay=0.9)
    expected = {k: v.clone() for k, v in trainer.model.state_dict().items()}

    class Reference(HookBase):
        def after_step(self) -> None:
            for name, value in trainer.model.state_dict().items():
                if value.is_floating_point():
                    step = trainer.iter
                    expected[name] = torch.lerp(expected[name], value, 1.0 - min(0.9, (1 + step) / (10 + step)))
                else:
                    expected[name] = value.clone()

    trainer.register_hooks([EMAHook(ema), Reference()])
    trainer.train(0, 10)
    state = ema.module.state_dict()
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    assert not torch.equal(state["hidden.weight"], trainer.model.hidden.weight)
    assert not ema.module.training
    assert trainer.model.training
    plain = make()
    plain.train(0, 10)
    assert torch.equal(weights(plain), weights(trainer)), "averaging does not touch the training"


def test_ema_averages_shared_weights_once() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    model[1].weight = model[0].weight
    ema = ModelEMA(model, decay=0.5)
    before = model[0].weight.detach().clone()
    with torch.no_grad():
        model[0].weight.add_(1.0)
    ema.update(step=100)
    assert torch.equal(ema.module[0].weight, before + 0.5)
    assert ema.module[1].weight is ema.module[0].weight


def test_loss_that_is_not_finite_stops_the_training() -> None:
    trainer = make(break_at=3, amp_dtype=torch.bfloat16)
    before = []

    class Remember(HookBase):
        def before_step(self) -> None:
            before.append(weights(trainer))

    trainer.register_hooks([Remember()])
    with pytest.raises(DivergenceError) as caught:
        trainer.train(0, 10)
    message = str(caught.value)
    assert "iteration 3 (loss_class=nan)" in message
    assert "optimizer.lr" in message
    assert "train.clip_grad.enabled=True" in message
    assert "train.amp.enabled=False" in message
    assert torch.equal(weights(trainer), before[-1]), "the weights are still those before the step"


def test_gradient_that_is_not_finite_stops_the_training() -> None:
    trainer = make(max_norm=1.0)
    trainer.model.head.weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(DivergenceError, match="gradient's norm became"):
        trainer.train(0, 2)
    assert bool(torch.isfinite(weights(trainer)).all())


def test_detectron2s_own_check_is_a_divergence_too() -> None:
    trainer = make()

    def fail(*_: object) -> None:
        raise FloatingPointError("Predicted boxes or scores contain Inf/NaN. Training has diverged.")

    trainer.model.register_forward_hook(fail)
    with pytest.raises(DivergenceError, match=r"Iteration 0: Predicted boxes .* Lower optimizer.lr"):
        trainer.train(0, 2)


def test_loader_must_be_endless() -> None:
    trainer = make()
    trainer.data_loader = [[Jitter(0.0)(sample) for sample in tiny_points(4)]] * 3
    with pytest.raises(ConfigError, match="ended before iteration 3"):
        trainer.train(0, 5)


def test_resumed_trainer_goes_on_as_if_nothing_was() -> None:
    whole = make()
    whole.train(0, 12)
    first = make()
    first.train(0, 7)
    second = make()
    second.model.load_state_dict(first.model.state_dict())
    state = first.state_dict()
    second.load_state_dict({**state, "iteration": 6})
    second.train(second.iter + 1, 12)
    assert torch.equal(weights(whole), weights(second))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_on_a_gpu(dtype: torch.dtype) -> None:
    trainer = make()
    model = trainer.model.cuda()

    def to_gpu(module: torch.nn.Module, inputs: tuple[list[dict]]) -> tuple[list[dict]]:
        return ([{**sample, "x": sample["x"].cuda()} for sample in inputs[0]],)

    model.register_forward_pre_hook(to_gpu)
    trainer = Trainer(
        model, trainer.data_loader, torch.optim.AdamW(model.parameters(), 0.01), seed=0, amp_dtype=dtype, max_norm=1.0
    )
    assert trainer.grad_scaler.is_enabled() == (dtype == torch.float16)
    trainer.train(0, 20)
    assert bool(torch.isfinite(weights(trainer)).all())
    assert ("grad_scaler" in trainer.state_dict()) == (dtype == torch.float16)
