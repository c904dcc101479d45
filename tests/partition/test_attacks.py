"""Steps that send what is not planned, in ways that are easy to overlook.

Most are small programs on 2 x 2 devices, each with f32[2, 3]. Their plan is one
sum of 6 elements over 2 devices, for which each sends 2 x 6 x 1/2 x 4 = 24
bytes. What the readings have to report was worked out by hand.
"""

import dataclasses
import re

import jax
import jax.numpy as jnp
import optax
import pytest
from jax import lax
from jax.experimental import io_callback
from jax.experimental import pallas as pl

from alexnet_jax.partition import audit, collectives, exchange
from tests import build

MESH = {"data": 2, "column": 2}
SUM = build.make_collective(
  6, layer="fc6", direction="forward", tensor="activation"
)
BACKWARD = dataclasses.replace(SUM, direction="backward")
BOTH = (SUM, BACKWARD)


def trace(function, *, outer=lambda mapped: mapped, check_vma=True):
  """Traces a function of each device; `outer` may do more around it."""
  spec = jax.P("data", "column")
  mapped = jax.shard_map(
    function, in_specs=spec, out_specs=spec, check_vma=check_vma
  )
  with jax.set_mesh(jax.make_mesh((2, 2), ("data", "column"))):
    x = jnp.ones((4, 6), out_sharding=spec)
    return jax.jit(outer(mapped)).trace(x)


def audited(traced, text, plan):
  layers = list(build.TINY_NETWORK.sizes())
  return audit.audit_step(
    plan, jaxpr=traced.jaxpr, hlo=text, layers=layers, mesh=MESH
  )


def sent(found):
  return sum(collective.sent_bytes for collective in found)


def fc6(function):
  """Names a function for the layer that it is of."""

  def scoped(x):
    with jax.named_scope("fc6"):
      return function(x)

  return scoped


def add(x, axis="data"):
  """Sums over an axis. The result varies, so that its gradient is summed."""
  return lax.pcast(lax.psum(x, axis), axis, to="varying")


def add_other(x):
  return add(x, "column")


def then(*functions):
  def function(x):
    for each in functions:
      x = each(x)
    return x

  return function


def scan(function, length):
  def repeated(x):
    return lax.scan(lambda x, _: (function(x), None), x, length=length)[0]

  return repeated


def while_counted(x):
  def body(state):
    return state[0] + 1, add(state[1])

  return lax.while_loop(lambda state: state[0] < 4, body, (0, x))[1]


def while_converging(x):
  return lax.while_loop(lambda x: jnp.sum(x) < 100, add, x)


def while_condition(x):
  def sums_to_little(x):
    return lax.psum(jnp.sum(x), ("data", "column")) < 100

  return lax.while_loop(sums_to_little, jnp.exp, add(x))


def branches(*functions):
  return lambda x: lax.switch(jnp.sum(x).astype(jnp.int32), functions, x)


def with_gradient(function):
  """Computes what a training step does: forward, then backward."""

  def both(x):
    y, pull = jax.vjp(fc6(function), x)
    return pull(y)[0]

  return both


def make_custom(forward, backward):
  function = jax.custom_vjp(lambda x: add(x))
  function.defvjp(
    lambda x: (forward(x), None), lambda _, gradient: (backward(gradient),)
  )
  return function


@jax.custom_jvp
def custom_tangent(x):
  return add(x)


custom_tangent.defjvp(lambda x, dx: (add(*x), add_other(*dx)))


def call_debug(x):
  jax.debug.callback(lambda _: None, x)
  return x


def call_print(x):
  jax.debug.print("{}", x)
  return x


def call_io(x):
  io_callback(lambda _: None, None, x)
  return x


def call_pure(x):
  return jax.pure_callback(
    lambda x: x, jax.ShapeDtypeStruct(x.shape, x.dtype), x
  )


