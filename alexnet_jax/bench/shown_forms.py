"""The forms of operations for people and for programs."""

from __future__ import annotations

import statistics

import rich.table

from alexnet_jax.bench import implementations as implementations_lib
from alexnet_jax.bench import shown
from alexnet_jax.network import implementations


def show(found: implementations_lib.Speed) -> shown.Shown:
  """What is measured, as data, as tables, and what these mean."""
  tables = [_table(found)]
  return shown.Shown(_to_data(found), tables, _to_lines(found))


def _to_data(found: implementations_lib.Speed) -> dict:
  """What the table shows, as data, and the seconds of every round."""
  return {
    "platform": found.platform,
    "devices": found.devices,
    "batch_size": found.batch_size,
    "taken": str(found.taken),
    "rule": str(found.rule),
    "better": found.better(),
    "operations": {
      operation: {
        "seconds": {
          form: found.total(operation, form)
          for form in implementations.CHOICES[operation]
        },
        "seconds_of_rounds": of_layers,
      }
      for operation, of_layers in found.seconds.items()
    },
  }


def _table(found: implementations_lib.Speed) -> rich.table.Table:
  """A row for each operation of each layer in each form, and for the sums."""
  table = rich.table.Table(
    title=f"\noperations of a step of {found.batch_size} images on one device, "
    "forward and backward, in ms",
    title_justify="left",
    box=None,
  )
  for header in ("operation", "layer", "form"):
    table.add_column(header)
  for header in ("median", "lowest", "highest", "of the plain one"):
    table.add_column(header, justify="right")
  table.add_column("")
  rule = found.rule
  for operation, of_layers in found.seconds.items():
    known = implementations.CHOICES[operation]
    for layer, of_forms in of_layers.items():
      plain = statistics.median(of_forms[known[0]])
      for form in known:
        seconds = of_forms[form]
        middle = statistics.median(seconds)
        times = (middle, min(seconds), max(seconds))
        table.add_row(
          *(operation, layer, form, *map(_ms, times), f"{middle / plain:.2f}"),
        )
    plain = found.total(operation, known[0])
    for form in known:
      total = found.total(operation, form)
      words = [
        *(["the rule's"] if form == getattr(rule, operation) else []),
        *(["taken"] if form == getattr(found.taken, operation) else []),
        *(["faster"] if found.better().get(operation) == form else []),
      ]
      table.add_row(
        *(operation, "all", form, _ms(total), "", "", f"{total / plain:.2f}"),
        ", ".join(words),
      )
    table.add_section()
  return table


def _to_lines(found: implementations_lib.Speed) -> list[str]:
  """What the table means."""
  better = found.better()
  lines = [
    f"on each of {found.devices} devices, all at once ({found.platform}); the "
    "rule's forms are those of --forms=auto"
    if found.devices > 1
    else f"on one device ({found.platform}); the rule's forms are those of "
    "--forms=auto"
  ]
  if better:
    named = ",".join(f"{name}={form}" for name, form in better.items())
    lines.append(
      "faster than what is taken by more than "
      f"{implementations_lib.WORTH:.0%}: "
      f"--forms={named}; alone, which --what=step holds to the whole step"
    )
  else:
    lines.append(
      "no form is faster than what is taken by more than "
      f"{implementations_lib.WORTH:.0%}"
    )
  return lines


def _ms(seconds: float) -> str:
  return f"{1e3 * seconds:,.2f}"
