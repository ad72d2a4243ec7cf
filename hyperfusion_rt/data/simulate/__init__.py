"""A simulated cohort: real anatomy, known truth.

Nothing else in `hyperfusion_rt.data` imports this package; it needs the `simulate` extra and torch.
"""

from hyperfusion_rt.data.simulate.cohort import MARK, simulate_cohort
from hyperfusion_rt.data.simulate.optimum import bayes_optimum

__all__ = ["MARK", "bayes_optimum", "simulate_cohort"]
