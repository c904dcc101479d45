"""Parts of a step, compiled as the step is, with noise to compute with."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax

from alexnet_jax.partition import each
from alexnet_jax.program import compiler_options
from alexnet_jax.program import program as program_lib


class Maker:
  """Makes what is measured callable.

  Args:
    program: of the step.
    options: for the compiler.
  """

  def __init__(
    self,
    program: program_lib.Program,
    options: Mapping[str, compiler_options.Value],
  ):
    self.program, self._options = program, dict(options)

  def call(self, function: Callable, *blocks) -> Callable[[], object]:
    """One device's work, on all devices at once; see `each.on_each`."""
    mesh = self.program.mesh
    arrays = each.fill(mesh, blocks)
    traced = jax.jit(each.on_each(mesh, function)).trace(*arrays)
    compiled = self.compile(traced)
    return lambda: compiled(*arrays)

  def compile(self, traced: jax.stages.Traced) -> jax.stages.Compiled:
    return traced.lower().compile(compiler_options=self._options)
