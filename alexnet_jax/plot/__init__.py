"""The command `plot`, which draws the curves of runs, and its parts."""
