"""How fast a run is here, and what bounds it: what `bench` measures."""
