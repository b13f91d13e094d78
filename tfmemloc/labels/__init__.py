"""From doubted labels to corrected data: find, decide, correct."""

from tfmemloc.labels.by_removal import score_by_removal
from tfmemloc.labels.decisions import apply_decisions, read_decisions
from tfmemloc.labels.duplicates import (
    DuplicateConfig,
    Duplicates,
    find_duplicates,
)
from tfmemloc.labels.finding import find_label_errors
from tfmemloc.labels.without_network import score_without_network
