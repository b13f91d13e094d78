"""Taking the memory out of networks."""

from tfmemloc.removal.drop import (
    NETWORKS,
    ComparisonConfig,
    NetworkComparison,
    compare_networks,
    train_networks,
)
