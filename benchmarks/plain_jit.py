"""Compares our plan with the compiler's: python -m benchmarks.plain_jit

What would XLA's partitioner send without our plan? The network of 2012 in full
size is compiled under plain `jax.jit` on layouts of the catalog. Parameters and
batch are sharded by `NamedSharding` as the layout shards them, and the
partitioner decides what to send. This is read from the compiled program and
compared with our plan.

The program computes what our step does, loss, gradients and update, except:
- a layer that reads its own column is one grouped convolution, the usual code
  without a layout;
- images arrive as f32[N, 224, 224, 3], and dropout masks as arguments. Ours are
  augmented and drawn inside the step, which sends nothing.

The state leaves a step sharded as it came, else the next step could not take
it. `plain jit` specifies no more than that. `constrained` also specifies how
our layout shards the output of each layer, and so its gradient. `dense` is
`model.AlexNet` itself, with one convolution for each column. So it is not
affected by openxla/xla issue 47945, by which the batch of a grouped convolution
is gathered. But it takes the kernel of fc6 as a matrix, and the partitioner
exchanges all of this kernel.

Everything is compiled for simulated CPU devices and nothing is run, so this is
about XLA's compiler for CPUs. Others differ. The compiler for TPU (libtpu
0.0.42, v5e) makes no grouped convolution, so that `plain jit` sends for
data_parallel just what we plan. It makes one reduce-scatter of a sum and a
slice, where the CPU's keeps the sum and sends twice as much.
"""

import collections
import dataclasses
import time
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from absl import app, flags
from flax import nnx
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from alexnet_jax.cli import command
from alexnet_jax.network import model, ops, pooling, wiring
from alexnet_jax.partition import collectives, plan, specs
from alexnet_jax.partition import mesh as mesh_lib
from alexnet_jax.program import compiled_step, compiler_options, metrics
from alexnet_jax.program import program as program_lib
from alexnet_jax.settings import settings
from alexnet_jax.training import run as run_lib
from benchmarks import page
from configs import default

PLAN, OURS = "our plan", "our step"
# Name -> arguments of `make_step`.
VARIANTS = {
  "plain jit": {},
  "constrained": {"constrained": True},
  "dense": {"grouped": False},
}
PROGRAMS = (PLAN, OURS, *VARIANTS)
NO_LAYER = "no layer"
DEVICES = 8  # simulated; no named layout has more
WORST = 3

Sent = Mapping[str, Sequence[plan.Collective]]
Rows = list[tuple[str, ...]]


def forward(
  network: wiring.Network,
  parameters: Mapping[str, Mapping[str, jax.Array]],
  images: jax.Array,
  masks: Mapping[str, jax.Array],
  outputs: Mapping[str, NamedSharding] | None = None,
) -> jax.Array:
  """The network in the global view, columns as groups of a convolution.

  Args:
    network: whose fully connected layers read all columns.
    parameters: as `model.init_parameters` has them.
    images: f32[N, image_size, image_size, 3].
    masks: per layer with dropout, bool[N, units].
    outputs: per layer, the sharding of its output; None leaves it open.

  Returns:
    f32[N, classes], the logits.
  """
  x = images
  for layer in network.layers:
    with jax.named_scope(layer.name):
      kernel = parameters[layer.name]["kernel"]
      bias = parameters[layer.name]["bias"]
      if layer.window:
        x = lax.conv_general_dilated(
          x,
          kernel,
          window_strides=(layer.stride, layer.stride),
          padding=(layer.padding, layer.padding),
          dimension_numbers=("NHWC", "HWIO", "NHWC"),
          feature_group_count=network.columns if layer.reads == "own" else 1,
        )
      else:
        # Not as one product of two matrices: the channels of a map, which a
        # layout may split, stay a dimension that the compiler sees.
        x = x.reshape(x.shape[0], *kernel.shape[:-1])
        x = jnp.tensordot(x, kernel, axes=kernel.ndim - 1)
      x = x + jnp.expand_dims(bias, tuple(range(x.ndim - 1)))
      x = ops.activate(x, layer.activation)
      if layer.normalize == "column":
        x = ops.local_response_norm(x, groups=network.columns)
      if layer.pool:
        x = pooling.pool(x, layer.pool)
      if layer.dropout:
        x = x * masks[layer.name].astype(x.dtype)
      if outputs:
        x = lax.with_sharding_constraint(x, outputs[layer.name])
  return x


