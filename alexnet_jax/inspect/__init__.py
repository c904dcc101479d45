"""Shows what a layout does: tables, plan, and a picture."""
