"""WHERE it is computed: layouts, their communication, and its audit."""
