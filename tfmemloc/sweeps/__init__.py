"""Many runs that differ in some flags."""

from tfmemloc.sweeps.grid import Cell, parse_grid
from tfmemloc.sweeps.results import SweepResults, gather_sweep, numbers_of
from tfmemloc.sweeps.run import BACKENDS, SweepError, run_sweep