def run_kernel(x):
  def double(source, target):
    target[...] = source[...] * 2

  return pl.pallas_call(double, out_shape=x, interpret=True)(x)


def permute(x):
  return x + lax.ppermute(x, "data", [(0, 1), (1, 0)])


def add_complex(x):
  return add(x.astype(jnp.complex64)).real


def gather(x):
  return lax.all_gather(x, "data").sum(0)


def sum_pairs(x):
  both = lax.psum((x, jnp.sin(x)), "data")
  return lax.pcast(both[0] + both[1], "data", to="varying")


def sum_outside(mapped):
  """Sums the result over the devices without saying so, as `jit` allows."""

  def step(x):
    y = mapped(x)
    both = jnp.stack([y, jnp.sin(y)])  # f32[2, 4@data, 6@column]
    return jnp.sum(both, axis=1)  # 2 x 3 elements on a device, over data

  return step


def call_outside(mapped):
  def step(x):
    y = mapped(x)
    jax.debug.callback(lambda _: None, jnp.sum(y))
    return y

  return step


def drop(function):
  """Computes something that nothing reads; XLA removes it."""

  def dropping(x):
    function(x)
    return x

  return dropping


DATA = "sum of the activation over data, 6 elements"
OTHER = "sum of the activation over column, 6 elements"
UNKNOWN = "in a loop that runs an unknown number of times"
HOST = "hands 6 elements to the host"
CALL = "custom call xla_ffi_python_cpu_callback calls the host"
FORWARD_IN, BACKWARD_IN = "fc6 forward: ", "fc6 backward: "


def attack(name, function, sizes, traced, compiled=None, plan=(SUM,), **how):
  """Makes a case; the compiled reading reports the same as the traced one.

  `sizes` are the bytes that the readings count. Without a `plan` of its own, an
  attack has the sum of `SUM` and something more.
  """
  compiled = traced if compiled is None else compiled
  return pytest.param(function, sizes, traced, compiled, plan, how, id=name)


