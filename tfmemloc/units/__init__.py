"""Units of a network: gates, searches, rankings."""

from tfmemloc.units.config import PAPER_PROTOCOL, SearchConfig
from tfmemloc.units.gated_model import GatedModel, drawn, is_right
from tfmemloc.units.gates import UnitGates
