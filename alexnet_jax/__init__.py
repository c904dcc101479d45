"""AlexNet (2012), split across devices as its authors did, in JAX."""
