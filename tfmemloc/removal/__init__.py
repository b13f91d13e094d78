"""Taking the memory out of networks."""

from tfmemloc.removal.curvature import (
    CurvatureConfig,
    CurvatureEdit,
    remove_memory,
)
from tfmemloc.removal.drop import (
    NETWORKS,
    ComparisonConfig,
    NetworkComparison,
    compare_networks,
    train_networks,
)
from tfmemloc.removal.outcome import Removal