ATTACKS = [
  attack("scan", fc6(scan(add, 4)), (96, 96), f"{FORWARD_IN}{DATA}, 3 times"),
  attack(
    *("scan in scan", fc6(scan(scan(add, 3), 2)), (144, 144)),
    f"{FORWARD_IN}{DATA}, 5 times",
  ),
  attack(
    "fori_loop",
    fc6(lambda x: lax.fori_loop(0, 5, lambda _, x: add(x), x)),
    *((120, 120), f"{FORWARD_IN}{DATA}, 4 times"),
  ),
  attack(
    *("while of a known count", fc6(while_counted), (0, 96)),
    *(f"{FORWARD_IN}{DATA}, {UNKNOWN}", f"{FORWARD_IN}{DATA}, 3 times"),
  ),
  attack(
    *("while of an unknown count", fc6(while_converging), (0, 0)),
    f"{FORWARD_IN}{DATA}, {UNKNOWN}",
  ),
  attack(
    *("condition of a while", fc6(while_condition), (24, 24)),
    f"sum of the activation over data x column, 1 elements, {UNKNOWN}",
  ),
  attack(
    *("branch that sends more", fc6(branches(add, then(add, add_other)))),
    *((48, 48), f"{FORWARD_IN}{OTHER}"),
  ),
  attack(
    *("branches that differ", fc6(branches(add, add_other)), (24, 24)),
    f"{FORWARD_IN}{OTHER}, in one branch of a cond",
  ),
  attack(
    "branch of three",
    fc6(branches(add, jnp.sin, scan(add, 2))),
    *((48, 48), f"{FORWARD_IN}{DATA}"),
  ),
  attack(
    "custom_vjp forward",
    with_gradient(make_custom(then(add, add), lambda gradient: gradient)),
    *((48, 48), f"{FORWARD_IN}{DATA}"),
  ),
  attack(
    "custom_vjp backward",
    with_gradient(make_custom(add, scan(add, 4))),
    *((24 + 96, 24 + 96), f"{BACKWARD_IN}{DATA}, 3 times"),
    plan=BOTH,
  ),
  attack(
    *("custom_jvp", with_gradient(custom_tangent), (48, 48)),
    f"{BACKWARD_IN}{OTHER}",
    plan=BOTH,
  ),
  attack(
    "remat",
    with_gradient(jax.checkpoint(then(add, jnp.sin))),
    *((72, 72), f"{BACKWARD_IN}{DATA}"),
    plan=BOTH,
  ),
  attack(
    "nested jit",
    fc6(jax.jit(then(add, jax.jit(add_other)))),
    *((48, 48), f"{FORWARD_IN}{OTHER}"),
  ),
  attack(
    *("sum by the compiler", fc6(add), (24, 48), ""),
    f"outside every layer forward: {DATA}",
    outer=sum_outside,
  ),
  attack(
    *("dead sum and one of its size", fc6(drop(add)), (24, 24), ""),
    f"outside every layer forward: {DATA}",
    outer=sum_outside,
  ),
  attack(
    # One number is summed over two devices of data, and of column.
    *("callback outside", fc6(add), (24, 24 + 4 + 4)),
    "outside every layer forward: debug_callback hands 1 elements to the host",
    f"outside every layer forward: {CALL}",
    outer=call_outside,
  ),
  attack(
    *("debug.callback", fc6(then(add, call_debug)), (24, 24)),
    *(f"{FORWARD_IN}debug_callback {HOST}", f"{FORWARD_IN}{CALL}"),
  ),
  attack(
    *("debug.print", fc6(then(add, call_print)), (24, 24)),
    *(f"{FORWARD_IN}debug_print {HOST}", f"{FORWARD_IN}{CALL}"),
  ),
  attack(
    *("io_callback", fc6(then(add, call_io)), (24, 24)),
    *(f"{FORWARD_IN}io_callback {HOST}", f"{FORWARD_IN}{CALL}"),
  ),
  attack(
    *("pure_callback", fc6(then(add, call_pure)), (24, 24)),
    *(f"{FORWARD_IN}pure_callback {HOST}", f"{FORWARD_IN}{CALL}"),
  ),
  attack(
    *("kernel", fc6(then(add, run_kernel)), (24, 24)),
    f"{FORWARD_IN}pallas_call hands 6 elements to a kernel",
    "",  # interpreted, it is the compiler's own operations
    check_vma=False,
  ),
  attack(
    "callback in a branch of a loop",
    fc6(then(add, scan(branches(call_io, jnp.sin), 2))),
    *((24, 24), f"{FORWARD_IN}io_callback {HOST}", f"{FORWARD_IN}{CALL}"),
  ),
  attack(
    *("memory of the host", fc6(add), (24, 24)),
    "outside every layer forward: device_put hands 24 elements to the host",
    "",  # a CPU has one memory
    outer=lambda mapped: (
      lambda x: jax.device_put(mapped(x), jax.memory.Space.Host)
    ),
  ),
  attack(
    *("permutation", fc6(permute), (24, 24)),
    f"{FORWARD_IN}ppermute of the activation over data, 6 elements",
    "",  # as far as it knows, the compiler may have chosen this
  ),
  attack(
    *("other type", fc6(add_complex), (48, 48)),
    f"{FORWARD_IN}{DATA} of 8 bytes",
  ),
  attack("other axis", fc6(add_other), (24, 24), f"{FORWARD_IN}{OTHER}"),
  attack(
    *("other kind", fc6(gather), (24, 24)),
    f"{FORWARD_IN}all_gather of the activation over data, 12 elements",
  ),
  attack("two in one", fc6(sum_pairs), (48, 48), f"{FORWARD_IN}{DATA}"),
]


def test_program_of_the_plan_is_accepted():
  traced = trace(fc6(add))
  found = audited(traced, traced.lower().compile().as_text(), (SUM,))
  assert found.agrees and found.notes == ()
  assert sent(found.traced) == sent(found.compiled) == 24


