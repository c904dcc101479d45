import pytest

from alexnet_jax.partition import collectives

PAIRS = "replica_groups={{0,1},{2,3}}"
RINGS = "source_target_pairs={{0,1},{1,0},{2,3},{3,2}}"


@pytest.mark.parametrize(
  ("instruction", "groups", "kind", "axes", "elements"),
  [
    # As compilers for GPU and TPU print them.
    (
      "%ag = (f32[4,8]{1,0}, f32[8,8]{1,0}) all-gather-start(%x)",
      *("replica_groups=[2,2]<=[4]", "all_gather", ("column",), 64),
    ),
    (
      "%rs = bf16[4,8]{1,0} reduce-scatter(%x)",
      "replica_groups=[2,2]<=[2,2]T(1,0)",
      *("reduce_scatter", ("data",), 64),
    ),
    (
      "ROOT %ar = f32[10]{0} all-reduce(%x)",
      *("replica_groups={{0,1,2,3}}", "sum", ("data", "column"), 10),
    ),
    (
      "%aa = (f32[2,8]{1,0}, f32[2,8]{1,0}) all-to-all(%x, %y)",
      *(PAIRS, "all_to_all", ("column",), 64),
    ),
    (
      "%cp = f32[2,8]{1,0} collective-permute(%x)",
      *(RINGS, "collective-permute", ("column",), 16),
    ),
    (
      "%ag = f32[8,8]{1,0} all-gather(%x)",
      "replica_groups=mesh['data'=2,'column'=2] {'column'}, dimensions={0}",
      *("all_gather", ("column",), 64),
    ),
    (
      "%ar = f32[10]{0} all-reduce(%x)",
      "replica_groups=mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'b'}",
      *("sum", ("data",), 10),
    ),
    (
      "%rs = ((f32[8,8]{1,0}), f32[4,8]{1,0}) reduce-scatter-start(%x)",
      *(f"{PAIRS}, dimensions={{0}}", "reduce_scatter", ("column",), 64),
    ),
    (
      "%aa = ((f32[8,8]{1,0}), f32[8,8]{1,0}) all-to-all-start(%x)",
      *(f"{PAIRS}, dimensions={{0}}", "all_to_all", ("column",), 128),
    ),
    (
      "%cp = (f32[2,8]{1,0}, f32[2,8]{1,0}, u32[], u32[]) "
      "collective-permute-start(%x)",
      *(RINGS, "collective-permute", ("column",), 16),
    ),
    (
      *("%ar = f32[10]{0} all-reduce(%x)", "replica_groups={}"),
      *("sum", ("data", "column"), 10),
    ),
  ],
)
def test_compiled_collectives_of_other_platforms_are_read(
  instruction, groups, kind, axes, elements
):
  line = f'{instruction}, {groups}, metadata={{op_name="jit(f)/fc7/{kind}"}}'
  mesh = {"data": 2, "column": 2}
  (found,) = collectives.read_compiled(line, ["fc7"], mesh).collectives
  assert (found.layer, found.kind) == ("fc7", kind)
  assert (found.axes, found.elements) == (axes, elements)


def test_pieces_of_an_asynchronous_collective_keep_their_layers():
  hlo = """
  %s = (f32[6]{0}, f32[8]{0}) all-reduce-start(%a, %b), replica_groups={{0,1}}
  %d = (f32[6]{0}, f32[8]{0}) all-reduce-done(%s)
  %x = f32[6]{0} get-tuple-element(%d), index=0, metadata={op_name="f/fc6/bias"}
  %y = f32[8]{0} get-tuple-element(%d), index=1, metadata={op_name="f/fc7/bias"}
  """
  found = collectives.read_compiled(
    hlo, ["fc6", "fc7"], {"data": 2}
  ).collectives
  assert [(e.layer, e.tensor, e.elements) for e in found] == [
    ("fc6", "bias", 6),
    ("fc7", "bias", 8),
  ]


def test_collective_that_runs_in_pieces_beside_computations_counts_once():
  line = (
    "  %ag = bf16[8,4]{1,0} all-gather(%p), replica_groups={{0,1}}, "
    'dimensions={0}, frontend_attributes={chain_id="3"}, '
    'metadata={op_name="f/fc6/kernel/all_gather"}'
  )
  other = line.replace('"3"', '"4"').replace("fc6", "fc7")
  hlo = "\n".join([line, line, other, line])
  found = collectives.read_compiled(
    hlo, ["fc6", "fc7"], {"data": 2}
  ).collectives
  sizes = [(e.layer, e.tensor, e.elements, e.bytes_per_element) for e in found]
  assert sizes == [("fc6", "kernel", 32, 2), ("fc7", "kernel", 32, 2)]


