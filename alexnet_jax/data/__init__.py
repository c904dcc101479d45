"""The input pipeline: from a record on disk to a batch on the devices."""