def make_step(
  program: program_lib.Program,
  *,
  constrained: bool = False,
  grouped: bool = True,
) -> tuple[jax.stages.Wrapped, tuple]:
  """The step of a program under plain `jax.jit`.

  Args:
    program: the network, its layout and its optimizer.
    constrained: whether to specify the shardings of layer outputs.
    grouped: `forward`; False: `model.AlexNet`.

  Returns:
    (state, images, labels, masks) -> (state, totals), jitted, and its
    arguments as `jax.ShapeDtypeStruct`. As in `step.make_train_step`, but for
    the images, f32[N, image_size, image_size, 3], and the masks, bool[N,
    units] per layer with dropout.
  """
  network, layout, n = program.network, program.layout, program.batch_size
  mesh = jax.make_mesh(
    tuple(layout.mesh.values()),
    tuple(layout.mesh),
    axis_types=(AxisType.Auto,) * len(layout.mesh),
    devices=program.mesh.devices.flatten(),
  )
  graphdef = model.make_graphdef(network)
  outputs = {}
  for layer in network.layers if constrained else ():
    sharding = program.routes[layer.name].output_sharding
    sides = (None, None) if layer.window else ()
    spec = PartitionSpec(
      sharding.batch or None, *sides, sharding.features or None
    )
    outputs[layer.name] = NamedSharding(mesh, spec)

  def train_step(state, images, labels, masks):
    def mean_loss(parameters):
      if grouped:
        logits = forward(network, parameters, images, masks, outputs)
      else:
        logits = nnx.merge(graphdef, parameters)(images, masks=masks)
      with jax.named_scope("loss"):
        totals = metrics.totals(logits, labels)
        return totals[0] / n, totals

    gradients, totals = jax.grad(mean_loss, has_aux=True)(state.parameters)
    with jax.named_scope("update"):
      updates, optimizer_state = program.optimizer.update(
        gradients, state.optimizer, state.parameters
      )
      parameters = jax.tree.map(jnp.add, state.parameters, updates)
    state = state._replace(
      step=state.step + 1, parameters=parameters, optimizer=optimizer_state
    )
    return state, totals

  def per_image(shape, dtype, spec):
    sharding = NamedSharding(mesh, spec)
    return jax.ShapeDtypeStruct((n, *shape), dtype, sharding=sharding)

  state = specs.with_shardings(mesh, program.abstract_state)
  size = network.image_size
  arguments = (
    state,
    per_image((size, size, 3), "float32", program.specs.images),
    per_image((), "int32", program.specs.labels),
    {
      name: per_image(network.sizes()[name].out_shape, "bool", spec)
      for name, spec in program.specs.masks.items()
    },
  )
  leaves = jax.tree.map(lambda leaf: leaf.sharding, state)
  replicated = NamedSharding(mesh, program.specs.replicated)
  step = jax.jit(
    train_step, donate_argnames="state", out_shardings=(leaves, replicated)
  )
  return step, arguments


def find_sent(
  program: program_lib.Program, **variant: bool
) -> tuple[plan.Collective, ...]:
  """Returns what the step of a program sends under plain `jax.jit`."""
  step, arguments = make_step(program, **variant)
  options = compiler_options.choose(program.mesh.devices.flat, mode="auto").used
  hlo = step.lower(*arguments).compile(compiler_options=options).as_text()
  scopes = [*program.network.sizes(), "loss", "update"]
  return collectives.read_compiled(hlo, scopes, program.layout.mesh).collectives


def compare(program: program_lib.Program) -> Sent:
  """Returns what each of `PROGRAMS` sends."""
  _, audit = compiled_step.compile_step(program)
  return {
    PLAN: audit.plan,
    OURS: audit.compiled,
    **{name: find_sent(program, **v) for name, v in VARIANTS.items()},
  }


