"""A kernel in the basis in which the curvature of the loss is diagonal.

With K-FAC's factors A = U diag(mu) U' and B = V diag(lambda) V' (see
`tfmemloc.gradients.curvature`), a kernel W [I, O] has the coefficients

    C = U' W V,        and direction (i, j) the curvature  P_ij = mu_i lambda_j.

Directions of large curvature are used by many examples; what is memorized of
one example lies in those of small curvature. An edit keeps the coefficients
with the largest P until their sum is the share `keep` of the total, sets the
others to 0, and goes back:  W' = U (C * kept) V'.

Reference: 2510.24256 (for the MLPs of transformers).
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Sequence

import keras
import numpy as np
import scipy.linalg
import tensorflow as tf

from tfmemloc import storage
from tfmemloc.data.examples import Examples
from tfmemloc.gradients import MEMORY_BUDGET
from tfmemloc.gradients.curvature import (
    Kernel,
    KernelFactors,
    Scalar,
    curvature_factors,
    kernels_of,
)


@dataclasses.dataclass(frozen=True, eq=False)
class Cut:
    """A kernel without its directions of small curvature.

    Attributes:
        kernel: in the shape of the layer's.
        energy: share of the squared coefficients that is left, in [0, 1].
    """

    kernel: np.ndarray
    energy: float


@dataclasses.dataclass(frozen=True, eq=False)
class KernelBasis:
    """One kernel, its eigenvectors and the curvature of each direction.

    Attributes:
        kernel: which one.
        value: the kernel as it was.
        input_vectors: U [groups, I, I].
        output_vectors: V [groups, O, O].
        curvature: P [groups, I, O].
        protected: that of protected examples in the same directions, or None.
    """

    kernel: Kernel
    value: np.ndarray
    input_vectors: np.ndarray
    output_vectors: np.ndarray
    curvature: np.ndarray
    protected: np.ndarray | None = None

    @property
    def name(self) -> str:
        """The name of the layer."""
        return self.kernel.name

    @functools.cached_property
    def coefficients(self) -> np.ndarray:
        """C [groups, I, O]."""
        matrices = self.kernel.as_matrices(tf.constant(self.value)).numpy()
        return (
            self.input_vectors.swapaxes(1, 2) @ matrices @ self.output_vectors
        )

    @functools.cached_property
    def _rankings(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Of all examples, and of protected ones: all directions, that of the
        largest curvature first, and the curvature up to each."""
        found = []
        for curvature in (self.curvature, self.protected):
            if curvature is not None:
                order = np.argsort(-curvature, axis=None, kind="stable")
                total = np.cumsum(curvature.ravel()[order], dtype=np.float64)
                found.append((order, total))
        return found

    def cut(self, keep: float) -> Cut:
        """The kernel with the share `keep` of the curvature; 1 is all of it.

        Directions stay that hold this share for all examples, and those that
        hold it for the protected ones.
        """
        kept = np.zeros(self.curvature.size, bool)
        for order, total in self._rankings:
            count = len(order)
            if keep < 1:
                count = 1 + int(np.searchsorted(total, keep * total[-1]))
            kept[order[:count]] = True
        if kept.all():
            return Cut(self.value, 1.0)
        left = np.where(
            kept.reshape(self.curvature.shape), self.coefficients, 0
        )
        matrices = (
            self.input_vectors @ left @ self.output_vectors.swapaxes(1, 2)
        )
        kernel = self.kernel.as_kernel(
            tf.constant(matrices[np.newaxis], tf.float32)
        )
        total = np.sum(self.coefficients**2)
        energy = np.sum(left**2) / total if total else 1.0
        return Cut(kernel.numpy()[0], float(energy))


def kernel_bases(
    factors: Sequence[KernelFactors],
    protected: Sequence[KernelFactors] | None = None,
) -> list[KernelBasis]:
    """The basis of each kernel, as the model holds it now.

    Args:
        factors: of all examples.
        protected: of protected ones; then the directions are those of both,
            which count alike.
    """
    return [
        _basis(*pair)
        for pair in zip(
            factors, protected or [None] * len(factors), strict=True
        )
    ]


