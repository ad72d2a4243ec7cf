"""A simulated cohort: real anatomy, known truth.

Nothing else in `hyperfusion_rt.data` imports this package; it needs the `simulate` extra and torch.
"""

from hyperfusion_rt.data.simulate.cohort import OPTIMUM, simulate_cohort
from hyperfusion_rt.data.simulate.optimum import bayes_optimum

__all__ = ["OPTIMUM", "bayes_optimum", "simulate_cohort"]
