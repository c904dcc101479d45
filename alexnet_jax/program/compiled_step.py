"""Compiles the training step of a program, and audits it against the plan."""

from __future__ import annotations

from collections.abc import Mapping

import jax

from alexnet_jax.distributed import malloc
from alexnet_jax.partition import audit as audit_lib
from alexnet_jax.program import compiler_options
from alexnet_jax.program import program as program_lib


def compile_step(
  program: program_lib.Program,
  *,
  options: Mapping[str, compiler_options.Value] | None = None,
) -> tuple[jax.stages.Compiled, audit_lib.Audit]:
  """Compiles and audits the training step, alike for every command.

  The heap of this process then keeps the memory that a step needs for its
  temporaries, see `distributed/malloc.py`.

  Args:
    options: from `compiler_options.choose`; None: those of --xla_options=auto.

  Raises:
    jax.errors.JaxRuntimeError: the step cannot be compiled, for example
      because memory is short.
  """
  if options is None:
    devices = program.mesh.devices.flat
    options = compiler_options.choose(devices, mode="auto").used
  traced = program.trace()
  try:
    compiled = traced.lower().compile(compiler_options=dict(options))
  except jax.errors.JaxRuntimeError as error:
    if options:
      error.add_note("With --xla_options=off, XLA may compile it.")
    raise
  malloc.reserve_heap(
    jax.local_device_count() * find_memory(compiled).get("temporaries", 0)
  )
  audit = audit_lib.audit_step(
    program.plan,
    jaxpr=traced.jaxpr,
    hlo=compiled.as_text(),
    layers=[layer.name for layer in program.network.layers],
    mesh=dict(program.mesh.shape),
  )
  return compiled, audit


def find_memory(compiled: jax.stages.Compiled) -> dict[str, int]:
  """Returns the compiler's estimate of bytes on one device; {} without one."""
  analysis = compiled.memory_analysis()
  if analysis is None:
    return {}
  arguments = analysis.argument_size_in_bytes
  outputs = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
  temporaries = analysis.temp_size_in_bytes
  return {
    "arguments": arguments,
    "outputs": outputs,
    "temporaries": temporaries,
    "peak": arguments + outputs + temporaries,
  }
