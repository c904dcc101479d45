"""The optimizer: SGD and LARS, learning-rate schedules, EMA of parameters."""
