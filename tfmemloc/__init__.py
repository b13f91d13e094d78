"""tfmemloc: find where a network keeps what it memorized, and take it out.

The public names, in the order in which one meets them. The system of "Can
Neural Network Memorization Be Localized?" (Maini et al., ICML 2023).
"""

# What a run is made from.
# Examples that carry ids.
from tfmemloc.batches import attach_ids, make_batches
from tfmemloc.configs import DataConfig, ModelConfig, TrainConfig
from tfmemloc.data import (
    Examples,
    add_label_noise,
    from_arrays,
    load,
    set_labels,
    split_by_score,
    stable_ids,
)

# Measuring.
from tfmemloc.evaluation import (
    evaluate,
    predict_logits,
    recalibrate_batch_norm,
)

# Layers and networks.
from tfmemloc.layers import ExampleTiedDropout, SparseDropout

# The main job.
from tfmemloc.localization import localize, train_networks
from tfmemloc.masks import example_mask, example_mask_numpy, fold_seed
from tfmemloc.models import build

# Results.
from tfmemloc.results import Localization, SubsetMetrics

# Training, and what it leaves behind.
from tfmemloc.runs import Run

# Editing models.
from tfmemloc.surgery import layer_groups, swapped_weights, with_inference
from tfmemloc.training import RecordRun, train

__version__ = "0.1.0"

__all__ = [
    "DataConfig",
    "Examples",
    "ExampleTiedDropout",
    "Localization",
    "ModelConfig",
    "RecordRun",
    "Run",
    "SparseDropout",
    "SubsetMetrics",
    "TrainConfig",
    "add_label_noise",
    "attach_ids",
    "build",
    "evaluate",
    "example_mask",
    "example_mask_numpy",
    "fold_seed",
    "from_arrays",
    "layer_groups",
    "load",
    "localize",
    "make_batches",
    "predict_logits",
    "recalibrate_batch_norm",
    "set_labels",
    "split_by_score",
    "stable_ids",
    "swapped_weights",
    "train",
    "train_networks",
    "with_inference",
]
