"""Pictures of networks, layouts and runs, and what they are drawn from."""
