"""A network without its memory, made small and exported."""

from tfmemloc.serving.card import CARD
from tfmemloc.serving.endpoint import FORMATS, ExportError
from tfmemloc.serving.export import INFERENCES, export_saved_model
from tfmemloc.serving.folding import fold_batch_norm
from tfmemloc.serving.pruning import prune_memorization, pruning_plan
from tfmemloc.serving.unit_pruning import prune_units
