"""Adam for a few numbers of each of many examples, in NumPy."""

from __future__ import annotations

import numpy as np


class Adam:
    """The steps of Adam (Kingma and Ba, 2015) for an array of any shape."""

    def __init__(self, rate: float):
        self._rate = rate
        self._count = 0
        self._mean = self._square = 0.0

    def step(self, gradient: np.ndarray) -> np.ndarray:
        """What is to be subtracted."""
        self._count += 1
        self._mean = 0.9 * self._mean + 0.1 * gradient
        self._square = 0.999 * self._square + 0.001 * gradient**2
        mean = self._mean / (1 - 0.9**self._count)
        square = self._square / (1 - 0.999**self._count)
        return self._rate * mean / (np.sqrt(square) + 1e-8)
