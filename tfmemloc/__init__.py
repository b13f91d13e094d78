"""tfmemloc: find where a network keeps what it memorized, and take it out.

The public names, in the order in which a user needs them. The library
implements the system of "Can Neural Network Memorization Be Localized?" (Maini
et al., ICML 2023).
"""

# What a run is made from.
from tfmemloc.configs import DataConfig, ModelConfig, TrainConfig

# Examples that carry ids, and batches of them.
from tfmemloc.data import (
    Examples,
    add_label_noise,
    as_arrays,
    attach_ids,
    from_arrays,
    load,
    make_batches,
    set_labels,
    split_by_score,
    stable_ids,
    switch_memory_off,
)

# Layers, and the masks behind them.
from tfmemloc.layers.masks import example_mask, example_mask_numpy, fold_seed
from tfmemloc.layers.sparse_dropout import SparseDropout
from tfmemloc.layers.tied_dropout import MEMORY_OFF, ExampleTiedDropout

# Networks, and editing them.
from tfmemloc.models import Continuation, build
from tfmemloc.graph import (
    layer_groups,
    swapped_weights,
    tie_dropout,
    tie_plan,
    untie,
    with_inference,
)

# Training, and what it leaves behind.
from tfmemloc.training import (
    ExampleRecorder,
    RecordExamples,
    Recording,
    RecordRun,
    TrainingHistory,
    train,
    write_live_page,
)
from tfmemloc.runs import Run
from tfmemloc.snapshots import Snapshots

# Measuring.
from tfmemloc.shares import sharing
from tfmemloc.evaluation import (
    SubsetMetrics,
    evaluate,
    predict_logits,
    recalibrate_batch_norm,
)

# The two main jobs: memory out of a trained network, and out of one that is
# trained for it.
from tfmemloc.removal import (
    ComparisonConfig,
    CurvatureConfig,
    CurvatureEdit,
    DampeningConfig,
    DurableConfig,
    ForgettingConfig,
    GradientAscentConfig,
    LostUnits,
    NetworkComparison,
    NPOConfig,
    OutputEditConfig,
    REMConfig,
    Removal,
    SecondOrderConfig,
    SubnetConfig,
    ascend_gradient,
    compare_networks,
    compare_with_critical_units,
    dampen_weights,
    edit_outputs,
    fine_tune,
    forget_and_learn_again,
    mask_weights,
    optimize_negative_preference,
    remove_memory,
    retrain_without,
    scrub,
    train_networks,
    zero_critical_units,
    zero_held_weights,
    zero_weights,
)

# Gradients by example and by subset.
from tfmemloc.gradients import (
    GradientEngine,
    check_per_example_gradients,
    curvature_factors,
    per_example_dots,
    per_example_gradients,
    per_example_norms,
    subset_gradients,
)

# Probes: where does the memory sit?
from tfmemloc.probes.gradient_accounting import (
    AccountGradients,
    AccountingConfig,
    GradientAccounting,
    account_gradients,
)
from tfmemloc.probes.layer_rewinding import (
    LayerRewinding,
    RewindConfig,
    rewind_layers,
)
from tfmemloc.probes.layer_retraining import (
    LayerRetraining,
    RetrainConfig,
    retrain_layers,
)
from tfmemloc.probes.critical_units import (
    CriticalUnits,
    choose_ids,
    find_critical_units,
)
from tfmemloc.units import SearchConfig
from tfmemloc.probes.deletion import Deletion, DeletionConfig, delete_units
from tfmemloc.probes.group_units import (
    GroupSearchConfig,
    GroupUnits,
    find_group_units,
)
from tfmemloc.probes.injection import Injection, InjectionConfig, find_planted
from tfmemloc.probes.own_units import OwnUnits, OwnUnitsConfig, find_own_units

# Which examples are memorized, and which labels are wrong?
from tfmemloc.scores import (
    ExampleScores,
    MemorizationEstimates,
    ScoreConfig,
    estimate_memorization,
    evaluate_scores,
    score_examples,
    scores_of_logits,
    scores_of_recording,
    second_split_times,
)

# Wrong labels: found by any network, decided about, corrected.
from tfmemloc.labels import (
    DuplicateConfig,
    Duplicates,
    apply_decisions,
    find_duplicates,
    find_label_errors,
    score_by_removal,
    score_without_network,
)

