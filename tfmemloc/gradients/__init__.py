"""Gradients by example and by subset (paper, section 4.1)."""

from tfmemloc.gradients.by_subset import (
    SubsetAccount,
    account_subsets,
    subset_gradients,
)
from tfmemloc.gradients.checking import check_per_example_gradients
from tfmemloc.gradients.curvature import (
    Kernel,
    KernelFactors,
    curvature_factors,
    kernels_of,
)
from tfmemloc.gradients.engine import ENGINES, GradientEngine
from tfmemloc.gradients.per_example import (
    group_gradients,
    group_matrix,
    per_example_dots,
    per_example_gradients,
    per_example_norms,
)
from tfmemloc.gradients.streaming import MEMORY_BUDGET, bytes_per_example