def test_axes_of_one_device_are_left_out():
  line = (
    "%ar = f32[10]{0} all-reduce(%x), replica_groups={{0,1}}, "
    'metadata={op_name="f/fc7/kernel/psum"}'
  )
  (found,) = collectives.read_compiled(
    line, ["fc7"], {"data": 1, "model": 2}
  ).collectives
  assert found.axes == ("model",)


# As TPU's compiler combines the sums that it makes of reduce-scatters: with the
# scope of the first piece, and without one for the others.
COMBINED = """
%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %c = f32[] add(%a, %b)
}

ENTRY %main (p: f32[6], q: f32[8]) -> f32[8] {
  %p = f32[6]{0} parameter(0), metadata={op_name="state[\'fc7\']"}
  %q = f32[8]{0} parameter(1)
  %x = f32[8]{0} negate(%q), metadata={op_name="SCOPE"}
  %y = f32[8]{0} bitcast(%x)
  %s = (f32[6]{0}, f32[8]{0}, /*index=2*/f32[6]{0}) all-reduce(%p, %y, %p), \
replica_groups={{0,1}}, to_apply=%add, metadata={op_name="f/loss/psum"}
  %r = f32[6]{0} get-tuple-element(%s), index=0, \
metadata={op_name="f/loss/psum"}
  ROOT %z = f32[8]{0} get-tuple-element(%s), index=1
}
"""


def test_piece_without_a_scope_has_that_of_what_it_sums():
  hlo = COMBINED.replace("SCOPE", "f/transpose(jvp(conv4))/conv")
  found = collectives.read_compiled(hlo, ["conv4", "loss"], {"data": 2})
  assert [(e.layer, e.direction, e.elements) for e in found.collectives] == [
    ("loss", "forward", 6),
    ("conv4", "backward", 8),
    ("", "forward", 6),  # an argument of the program
  ]
  found = collectives.read_compiled(
    COMBINED.replace("SCOPE", "f/mul"), ["conv4", "loss"], {"data": 2}
  )
  assert [e.layer for e in found.collectives] == ["loss", "", ""]


# The same computation started asynchronously, called twice, and in a loop.
CALLED = """
%body (p: f32[6]) -> f32[6] {
  %p = f32[6]{0} parameter(0)
  ROOT %s = f32[6]{0} all-reduce(%p), replica_groups={{0,1}}
}

%condition (p: f32[6]) -> pred[] {
  %p = f32[6]{0} parameter(0)
  ROOT %t = pred[] constant(true)
}

%unused (p: f32[6]) -> f32[6] {
  %p = f32[6]{0} parameter(0)
  ROOT %s = f32[6]{0} add(%p, %p)
}

ENTRY %main (p: f32[6]) -> f32[6] {
  %p = f32[6]{0} parameter(0)
  %n = f32[6]{0} negate(%p), metadata={op_name="f/fc6/neg"}
  %a = ((f32[6]{0}), f32[6]{0}, u32[]) async-start(%n), calls=%body
  %b = f32[6]{0} async-done(%a), calls=%body
  %c = f32[6]{0} call(%b), to_apply=%body
  ROOT %w = f32[6]{0} while(%c), condition=%condition, body=%body, \
backend_config={"known_trip_count":{"n":"3"}}
}
"""


def test_computation_counts_as_often_as_it_is_called():
  found = collectives.read_compiled(CALLED, ["fc6"], {"data": 2})
  assert len(found.collectives) == 1 + 1 + 3 and found.refused == ()
  # A loop ends when its condition has run once more.
  summing = CALLED.replace(
    "ROOT %t = pred[] constant(true)",
    """\
%s = f32[6]{0} all-reduce(%p), replica_groups={{0,1}}
  ROOT %t = pred[] constant(true)""",
  )
  found = collectives.read_compiled(summing, ["fc6"], {"data": 2})
  assert len(found.collectives) == 5 + 3 + 1
  # What nothing is known to call cannot be counted.
  cut = CALLED.replace("calls=%body", "").replace("to_apply=%body", "")
  cut = cut.replace("body=%body", "body=%unused")
  found = collectives.read_compiled(cut, ["fc6"], {"data": 2})
  assert found.collectives == ()
  assert found.refused == (
    "outside every layer forward: sum of the activation over data, 6 elements, "
    "in a loop that runs an unknown number of times",
  )
