"""How good predictions are: figures with intervals, of classes and of numbers."""

from hyperfusion_rt.metrics.classification import balanced_accuracy, classification
from hyperfusion_rt.metrics.groups import FEWEST, age_bands, by_group
from hyperfusion_rt.metrics.regression import deviation, regression
from hyperfusion_rt.metrics.repeatability import repeatability

__all__ = [
    "FEWEST",
    "age_bands",
    "balanced_accuracy",
    "by_group",
    "classification",
    "deviation",
    "regression",
    "repeatability",
]