def _basis(one: KernelFactors, other: KernelFactors | None) -> KernelBasis:
    if other is None:
        input_values, input_vectors = _eigen(one.inputs)
        output_values, output_vectors = _eigen(one.outputs)
        curvature = [_products(input_values, output_values)]
    else:
        _, input_vectors = _eigen(_unit(one.inputs) + _unit(other.inputs))
        _, output_vectors = _eigen(_unit(one.outputs) + _unit(other.outputs))
        curvature = [
            _products(
                _along(input_vectors, _unit(side.inputs)),
                _along(output_vectors, _unit(side.outputs)),
            )
            for side in (one, other)
        ]
    return KernelBasis(
        one.kernel,
        _value(one.kernel),
        input_vectors,
        output_vectors,
        *curvature,
    )


def _products(inputs: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    return inputs[:, :, np.newaxis] * outputs[:, np.newaxis]


def _along(vectors: np.ndarray, matrices: np.ndarray) -> np.ndarray:
    """u' M u for each column u: float32 [groups, I]."""
    found = (vectors * (matrices @ vectors)).sum(axis=1)
    return np.maximum(found, 0).astype(np.float32)


def _unit(matrices: np.ndarray) -> np.ndarray:
    """Factors of trace 1; one of nothing stays so."""
    return matrices / (np.trace(matrices, axis1=1, axis2=2).sum() or 1.0)


def _eigen(matrices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues [groups, I], none below 0, and vectors; float32."""
    # Scaled, so that float32 holds the sums over any number of examples.
    scale = np.trace(matrices, axis1=1, axis2=2).max() or 1.0
    found = [
        scipy.linalg.eigh(
            (matrix / scale).astype(np.float32), driver="evd", check_finite=True
        )
        for matrix in matrices
    ]
    values = np.stack([value for value, _ in found])
    return np.maximum(values, 0), np.stack([vectors for _, vectors in found])


def _value(kernel: Kernel) -> np.ndarray:
    return kernel.variable.numpy().astype(np.float32)


def _digests(prefix: str, examples: Examples) -> dict[str, str]:
    """What tells whether examples are the same."""
    digest = storage.digest([examples.example_id, examples.label])
    return {
        f"{prefix}examples": digest,
        f"{prefix}inputs": examples.inputs_digest(),
    }


_FIELDS = ("input_vectors", "output_vectors", "curvature", "protected")


def kept_bases(
    model: keras.Model,
    examples: Examples,
    directory: str | os.PathLike | None,
    *,
    scalar: Scalar,
    positions: int | None = None,
    seed: int,
    memory_budget: int = MEMORY_BUDGET,
    protected: Examples | None = None,
    progress: bool = False,
) -> list[KernelBasis]:
    """The basis of each kernel, read from a folder or else kept in it.

    Args:
        model: whose kernels.
        examples: over which the curvature is taken.
        directory: where bases are kept; None keeps nothing.
        scalar: see `curvature_factors`.
        positions: see `curvature_factors`.
        seed: see `curvature_factors`.
        memory_budget: see `curvature_factors`.
        protected: examples that keep their share of the curvature, too.
        progress: show a progress bar.

    Raises:
        ValueError: the folder holds bases of another model or other data.
    """
    asked = {} if protected is None else _digests("protected_", protected)
    parts = storage.Parts(
        directory,
        {
            **asked,
            "weights": storage.digest(model.get_weights()),
            **_digests("", examples),
            "scalar": scalar,
            "positions": positions,
            "seed": seed,
        },
        "set of curvature factors",
    )
    arrays = parts.read("bases")
    # An earlier form named layers; such bases are taken anew.
    if arrays is not None and "weights" in arrays:
        known = {id(k.variable): k for k in kernels_of(model, examples)}
        kernels = [known[id(model.weights[i])] for i in arrays["weights"]]
        return [
            KernelBasis(
                kernel,
                _value(kernel),
                *(arrays.get(f"{index:04d}/{field}") for field in _FIELDS),
            )
            for index, kernel in enumerate(kernels)
        ]
    factors_of = functools.partial(
        curvature_factors,
        model,
        scalar=scalar,
        positions=positions,
        seed=seed,
        memory_budget=memory_budget,
        progress=progress,
    )
    bases = kernel_bases(
        factors_of(examples),
        None if protected is None else factors_of(protected),
    )
    # Names of layers may differ in another process; the order of the weights,
    # whose digest is checked, does not.
    place = {id(weight): i for i, weight in enumerate(model.weights)}
    parts.write(
        "bases",
        {"weights": np.array([place[id(b.kernel.variable)] for b in bases])}
        | {
            f"{index:04d}/{field}": getattr(basis, field)
            for index, basis in enumerate(bases)
            for field in _FIELDS
            if getattr(basis, field) is not None
        },
        compressed=False,
    )
    return bases
