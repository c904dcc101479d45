"""WHAT is computed: the table of layers and the module that runs it."""