@pytest.mark.parametrize(
  ("function", "sizes", "traced", "compiled", "plan", "how"), ATTACKS
)
def test_attack_is_found(function, sizes, traced, compiled, plan, how):
  program = trace(function, **how)
  found = audited(program, program.lower().compile().as_text(), plan)
  assert not found.agrees
  for reading, words in (("traced", traced), ("compiled", compiled)):
    lines = [line for line in found.unplanned if line.startswith(reading)]
    assert bool(lines) == bool(words), lines
    assert any(words in line for line in lines) or not words, lines
  assert (sent(found.traced), sent(found.compiled)) == sizes


def test_sum_in_one_branch_counts_and_is_noted():
  # As that of the norms, where gradients of several batches are averaged.
  traced = trace(fc6(branches(add, jnp.sin)))
  found = audited(traced, traced.lower().compile().as_text(), (SUM,))
  assert found.agrees and sent(found.compiled) == 24
  note = f"{FORWARD_IN}{DATA}: in a branch of a cond, so not in every step"
  assert note in found.notes


@pytest.fixture(scope="module")
def planned():
  """The program of the plan: traced, and its text."""
  traced = trace(fc6(add))
  return traced, traced.lower().compile().as_text()


def add_line(line):
  """Adds an instruction of the entry computation, made of its parameter."""
  return lambda text: re.sub(
    r"(ENTRY .*\n(.*%(\S+) = .* parameter\(0\).*\n))",
    lambda match: match[1] + f"  %new.1 = {line}\n".replace("@", match[3]),
    text,
  )


NOT_READ = "compiled: nothing of kind sum was read, expected 1 more"
OUTSIDE = "compiled: outside every layer forward: "
F32 = "f32[2,3]{1,0}"


@pytest.mark.parametrize(
  ("change", "line"),
  [
    (lambda text: "", NOT_READ),
    (lambda text: text.replace("ENTRY", "MAIN"), "its text has no entry"),
    (lambda text: re.sub("(?m)^.* all-reduce.*$", "", text), NOT_READ),
    (
      lambda text: text.replace(" all-reduce(", " reduce-everywhere("),
      f"{FORWARD_IN}reduce-everywhere sends, and this audit cannot read it",
    ),
    (
      lambda text: re.sub(
        r" all-reduce\((.*?)\),.*?, metadata", r" sum(\1), metadata", text
      ),
      NOT_READ,
    ),
    (
      add_line(f"{F32} all-shuffle(%@), to={{1,0}}"),
      f"{OUTSIDE}all-shuffle sends, and this audit cannot read it",
    ),
    (
      add_line(
        f'{F32} custom-call(%@), custom_call_target="mine", channel_id=7'
      ),
      f"{OUTSIDE}mine sends, and this audit cannot read it",
    ),
    (
      add_line("((f32[2,3]{1,0}), token[]) infeed(%@)"),
      f"{OUTSIDE}infeed moves data to or from the host",
    ),
    (
      add_line('token[] outfeed(%@, %@), outfeed_config="x"'),
      f"{OUTSIDE}outfeed moves data to or from the host",
    ),
    (
      add_line(
        f"({F32}, u32[], token[]) send(%@, %@), channel_id=3, "
        "is_host_transfer=true"
      ),
      f"{OUTSIDE}send moves data to or from the host",
    ),
    (
      add_line(f"({F32}, u32[], token[]) recv(%@), channel_id=4"),
      f"{OUTSIDE}recv moves data to or from the host",
    ),
    (
      add_line("f32[2,3]{1,0:S(5)} copy(%@)"),
      f"{OUTSIDE}copy moves data to or from the host",
    ),
    (
      add_line(
        '() custom-call(%@), custom_call_target="xla_python_gpu_callback"'
      ),
      f"{OUTSIDE}custom call xla_python_gpu_callback calls the host",
    ),
  ],
  ids=[
    *("empty text", "no entry", "removed", "renamed", "renamed altogether"),
    *("new kind", "custom call on a channel", "infeed", "outfeed", "send"),
    *("recv", "memory of the host", "callback of a GPU"),
  ],
)
def test_text_that_hides_something_is_refused(change, line, planned):
  traced, text = planned
  changed = change(text)
  assert changed != text
  found = audited(traced, changed, (SUM,))
  assert not found.agrees
  assert any(line in each for each in found.unplanned + found.missing), found


