"""What a layout looks like: the network over its devices, and charts."""
