"""Dropout layers that confine what is memorized, and their masks."""

from tfmemloc.layers.sparse_dropout import SparseDropout
from tfmemloc.layers.tied_dropout import ExampleTiedDropout, dropped_fraction
