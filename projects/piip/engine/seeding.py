"""Random numbers that depend on nothing but (seed, iteration, rank).

Every step of a training starts from a state of the generators that is computed, not carried over. So no generator
has to be saved, an evaluation in between changes nothing, and a resumed training draws what an undisturbed one draws.
"""

from __future__ import annotations

import random

import numpy as np
import torch

__all__ = ["draw_seed", "seed_step"]


def seed_step(seed: int, iteration: int, rank: int = 0, stream: int = 0) -> None:
    """Sets the generators of Python, numpy and torch (all devices) for one step of one process.

    Args:
        seed: that of the training, >= 0.
        iteration: the step, >= 0.
        rank: of the process, so that the processes draw different numbers.
        stream: tells apart uses within a step.
    """
    words = np.random.SeedSequence((seed, iteration, rank, stream)).generate_state(4, np.uint64)
    random.seed(int(words[0]))
    np.random.seed(words[1:3].view(np.uint32))
    torch.manual_seed(int(words[3] >> np.uint64(1)))


def draw_seed() -> int:
    """A fresh seed from the operating system, below 2**31."""
    return random.SystemRandom().randrange(2**31)
