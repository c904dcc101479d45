"""The input pipeline: from an image on disk to a batch on the devices.

An image passes these modules in order:

    sets          finds a TFDS set by name, checks it, opens its splits
    source        reads the stored bytes of record i of a split
    records       parses a record: encoded image and label
    decode        decodes it to a square of uint8 pixels
    host_batches  shuffles, and fills batches in background threads
    pipeline      copies this process's rows to its devices
    augment       crops, flips and normalizes, inside the training step

`imagenet256`, or a set of one's own (`own_set`), is made beforehand:
`recognition` says what a folder holds; `tars`, `folders` and `parquet` list
pictures and read them (`origin`); `shards` writes records, `preparation` runs
it, `statistics` sums the pixels.

`pictures` reads pictures that are in no set: arrays, files, folders.
"""
