"""Which examples are memorized, and which labels are wrong."""

from tfmemloc.scores.calibration import fit_temperature
from tfmemloc.scores.critical_sets import critical_set_score
from tfmemloc.scores.example_scores import ExampleScores
from tfmemloc.scores.memorization import (
    MemorizationEstimates,
    estimate_memorization,
)
from tfmemloc.scores.of_predictions import scores_of_logits
from tfmemloc.scores.of_runs import ScoreConfig, check_scorable, score_examples
from tfmemloc.scores.of_training import scores_of_recording
from tfmemloc.scores.quality import (
    calibration_error,
    evaluate_scores,
    suggestions_right,
)
from tfmemloc.scores.second_split import second_split_times
