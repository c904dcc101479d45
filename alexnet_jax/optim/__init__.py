"""The update: SGD and LARS, learning-rate schedules, averaged parameters."""