def test_custom_call_of_an_unknown_name_is_noted(planned):
  traced, text = planned
  line = f'{F32} custom-call(%@), custom_call_target="TARGET"'
  for target in ("__cublas$gemm", "__onednn$matmul", "Sharding", "TopK"):
    assert (
      audited(traced, add_line(line.replace("TARGET", target))(text), ()).notes
      == ()
    )
  for target in ("mine", "tpu_custom_call", "__gpu$xla.gpu.triton"):
    found = audited(
      traced, add_line(line.replace("TARGET", target))(text), (SUM,)
    )
    assert found.agrees and found.notes == (
      "outside every layer forward: the audit does not know what custom call "
      f"{target} does",
    )


def test_loop_whose_count_the_compiler_does_not_know_is_refused():
  traced = trace(fc6(scan(add, 4)))
  text = traced.lower().compile().as_text()
  assert "known_trip_count" in text
  found = audited(traced, text.replace("known_trip_count", "x"), (SUM,) * 4)
  assert found.unplanned == (f"compiled: {FORWARD_IN}{DATA}, {UNKNOWN}",)
  assert audited(traced, text, (SUM,) * 4).agrees


class SumsOften(exchange.MeshExchange):
  """Sums each gradient four times, in a loop of its backward pass."""

  def _pvary(self, x, axes):
    @jax.custom_vjp
    def varying(x):
      return super(SumsOften, self)._pvary(x, axes)

    def sum_often(_, gradient):
      total = lax.psum(gradient, axes)
      return (scan(lambda x: x * 0 + lax.psum(gradient, axes), 3)(total),)

    varying.defvjp(lambda x: (varying(x), None), sum_often)
    return varying(x)


class CallsTheHost(exchange.MeshExchange):
  def reshard_input(self, layer, x):
    if layer == "conv2":
      jax.debug.callback(lambda _: None, x)
    return super().reshard_input(layer, x)


def watch_updates(optimizer):
  """An optimizer that hands its updates to the host."""

  def update(updates, state, parameters=None, **extra):
    jax.debug.callback(lambda _: None, updates["fc8"]["bias"])
    return optimizer.update(updates, state, parameters, **extra)

  return optax.GradientTransformationExtraArgs(optimizer.init, update)


def read(program):
  layers = [*program.network.sizes(), "loss", "update"]
  traced = program.trace()
  return collectives.read_traced(traced.jaxpr, layers, program.mesh.shape)


def test_step_that_sums_gradients_in_a_loop_is_counted():
  program = build.make_short_program("data_parallel")
  attacked = dataclasses.replace(
    program, exchange=SumsOften(program.routes, program.specs)
  )
  gradients = sum(size.parameters for size in program.network.sizes().values())
  # Two devices send what they sum once; the loss adds four numbers.
  assert sent(read(program).collectives) == 4 * (gradients + 4)
  assert sent(read(attacked).collectives) == 4 * (4 * gradients + 4)


def test_callbacks_in_a_step_are_refused():
  program = build.make_short_program("data_parallel")
  attacked = dataclasses.replace(
    program,
    exchange=CallsTheHost(program.routes, program.specs),
    optimizer=watch_updates(program.optimizer),
  )
  assert read(program).refused == ()
  assert [line.partition(" hands")[0] for line in read(attacked).refused] == [
    "conv2 forward: debug_callback",
    "outside every layer forward: debug_callback",
  ]
