"""How the speed of a step, and the peak of the devices, is shown."""

from __future__ import annotations

from alexnet_jax.bench import peak, shown
from alexnet_jax.bench import step as step_lib
from alexnet_jax.program import summary


def show(found: step_lib.Speed) -> shown.Shown:
  """Tables of the steps and of the peaks."""
  return shown.Shown(
    _to_data(found), [_steps(found), _peaks(found)], _say(found)
  )


def _steps(found: step_lib.Speed):
  table = summary.make_table(
    f"a step of {found.batch_size} images on {found.devices} x {found.kind}",
    *("steps", "> median ms", "> lowest", "> highest", "> images/s"),
    "> GFLOP/s",
  )
  for name, seconds in (
    ("each waited for", found.single),
    (f"{found.stretch} in a row, started ahead", found.ahead),
  ):
    rate = found.images_per_second(seconds)
    table.add_row(
      name,
      *shown.milliseconds(seconds),
      f"{rate:,.1f}",
      f"{found.flops / found.batch_size * rate / 1e9:,.1f}",
    )
  return table


def _peaks(found: step_lib.Speed):
  table = summary.make_table(
    "the devices at most, all together, between the steps",
    *("peak", "> median", "> lowest", "> highest", "unit"),
  )
  for dtype, rates in found.products.items():
    table.add_row(f"large product, {dtype}", *_giga(rates), "GFLOP/s")
  table.add_row("read and write memory in place", *_giga(found.copies), "GB/s")
  return table


def _giga(rates) -> list[str]:
  return [f"{rate / 1e9:,.1f}" for rate in shown.spread(rates)]


def _say(found: step_lib.Speed) -> list[str]:
  lines = [
    f"{found.flops / 1e9:,.2f} GFLOP a step: convolutions and products of all "
    "devices, forward and backward, multiplications by padding among them; no "
    "normalisation, pooling, augmentation or update",
    *(
      [
        f"{found.repeated:.1%} of what the devices do is repeated work, which "
        "is not counted"
      ]
      if found.repeated
      else []
    ),
    f"computed in {peak.describe_precision(found.platform, found.compute)}",
    f"the steps started ahead reach {found.share_of_peak():.1%} of the peak of "
    "a large product",
  ]
  of_memory = found.share_of_memory()
  if of_memory is not None:
    lines.append(
      f"the {found.touched_bytes / 1e9:,.2f} GB that its operations read and "
      f"write by the compiler's count take {of_memory:.0%} of a step at the "
      "pace of the copy; less where caches keep them"
    )
  gap = found.host_gap()
  lines.append(
    f"a step takes {abs(gap) * 1e3:,.1f} ms {'less' if gap >= 0 else 'more'} "
    f"started ahead than waited for; medians of {len(found.single)} rounds"
  )
  if found.memory:
    lines.append(
      f"memory of one device by the compiler: {found.memory['peak']:,} bytes "
      "at the peak of a step, of these "
      f"{found.memory['arguments']:,} state and batch, "
      f"{found.memory['temporaries']:,} temporary"
    )
  whose = "the fullest device" if found.peak_of == "device" else "this process"
  lines.append(
    f"in use at most, from the start on and with compiling: "
    f"{found.peak_bytes:,} bytes of {whose}"
  )
  return lines


def _to_data(found: step_lib.Speed) -> dict:
  return {
    "batch_size": found.batch_size,
    "devices": found.devices,
    "device_kind": found.kind,
    "platform": found.platform,
    "precision": peak.describe_precision(found.platform, found.compute),
    "steps_in_a_stretch": found.stretch,
    "seconds_single": shown.of_rounds(found.single),
    "seconds_ahead": shown.of_rounds(found.ahead),
    "images_per_second_single": found.images_per_second(found.single),
    "images_per_second_ahead": found.images_per_second(found.ahead),
    "host_gap_seconds": found.host_gap(),
    "flops": found.flops,
    "repeated_share": found.repeated,
    "flops_per_second": found.reached(),
    "share_of_peak": found.share_of_peak(),
    "touched_bytes": found.touched_bytes,
    "share_of_memory": found.share_of_memory(),
    "peak_flops_per_second": {
      dtype: shown.of_rounds(rates) for dtype, rates in found.products.items()
    },
    "peak_bytes_per_second": shown.of_rounds(found.copies),
    "memory": found.memory,
    "peak_memory_bytes": found.peak_bytes,
    "peak_memory_of": found.peak_of,
  }
