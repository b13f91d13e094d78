"""tfmemloc: find where a network keeps what it memorized, and take it out.

The public names, in the order in which one meets them. The system of "Can
Neural Network Memorization Be Localized?" (Maini et al., ICML 2023).
"""

# What a run is made from.
from tfmemloc.configs import (
    DataConfig,
    ModelConfig,
    SearchConfig,
    TrainConfig,
)

# Examples that carry ids, and batches of them.
from tfmemloc.data import (
    Examples,
    add_label_noise,
    from_arrays,
    load,
    set_labels,
    split_by_score,
    stable_ids,
)
from tfmemloc.batches import attach_ids, make_batches

# Layers, and the masks behind them.
from tfmemloc.layers import ExampleTiedDropout, SparseDropout
from tfmemloc.masks import example_mask, example_mask_numpy, fold_seed

# Networks, and editing them.
from tfmemloc.models import build
from tfmemloc.surgery import (
    layer_groups,
    swapped_weights,
    tie_dropout,
    tie_plan,
    untie,
    with_inference,
)

# Training, and what it leaves behind.
from tfmemloc.training import RecordRun, train
from tfmemloc.runs import Run

# Measuring.
from tfmemloc.evaluation import (
    evaluate,
    predict_logits,
    recalibrate_batch_norm,
)

# The main job.
from tfmemloc.localization import localize, train_networks

# Gradients by example and by subset.
from tfmemloc.gradients import (
    GradientEngine,
    per_example_dots,
    per_example_gradients,
    per_example_norms,
    subset_gradients,
)

# Probes: where does the memory sit?
from tfmemloc.probes.gradient_accounting import (
    AccountGradients,
    account_gradients,
    account_weights,
)
from tfmemloc.probes.layer_rewinding import rewind_layers, rewind_weights
from tfmemloc.probes.layer_retraining import retrain_layers
from tfmemloc.probes.critical_units import choose_ids, find_critical_units

# Which examples are memorized, and which labels are wrong?
from tfmemloc.recording import ExampleRecorder, RecordExamples, Recording
from tfmemloc.memorization import estimate_memorization, second_split_times
from tfmemloc.scores import (
    evaluate_scores,
    score_examples,
    scores_of_logits,
    scores_of_recording,
)
from tfmemloc.label_errors import find_label_errors

# Serving what is left.
from tfmemloc.pruning import (
    fold_batch_norm,
    prune_memorization,
    pruning_plan,
)
from tfmemloc.export import export_saved_model

# Results.
from tfmemloc.results import (
    CriticalUnits,
    ExampleScores,
    GradientAccounting,
    LayerRetraining,
    LayerRewinding,
    Localization,
    MemorizationEstimates,
    SubsetMetrics,
)

__version__ = "0.1.0"

__all__ = [
    "AccountGradients",
    "CriticalUnits",
    "DataConfig",
    "ExampleRecorder",
    "ExampleScores",
    "ExampleTiedDropout",
    "Examples",
    "GradientAccounting",
    "GradientEngine",
    "LayerRetraining",
    "LayerRewinding",
    "Localization",
    "MemorizationEstimates",
    "ModelConfig",
    "RecordExamples",
    "RecordRun",
    "Recording",
    "Run",
    "SearchConfig",
    "SparseDropout",
    "SubsetMetrics",
    "TrainConfig",
    "account_gradients",
    "account_weights",
    "add_label_noise",
    "attach_ids",
    "build",
    "choose_ids",
    "estimate_memorization",
    "evaluate",
    "evaluate_scores",
    "example_mask",
    "example_mask_numpy",
    "export_saved_model",
    "find_critical_units",
    "find_label_errors",
    "fold_batch_norm",
    "fold_seed",
    "from_arrays",
    "layer_groups",
    "load",
    "localize",
    "make_batches",
    "per_example_dots",
    "per_example_gradients",
    "per_example_norms",
    "predict_logits",
    "prune_memorization",
    "pruning_plan",
    "recalibrate_batch_norm",
    "retrain_layers",
    "rewind_layers",
    "rewind_weights",
    "score_examples",
    "scores_of_logits",
    "scores_of_recording",
    "second_split_times",
    "set_labels",
    "split_by_score",
    "stable_ids",
    "subset_gradients",
    "swapped_weights",
    "tie_dropout",
    "tie_plan",
    "train",
    "train_networks",
    "untie",
    "with_inference",
]
