"""Taking the memory out of networks: one file for each method.

`curvature` and `drop` need not be told what to forget; all others are given the
ids of the examples.
"""

from tfmemloc.removal.critical_zeroing import zero_critical_units
from tfmemloc.removal.curvature import (
    CurvatureConfig,
    CurvatureEdit,
    remove_memory,
)
from tfmemloc.removal.dampening import DampeningConfig, dampen_weights
from tfmemloc.removal.drop import (
    NETWORKS,
    ComparisonConfig,
    NetworkComparison,
    compare_networks,
    train_networks,
)
from tfmemloc.removal.durable import DurableConfig, zero_weights
from tfmemloc.removal.fine_tuning import fine_tune
from tfmemloc.removal.forgetting import ForgettingConfig
from tfmemloc.removal.gradient_ascent import (
    GradientAscentConfig,
    ascend_gradient,
)
from tfmemloc.removal.located import LostUnits, compare_with_critical_units
from tfmemloc.removal.npo import NPOConfig, optimize_negative_preference
from tfmemloc.removal.outcome import Removal
from tfmemloc.removal.output_editing import OutputEditConfig, edit_outputs
from tfmemloc.removal.rem import REMConfig, forget_and_learn_again
from tfmemloc.removal.retraining import retrain_without
from tfmemloc.removal.scrub import scrub
from tfmemloc.removal.second_order import (
    SecondOrderConfig,
    zero_held_weights,
)
from tfmemloc.removal.subnet import SubnetConfig, mask_weights
