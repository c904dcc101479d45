"""Compiles the step of a program, and holds its communication to the plan."""

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
  """Compiles the training step, and audits what came of it.

  The heap of this process then holds what a step takes of it meanwhile, see
  `distributed/malloc.py`.

  Args:
    program: the program.
    options: for the compiler, as `compiler_options.choose` finds them.

  Raises:
    jax.errors.JaxRuntimeError: the compiler cannot, as where memory is short.
  """
  traced = program.trace()
  try:
    compiled = traced.lower().compile(compiler_options=dict(options or {}))
  except jax.errors.JaxRuntimeError as error:
    if options:
      error.add_note("With --xla_options=off, XLA may compile it.")
    raise
  malloc.reserve(
    jax.local_device_count() * find_memory(compiled).get("temporaries", 0)
  )
  audit = audit_lib.audit_step(
    program.plan,
    jaxpr=traced.jaxpr,
    hlo=compiled.as_text(),
    mesh=dict(program.mesh.shape),
  )
  return compiled, audit


def find_memory(compiled: jax.stages.Compiled) -> dict[str, int]:
  """Bytes on one device by the compiler's analysis; {} where it has none."""
  found = compiled.memory_analysis()
  if found is None:
    return {}
  arguments = found.argument_size_in_bytes
  outputs = found.output_size_in_bytes - found.alias_size_in_bytes
  temporaries = found.temp_size_in_bytes
  return {
    "arguments": arguments,
    "outputs": outputs,
    "temporaries": temporaries,
    "peak": arguments + outputs + temporaries,
  }