# Audits: what does a network still remember?
from tfmemloc.audits import (
    Durability,
    DurabilityConfig,
    Extraction,
    ExtractionConfig,
    GroupAccuracy,
    GroupConfig,
    Membership,
    MembershipConfig,
    Recitation,
    RecitationConfig,
    SingleModelAudit,
    SingleModelConfig,
    audit_durability,
    audit_extraction,
    audit_groups,
    audit_membership,
    audit_recitation,
    audit_single_model,
    confidences_of_runs,
)

# Serving what is left.
from tfmemloc.serving import (
    export_saved_model,
    fold_batch_norm,
    prune_memorization,
    prune_units,
    pruning_plan,
)

# Results: what every method gives back.
from tfmemloc.result import Result, Table

__version__ = "0.2.0"

__all__ = [
    "AccountGradients",
    "AccountingConfig",
    "ComparisonConfig",
    "Continuation",
    "CriticalUnits",
    "CurvatureConfig",
    "CurvatureEdit",
    "DampeningConfig",
    "DataConfig",
    "Deletion",
    "DeletionConfig",
    "DuplicateConfig",
    "Duplicates",
    "Durability",
    "DurabilityConfig",
    "DurableConfig",
    "ExampleRecorder",
    "ExampleScores",
    "ExampleTiedDropout",
    "Examples",
    "Extraction",
    "ExtractionConfig",
    "ForgettingConfig",
    "GradientAccounting",
    "GradientAscentConfig",
    "GradientEngine",
    "GroupAccuracy",
    "GroupConfig",
    "GroupSearchConfig",
    "GroupUnits",
    "Injection",
    "InjectionConfig",
    "LayerRetraining",
    "LayerRewinding",
    "LostUnits",
    "MEMORY_OFF",
    "Membership",
    "MembershipConfig",
    "MemorizationEstimates",
    "ModelConfig",
    "NPOConfig",
    "NetworkComparison",
    "OutputEditConfig",
    "OwnUnits",
    "OwnUnitsConfig",
    "REMConfig",
    "Recitation",
    "RecitationConfig",
    "RecordExamples",
    "RecordRun",
    "Recording",
    "Removal",
    "Result",
    "RetrainConfig",
    "RewindConfig",
    "Run",
    "ScoreConfig",
    "SearchConfig",
    "SecondOrderConfig",
    "SingleModelAudit",
    "SingleModelConfig",
    "Snapshots",
    "SparseDropout",
    "SubnetConfig",
    "SubsetMetrics",
    "Table",
    "TrainConfig",
    "TrainingHistory",
    "account_gradients",
    "add_label_noise",
    "apply_decisions",
    "as_arrays",
    "ascend_gradient",
    "attach_ids",
    "audit_durability",
    "audit_extraction",
    "audit_groups",
    "audit_membership",
    "audit_recitation",
    "audit_single_model",
    "build",
    "check_per_example_gradients",
    "choose_ids",
    "compare_networks",
    "compare_with_critical_units",
    "confidences_of_runs",
    "curvature_factors",
    "dampen_weights",
    "delete_units",
    "edit_outputs",
    "estimate_memorization",
    "evaluate",
    "evaluate_scores",
    "example_mask",
    "example_mask_numpy",
    "export_saved_model",
    "find_critical_units",
    "find_duplicates",
    "find_group_units",
    "find_label_errors",
    "find_own_units",
    "find_planted",
    "fine_tune",
    "fold_batch_norm",
    "fold_seed",
    "forget_and_learn_again",
    "from_arrays",
    "layer_groups",
    "load",
    "make_batches",
    "mask_weights",
    "optimize_negative_preference",
    "per_example_dots",
    "per_example_gradients",
    "per_example_norms",
    "predict_logits",
    "prune_memorization",
    "prune_units",
    "pruning_plan",
    "recalibrate_batch_norm",
    "remove_memory",
    "retrain_layers",
    "retrain_without",
    "rewind_layers",
    "score_by_removal",
    "score_examples",
    "score_without_network",
    "scores_of_logits",
    "scores_of_recording",
    "scrub",
    "second_split_times",
    "set_labels",
    "sharing",
    "split_by_score",
    "stable_ids",
    "subset_gradients",
    "swapped_weights",
    "switch_memory_off",
    "tie_dropout",
    "tie_plan",
    "train",
    "train_networks",
    "untie",
    "with_inference",
    "write_live_page",
    "zero_critical_units",
    "zero_held_weights",
    "zero_weights",
]
