"""The layers of a step for people and for programs."""

from __future__ import annotations

import statistics

import rich.table

from alexnet_jax.bench import layers, shown


def show(found: layers.Speed) -> shown.Shown:
  """What is measured, as data, as tables, and what these mean."""
  tables = [_layer_table(found), _product_table(found)]
  return shown.Shown(_to_data(found), tables, _to_lines(found))


def _to_data(found: layers.Speed) -> dict:
  """What the tables show, as data, and the seconds of every round."""
  return {
    "platform": found.platform,
    "devices": found.devices,
    "batch_size": found.batch_size,
    "forms": str(found.forms),
    "xla_options": dict(found.options),
    "peak_flops_per_second": found.peak_flops,
    "layers": {
      name: {
        "images": found.images[name],
        "forward_seconds": statistics.median(of_layer[layers.FORWARD]),
        "backward_seconds": found.backward(name),
        "products_seconds": found.of_products(name),
        "flops": found.flops[name] * len(found.products[name]),
        "flops_per_second": found.flops_per_second(name),
        "seconds_of_rounds": dict(of_layer),
        "products": {
          what: {
            "flops": found.flops[name],
            "seconds": statistics.median(seconds),
            "seconds_of_rounds": seconds,
          }
          for what, seconds in found.products[name].items()
        },
      }
      for name, of_layer in found.layers.items()
    },
    **{
      name: {
        "seconds": statistics.median(seconds),
        "seconds_of_rounds": seconds,
      }
      for name, seconds in {**found.rests, layers.STEP: found.step}.items()
    },
    "parts_seconds": found.parts(),
  }


def _layer_table(found: layers.Speed) -> rich.table.Table:
  """A row for each layer, for what is beside them, and for the whole step."""
  table = rich.table.Table(
    title=f"\none device's share of a step of {found.batch_size} images, in ms",
    title_justify="left",
    box=None,
  )
  table.add_column("part")
  for header in (
    *("forward", "backward", "both", "lowest", "highest", "of the step"),
    *("products", "the rest", "MFLOP", "GFLOP/s", "of the peak"),
  ):
    table.add_column(header, justify="right")
  step = statistics.median(found.step)

  def times(seconds: list[float]) -> list[str]:
    middle = statistics.median(seconds)
    numbers = (middle, min(seconds), max(seconds))
    return [*map(_ms, numbers), f"{middle / step:.1%}"]

  for name, of_layer in found.layers.items():
    rate = found.flops_per_second(name)
    table.add_row(
      name,
      _ms(statistics.median(of_layer[layers.FORWARD])),
      _ms(found.backward(name)),
      *times(of_layer[layers.BOTH]),
      _ms(found.of_products(name)),
      _ms(statistics.median(of_layer[layers.BOTH]) - found.of_products(name)),
      f"{found.flops[name] * len(found.products[name]) / 1e6:,.0f}",
      f"{rate / 1e9:,.1f}",
      f"{rate / found.peak_flops:.1%}",
    )
  for name, seconds in found.rests.items():
    table.add_row(name, "", "", *times(seconds))
  parts = found.parts()
  table.add_section()
  flops = sum(
    found.flops[name] * len(found.products[name]) for name in found.layers
  )
  products = sum(map(found.of_products, found.layers))
  table.add_row(
    *("sum", "", "", _ms(parts), "", "", f"{parts / step:.1%}"),
    *(_ms(products), "", f"{flops / 1e6:,.0f}"),
    f"{flops / products / 1e9:,.1f}",
    f"{flops / products / found.peak_flops:.1%}",
  )
  table.add_row(
    *("the step", "", "", *times(found.step), "", "", f"{flops / 1e6:,.0f}"),
    *(f"{flops / step / 1e9:,.1f}", f"{flops / step / found.peak_flops:.1%}"),
  )
  table.add_row(
    *("not explained", "", "", _ms(step - parts), "", ""),
    f"{1 - parts / step:.1%}",
  )
  return table


def _product_table(found: layers.Speed) -> rich.table.Table:
  """A row for each layer: its products, one by one."""
  table = rich.table.Table(
    title="\nthe convolution or product of each layer alone",
    title_justify="left",
    box=None,
  )
  table.add_column("layer")
  table.add_column("MFLOP each", justify="right")
  for what in ("forward", "by input", "by kernel"):
    for header in (f"{what}, ms", "GFLOP/s", "of the peak"):
      table.add_column(header, justify="right")
  for name, products in found.products.items():
    cells = []
    for what in ("forward", "by input", "by kernel"):
      if what not in products:
        cells += ["-", "", ""]
        continue
      seconds = statistics.median(products[what])
      rate = found.flops[name] / seconds
      cells += [
        *(_ms(seconds), f"{rate / 1e9:,.1f}"),
        f"{rate / found.peak_flops:.1%}",
      ]
    table.add_row(name, f"{found.flops[name] / 1e6:,.0f}", *cells)
  return table


def _to_lines(found: layers.Speed) -> list[str]:
  """What the tables mean."""
  devices = "one device"
  if found.devices > 1:
    devices = f"each of {found.devices} devices, all at once"
  options = ", ".join(f"{name}={it}" for name, it in found.options.items())
  return [
    f"on {devices} ({found.platform}); medians of {len(found.step)} rounds in "
    "which all take turns; backward is what it adds to forward",
    f"forms: {found.forms}; XLA options: {options or 'none'}",
    "products: the convolutions or products of a layer by themselves; the "
    "rest: bias, activation, normalisation, pooling, dropout",
    f"the peak is a large product at its best: {found.peak_flops / 1e9:,.1f} "
    "GFLOP/s on each device; another library may convolve faster",
    "GFLOP/s of a layer are those of its convolutions or products alone, "
    "forward and backward",
    *(
      ["the step has exchanges, which none of its parts has"]
      if found.devices > 1
      else []
    ),
  ]


def _ms(seconds: float) -> str:
  return f"{1e3 * seconds:,.2f}"
