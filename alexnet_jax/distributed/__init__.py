"""The processes of a run: how they start, agree, notice a loss and end."""