def find_unplanned(
  compiled: Sequence[plan.Collective], planned: Sequence[plan.Collective]
) -> list[plan.Collective]:
  """Returns what a program sends beyond the plan, most bytes first."""
  # A collective of the compiler does not say whether it moves a parameter.
  planned, compiled = (
    collections.Counter(dataclasses.replace(e, tensor="") for e in exchanges)
    for exchanges in (planned, compiled)
  )
  extra = (compiled - planned).elements()
  return sorted(extra, key=lambda exchange: -exchange.sent_bytes)


def summarize(layout: str, by_program: Sent) -> Rows:
  """Rows for programs: collectives, bytes, and what is not planned."""
  rows = []
  for program, exchanges in by_program.items():
    sent, planned = _sent(exchanges), _sent(by_program[PLAN])
    worst = [
      f"{it.layer or NO_LAYER} {it.direction}: {it.kind} of {it.elements:,} "
      "elements"
      for it in find_unplanned(exchanges, by_program[PLAN])[:WORST]
    ]
    ratio = f"{sent / planned:.2f}" if planned else "-"
    numbers = (f"{len(exchanges)}", f"{sent:,}", ratio)
    rows.append((layout, program, *numbers, "\n".join(worst) or "-"))
  return rows


def list_layers(by_program: Sent) -> Rows:
  """A row for each layer and direction: bytes sent by each program."""
  sent = collections.Counter()
  for program, exchanges in by_program.items():
    for e in exchanges:
      sent[e.layer or NO_LAYER, e.direction, program] += e.sent_bytes
  keys = sorted({(layer, direction) for layer, direction, _ in sent})
  rows = [
    (*key, *(f"{sent[*key, program]:,}" for program in by_program))
    for key in keys
  ]
  return [
    *rows,
    ("sum", "", *(f"{_sent(by_program[name]):,}" for name in by_program)),
  ]


def main(argv: list[str]) -> None:
  command.check_no_arguments(argv)
  values = flags.FLAGS
  started = time.monotonic()
  mesh_lib.simulate_devices(DEVICES, only_cpu=True)
  console = command.make_console()
  programs = {}
  with command.exit_on_error(ValueError, OSError):
    for name in dict.fromkeys([*values.layouts, values.detail]):
      config = default.get_config("imagenet")
      config.layout.name, config.batch_size = name, values.batch_size
      programs[name] = run_lib.make_program(config, *settings.check(config))
    if not values.layouts:
      raise ValueError("--layouts is empty, expected names of layouts.")
    page.check_markdown()
  rows, details = [], []
  for name, program in programs.items():
    sent = compare(program)
    if name in values.layouts:
      rows += summarize(name, sent)
    if name == values.detail:
      details = list_layers(sent)
  tables = [
    page.Table(
      f"Bytes that one device sends in a step of {values.batch_size} images",
      ("layout", "program", "> collectives", "> bytes", "> / plan")
      + ("not planned",),
      rows,
    ),
    page.Table(
      f"By layer, {values.detail}",
      ("layer", "direction", *(f"> {program}" for program in PROGRAMS)),
      details,
    ),
  ]
  for table in tables:
    console.print(table.to_rich())
  console.print(f"\n{time.monotonic() - started:.0f} s, jax {jax.__version__}")
  page.write(
    "What would the compiler send without a plan?",
    f"`make docs` writes this page, with jax {jax.__version__}.",
    __doc__,
    *(f"{table.title}:\n\n{table.to_markdown()}" for table in tables),
  )


def define_flags() -> None:
  """Not on import: other benchmarks have flags of the same names."""
  layouts = "two_column,data_parallel,two_column_data,one_weird_trick"
  flags.DEFINE_integer("batch_size", 128, "Images in a step.", lower_bound=1)
  command.define_list("layouts", layouts, "Named layouts to compare.")
  flags.DEFINE_string("detail", "two_column_data", "Layout to list by layer.")
  page.define_markdown()


def _sent(exchanges: Sequence[plan.Collective]) -> int:
  return sum(exchange.sent_bytes for exchange in exchanges)


if __name__ == "__main__":
  define_flags()
  app.run(main, flags_parser=command.parse_flags)
