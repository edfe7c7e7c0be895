"""How good predictions are: splits, metrics, baselines, and the prequential join of a running system."""
