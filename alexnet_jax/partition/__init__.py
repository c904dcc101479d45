"""Where it is computed: layouts, what they send, and the proof of it."""
