"""How the speed of the input and of the augmentation is shown."""

from __future__ import annotations

from alexnet_jax.bench import augmentation as augmentation_lib
from alexnet_jax.bench import input, shown
from alexnet_jax.program import summary

_NO_TRANSFER = (
  "devices of the platform cpu take over the memory of a batch as it is: "
  "nothing is transferred",
)


def show_input(found: input.Speed) -> shown.Shown:
  """A row for each stage."""
  table = summary.make_table(
    "input of this process",
    *("stage", "> images/s", "> per core", "> MB/s", "> lowest", "> highest"),
  )
  for stage in input.STAGES:
    rate, lowest, highest = shown.spread(found.rates[stage])
    megabytes = rate * found.bytes_per_image(stage) / 1e6
    numbers = (rate, rate / found.cores, megabytes, lowest, highest)
    table.add_row(stage, *(f"{number:,.0f}" for number in numbers))
  data = {
    "threads": found.threads,
    "cores": found.cores,
    "rows": found.rows,
    "platform": found.platform,
    "stored_bytes_per_image": found.stored_bytes,
    "pixel_bytes_per_image": found.pixel_bytes,
    "images_per_second": {stage: found.median(stage) for stage in input.STAGES},
    "images_per_second_of_rounds": found.rates,
    "slowest": found.slowest(),
    "host_of_decoder": found.of_decoder(),
  }
  return shown.Shown(data, [table], _input_lines(found))


def _input_lines(found: input.Speed) -> list[str]:
  times = found.pixel_bytes / found.stored_bytes
  return [
    f"{found.threads} threads on {found.cores} cores, {found.rows} images of "
    f"each batch; medians of {len(found.rates['all'])} rounds",
    f"an image is {found.stored_bytes:,.0f} bytes as it is stored and "
    f"{found.pixel_bytes:,} as pixels, {times:.1f} times as many",
    f"of the stages alone, the slowest is {found.slowest()}",
    *(
      [
        f"the host makes batches at {found.of_decoder():.2f} of the speed of "
        "the decoder on images in memory, in the same threads"
      ]
      if found.median("decode") < found.median("read")
      else []  # there is hardly anything to decode
    ),
    *(_NO_TRANSFER if found.platform == "cpu" else ()),
  ]


def show_augmentation(found: augmentation_lib.Speed) -> shown.Shown:
  """A row for each step."""
  table = summary.make_table(
    f"a step of {found.batch_size} images, in ms",
    *("augmentation", "> median", "> lowest", "> highest"),
  )
  table.add_row("with", *shown.milliseconds(found.with_augmentation))
  table.add_row("without", *shown.milliseconds(found.without))
  data = {
    "batch_size": found.batch_size,
    "seconds_with": found.with_augmentation,
    "seconds_without": found.without,
    "added": found.added(),
  }
  line = (
    f"the augmentation adds {found.added():.1%} to a step: median of "
    f"{len(found.without)} pairs of steps, each with and without"
  )
  return shown.Shown(data, [table], [line])
