"""The command `report`, which makes a page of a run, and its parts."""
