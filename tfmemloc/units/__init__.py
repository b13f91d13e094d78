"""Units of a network: gates, searches, rankings."""

from tfmemloc.units.config import PAPER_PROTOCOL, SearchConfig
from tfmemloc.units.draws import drawn
from tfmemloc.units.gated_model import GatedModel, is_right
from tfmemloc.units.gates import UnitGates
