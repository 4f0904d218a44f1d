"""Noise is added and taken away as published."""

import math

import pytest
import torch

from nnunetv2_conemos.methods.generic_ssl import diffusion
from nnunetv2_conemos.methods.generic_ssl import trainer as ssl_trainer
from nnunetv2_conemos.records import Truth


def truth(target, known=None, valid=None):
    target = torch.as_tensor(target)
    every = torch.arange(1, 4).expand(len(target), -1)
    return Truth(target, every, torch.ones(len(target), 3, dtype=torch.bool) if known is None else known, valid)


def test_shares_of_the_map_are_the_published_ones():
    expected = {0: 0.9999, 111: 0.8736, 222: 0.5968, 333: 0.3186, 444: 0.1329, 555: 0.0433, 666: 0.0110, 777: 0.00218}
    for step, kept in (expected | {888: 3.36e-4, 999: 4.0e-5}).items():
        assert diffusion.ALPHAS_CUMPROD[step].item() == pytest.approx(kept, rel=0.01)


def test_noise_has_the_right_mean_and_variance_and_each_sample_its_own_step():
    torch.manual_seed(0)
    step = torch.tensor([0, 500, 999])
    clean = torch.tensor([1.0, -1.0]).view(1, 2, 1, 1).expand(3, -1, 200, 200)
    noisy = diffusion.q_sample(clean, step, torch.randn(3, 2, 200, 200))
    kept = diffusion.ALPHAS_CUMPROD[step].float()
    for sign, channel in ((1, 0), (-1, 1)):
        assert torch.allclose(noisy[:, channel].mean((1, 2)), sign * kept.sqrt(), atol=0.02)
        assert torch.allclose(noisy[:, channel].var((1, 2)), 1 - kept, atol=0.02)


def test_sampling_takes_ten_steps_and_an_oracle_gives_the_map():
    torch.manual_seed(0)
    clean, queried = torch.randint(0, 2, (2, 3, 8, 8)).float() * 2 - 1, []

    def oracle(noisy, step):
        queried.append(step.tolist())
        return 3 * clean  # beyond what a map can be

    assert torch.equal(diffusion.ddim_sample(oracle, torch.randn(2, 3, 8, 8)), clean)
    assert queried == [[t, t] for t in (999, 888, 777, 666, 555, 444, 333, 222, 111, 0)]


def test_sampling_walks_the_noise_that_the_prediction_implies():
    """With a constant prediction the noise stays what it was: x_t = sqrt(kept) clean + sqrt(1 - kept) noise."""
    torch.manual_seed(0)
    noise, clean, seen = torch.randn(1, 1, 4, 4), torch.full((1, 1, 4, 4), 0.3), {}

    def constant(noisy, step):
        seen[step.item()] = noisy
        return clean

    diffusion.ddim_sample(constant, noise)
    implied = (noise - math.sqrt(diffusion.ALPHAS_CUMPROD[999]) * clean) / math.sqrt(1 - diffusion.ALPHAS_CUMPROD[999])
    for step in (888, 444, 0):
        kept = diffusion.ALPHAS_CUMPROD[step]
        assert torch.allclose(seen[step], kept.sqrt() * clean + (1 - kept).sqrt() * implied, atol=1e-4), step


def test_each_sample_has_its_own_noise_and_step():
    torch.manual_seed(0)
    one = truth(torch.zeros(64, 1, 8, 8, dtype=torch.long))
    noisy = ssl_trainer.with_noise(torch.zeros(64, 1, 8, 8), one)
    assert len(noisy.step.unique()) > 40
    assert 0 <= noisy.step.min() < 100
    assert 900 < noisy.step.max() <= 999
    left = diffusion.ALPHAS_CUMPROD[noisy.step].sqrt().float()
    assert torch.allclose(noisy.maps[:, 0].mean((1, 2)), left, atol=0.5), "as much of the map as its own step leaves"
    assert not torch.allclose(noisy.maps[:, 0].mean((1, 2)), left.roll(1), atol=0.5)
    last = noisy.maps[noisy.step.argmax()]
    assert last.std() == pytest.approx(1, abs=0.2)
    assert abs(last.mean()) < 0.3, "nearly nothing of the map is left"
