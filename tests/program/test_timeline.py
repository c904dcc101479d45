"""A trace has the steps that were asked for, with the names of the plan."""

import collections
import gzip
import json

import jax
import numpy as np
import pytest

from alexnet_jax.bench import turns
from alexnet_jax.partition import collectives
from alexnet_jax.program import compiled_step, profiler, timeline
from alexnet_jax.settings import settings
from alexnet_jax.training import run as run_lib
from tests import build, cases, processes, short_network

STEPS = range(12, 17)


def read_exchanges(path) -> dict[int, collections.Counter]:
  """Returns {step: {(exchange, process and device): times}} of a trace."""
  with gzip.open(path, "rt") as opened:
    events = json.load(opened)["traceEvents"]
  found = collections.defaultdict(collections.Counter)
  for event in events:
    if event.get("cat") == "exchange":
      names = event["args"].get("exchanges", [event["name"]])
      for name in names:
        found[event["args"]["step"]][name, event["pid"]] += 1
  return found


def name_plan(plan) -> list[str]:
  """Names the lines of a plan, as a reader of its table would."""
  return [
    " ".join(
      (
        *(line.layer, line.direction),
        *([] if line.tensor == "activation" else [line.tensor]),
        *(line.kind.replace("_", "-"), *line.axes),
      )
    )
    for line in plan
  ]


@pytest.mark.parametrize(
  "name", ["two_device", *build.slow("four_device", "fully_sharded")]
)
def test_trace_has_each_step_and_each_planned_exchange(name, tmp_path):
  config = short_network.get_config(name)
  config.network.width, config.batch_size = 0.125, 16
  program = run_lib.make_program(config, *settings.check(config))
  compiled, _ = compiled_step.compile_step(
    program, options=cases.find_xla_options()
  )
  shown = []
  recorder = profiler.Recorder(
    str(tmp_path / "trace"),
    steps=STEPS,
    program=program,
    first_step=9,
    show=shown.append,
  )
  steps = turns.StepRunner(program, recorder.wrap(compiled))
  steps.run(10)  # 10 to 19
  assert recorder.close()
  planned = name_plan(program.plan)
  assert planned
  found = read_exchanges(tmp_path / "trace/process0.trace.json.gz")
  assert sorted(found) == list(STEPS)
  for of_step in found.values():
    devices = {device for _, device in of_step}
    assert len(devices) == program.mesh.size
    for device in devices:
      assert {name for name, where in of_step if where == device} >= {*planned}
  (read,) = shown
  assert [step for name, step, _ in read.host if name == "train"] == [*STEPS]
  assert {span.step for span in read.spans} == {*STEPS}
  times = read.find_device_times()
  assert [*times] == list(range(program.mesh.size))
  for time in times.values():
    parts = time.compute + time.exchange + time.overlap + time.idle
    np.testing.assert_allclose(parts, time.step, rtol=1e-9)  # float64 sums
  layers = read.find_layer_times()
  assert {layer.name for layer in program.network.layers} <= layers.keys()
  assert not [line for line in read.lines() if "planned" in line]
  text = (tmp_path / "trace/process0.txt").read_text()
  assert planned[0] in text and "steps 12 to 16" in text
  (part,) = (tmp_path / "trace/plugins/profile").glob("*/*")
  assert part.name == "process0.xplane.pb"
  assert len(list((tmp_path / "trace").iterdir())) == 3  # nothing is left over


def test_trace_that_is_not_finished_leaves_nothing(tmp_path):
  recorder = profiler.Recorder(
    str(tmp_path / "trace"),
    steps=range(2, 9),
    program=None,
    first_step=0,
    show=None,
  )
  take = recorder.wrap(lambda state, *batch: (state + 1, state))
  state = 0
  for _ in range(3):
    state, _ = take(state, "key", np.zeros(1), np.zeros(1))
  assert state == 3
  assert not recorder.close()
  assert not list((tmp_path / "trace").iterdir())
  with jax.profiler.trace(str(tmp_path / "other")):  # none is under way
    pass


def make_timeline(rng) -> timeline.Timeline:
  """Makes one of two devices and two steps, in whole nanoseconds."""
  spans = []
  for index in range(40):
    start = int(rng.integers(0, 900))
    end = start + int(rng.integers(1, 60))
    kind = timeline.EXCHANGE if index % 3 == 0 else timeline.COMPUTE
    name = f"conv{index % 2 + 1} forward all-gather column"
    spans.append(
      timeline.Span(
        name=name,
        names=(name,) if kind == timeline.EXCHANGE else (),
        instruction=f"i.{index}",
        scope="",
        kind=kind,
        layer=f"conv{index % 2 + 1}",
        direction="forward",
        device=index // 2 % 2,
        step=1 + (start >= 450),
        start=float(start),
        end=float(end),
      )
    )
  return timeline.Timeline(
    process=0,
    steps=range(1, 3),
    layers=("conv1", "conv2"),
    spans=tuple(sorted(spans, key=lambda span: span.start)),
    host=(),
    begin=0,
    planned=(),
  )


def test_times_are_those_of_a_clock_that_looks_each_nanosecond():
  found = make_timeline(np.random.default_rng(0))
  for device, time in found.find_device_times().items():
    spans = [span for span in found.spans if span.device == device]
    is_on = {kind: np.zeros(1000, bool) for kind in ("compute", "exchange")}
    for span in spans:
      is_on[span.kind][int(span.start) : int(span.end)] = True
    compute, exchange = is_on.values()
    begin = int(min(span.start for span in spans))
    end = int(max(span.end for span in spans))
    for seconds, ticks in (
      (time.compute, compute & ~exchange),
      (time.exchange, exchange & ~compute),
      (time.overlap, compute & exchange),
      (time.idle, ~(compute | exchange)),
    ):
      # Of two steps; whole numbers, up to the division in float64.
      np.testing.assert_allclose(
        seconds * 1e9, ticks[begin:end].sum() / 2, rtol=1e-9
      )


def look_each_nanosecond(spans) -> np.ndarray:
  """Returns whether any of some spans is on, bool[nanoseconds]."""
  is_on = np.zeros(1000, bool)
  for span in spans:
    is_on[int(span.start) : int(span.end)] = True
  return is_on


def test_time_beside_compute_is_that_of_a_clock():
  found = make_timeline(np.random.default_rng(1))
  compute = {
    device: look_each_nanosecond(
      span
      for span in found.spans
      if (span.device, span.kind) == (device, "compute")
    )
    for device in (0, 1)
  }
  ticks = collections.defaultdict(list)
  for span in found.spans:
    if span.kind == "exchange":
      ticks[span.name] += [
        *compute[span.device][int(span.start) : int(span.end)]
      ]
  shown = found.tables[2].columns
  assert [*shown[0].cells] == [*ticks]
  for name, cell in zip(shown[0].cells, shown[-1].cells, strict=True):
    share = np.mean(ticks[name])
    assert 0 < share < 1
    # Whole percents.
    np.testing.assert_allclose(float(cell.rstrip("%")), 100 * share, atol=0.5)


def test_layer_times_are_those_of_a_clock():
  found = make_timeline(np.random.default_rng(2))
  times = found.find_layer_times()
  assert [*times] == ["conv1", "conv2"]
  for layer, of_layer in times.items():
    assert {*of_layer} == {("compute", "forward"), ("exchange", "forward")}
    for (kind, _), seconds in of_layer.items():
      ticks = sum(
        look_each_nanosecond(
          span
          for span in found.spans
          if (span.device, span.layer, span.kind) == (device, layer, kind)
        ).sum()
        for device in (0, 1)
      )
      # Of two devices and two steps; up to the division in float64.
      np.testing.assert_allclose(seconds * 1e9, ticks / 4, rtol=1e-9)


def test_loop_counts_by_the_instructions_inside_it():
  operations = {
    name: collectives.Operation(
      layer="conv1", direction="forward", scope="", inner=inner
    )
    for name, inner in {"while": ("add", "dot"), "add": (), "dot": ()}.items()
  }

  def find_names(*names):
    events = [
      timeline._Event(name, None, 0, 1, None, float(start), start + 9.0)
      for start, name in enumerate(names)
    ]
    found = timeline._make_spans(events, operations, range(1, 2), {})
    return [span.instruction for span in found]

  assert find_names("while", "dot", "dot") == ["dot", "dot"]
  assert find_names("while") == ["while"]  # one that is traced as a whole


_HLO = """HloModule jit_train_step

ENTRY %main (p: f32[2]) -> f32[4] {
  %p = f32[2] parameter(0)
  %dot.1 = f32[2] negate(%p), metadata={op_name="jit(f)/conv2/dot"}
  ROOT %gather.1 = f32[4] all-gather(%dot.1), channel_id=1,\
 replica_groups={{0,1}}, dimensions={0},\
 metadata={op_name="jit(f)/transpose(jvp())/conv2/all_gather"}
}
"""
_NAMES = ("hlo_op", "hlo_module", "run_id", "device_ordinal", "_p", "_c")


def make_plane(plane: str, events) -> str:
  """Makes the text of an XPlane of one line.

  Args:
    events: (name, start and end in ns, {name of a stat: value}) of each.
  """
  names = list(dict.fromkeys(name for name, *_ in events))
  lines = []
  for name, start, end, stats in events:
    values = [
      f"stats {{ metadata_id: {_NAMES.index(stat) + 1} "
      + (
        f'str_value: "{value}"'
        if isinstance(value, str)
        else f"int64_value: {value}"
      )
      + " }"
      for stat, value in stats.items()
    ]
    lines.append(
      f"events {{ metadata_id: {names.index(name) + 1} offset_ps: {start}000 "
      f"duration_ps: {end - start}000 {' '.join(values)} }}"
    )
  tables = [
    f'{kind} {{ key: {i} value {{ id: {i} name: "{name}" }} }}'
    for kind, found in (("event_metadata", names), ("stat_metadata", _NAMES))
    for i, name in enumerate(found, start=1)
  ]
  inside = "\n".join(lines)
  return f'planes {{ name: "{plane}" lines {{ {inside} }} {" ".join(tables)} }}'


def read_text(text, tmp_path, *, steps) -> timeline.Timeline:
  path = tmp_path / "some.xplane.pb"
  path.write_bytes(
    jax.profiler.ProfileData.text_proto_to_serialized_xspace(text)
  )
  program = build.make_short_program("two_column")
  return timeline.read(str(path), hlo=_HLO, program=program, steps=steps)


@pytest.mark.parametrize(("read_at", "end"), [(38, 38), (45, 40)])
def test_instruction_ends_where_threads_have_completed_it(
  read_at, end, tmp_path
):
  own = {"hlo_module": "jit_train_step", "run_id": 7, "device_ordinal": 1}
  other = own | {"hlo_module": "jit_other"}
  text = make_plane(
    "/host:CPU",
    [
      ("dot.1", 10, 12, own | {"hlo_op": "dot.1", "_p": 3}),
      ("dot.1", 13, 14, other | {"hlo_op": "dot.1", "_p": 5}),
      ("end: dot.1", 40, 41, {"_c": 3}),
      ("gather.1", read_at, 60, own | {"hlo_op": "gather.1", "_p": 4}),
      ("end: gather.1", 59, 60, {"_c": 4}),
    ],
  )
  found = read_text(text, tmp_path, steps=range(5, 6))
  assert [
    (span.name, span.kind, span.device, span.step, span.start, span.end)
    for span in found.spans
  ] == [
    ("conv2 forward dot.1", "compute", 1, 5, 10, end),
    ("conv2 backward all-gather column", "exchange", 1, 5, read_at, 60),
  ]


def test_plane_of_an_accelerator_is_read(tmp_path, monkeypatch):
  monkeypatch.setattr(timeline, "_number_devices", lambda mesh: {"0": 0})
  own = {"hlo_module": "jit_train_step"}
  events = [
    (f"kernel_{name}", start, start + 5, own | {"hlo_op": name})
    for start, name in enumerate(("dot.1", "gather.1") * 3)
  ]
  text = make_plane("/device:GPU:0", events)
  found = read_text(text, tmp_path, steps=range(1, 4))
  assert [span.step for span in found.spans] == [1, 1, 2, 2, 3, 3]
  assert [span.kind for span in found.spans] == ["compute", "exchange"] * 3


def test_steps_are_told_apart_without_the_number_of_a_run():
  def number(runs):
    events = [
      timeline._Event(name, None, 0, run, None, 0.0, 1.0)
      for run in runs
      for name in ("copy", "copy", "conv", "add")
    ]
    return timeline._number_steps(events, range(7, 10))

  assert number([5, 6, 4]) == [7] * 4 + [8] * 4 + [9] * 4
  # `copy` runs twice in a step, so that `conv` is taken for its begin.
  assert number([None] * 3) == [7] * 6 + [8] * 4 + [9] * 2


@pytest.mark.parametrize(
  ("steps", "first", "last", "message"),
  [
    ("100:105", 0, 104, None),
    ("100:105", 99, 200, None),
    ("100:105", 0, 103, "are 100 to 104, but the run takes steps 1 to 103"),
    ("100:105", 100, 200, "but the run takes steps 101 to 200"),
    (None, 20, 35, None),
    (None, 20, 34, "traces steps 31:36, .* Set --profile_steps"),
    (None, 20, 20, "has taken all of its 20 steps"),
    ("5", 0, 9, "'5', expected A:B"),
    ("0:3", 0, 9, "expected A:B .* 1 <= A < B"),
    ("5:5", 0, 9, "'5:5', expected A:B"),
    ("1:2000", 0, 9999, "at most 1,000 steps"),
  ],
)
def test_steps_that_a_run_does_not_take_are_refused(
  steps, first, last, message, tmp_path
):
  def choose():
    request = profiler.make_request(str(tmp_path / "new/trace"), steps)
    return request.choose_steps(first, last)

  if message is None:
    assert choose() == (range(100, 105) if steps else range(31, 36))
    return
  with pytest.raises(ValueError, match=message) as error:
    choose()
  assert "\n" not in str(error.value)


def test_folder_with_files_is_refused(tmp_path):
  assert profiler.make_request(None, None) is None
  (tmp_path / "file").touch()
  for folder, message in (
    (tmp_path, "exists already"),
    (tmp_path / "file", "exists already"),
    (tmp_path / "file/trace", "cannot be made"),
  ):
    with pytest.raises(ValueError, match=f"{message}.* Set --profile"):
      profiler.make_request(str(folder), None)
  with pytest.raises(ValueError, match="Set --profile=DIR"):
    profiler.make_request(None, "1:2")


@pytest.mark.hosts
def test_each_process_writes_its_part(tmp_path):
  tmp = tmp_path / "run"
  tmp.mkdir()
  flags = (f"--profile={tmp}/trace", "--profile_steps=3:8")
  running = processes.start_training(tmp, {"num_epochs": 3.0}, *flags, count=2)
  for ended in processes.finish(running):
    assert ended.code == 0, ended.errors
  config = short_network.get_config("two_device")
  config.network.width, config.batch_size = 0.125, 16
  planned = name_plan(
    run_lib.make_program(config, *settings.check(config)).plan
  )
  devices = set()
  for process in range(2):
    found = read_exchanges(tmp / f"trace/process{process}.trace.json.gz")
    assert sorted(found) == [3, 4, 5, 6, 7]
    for of_step in found.values():
      assert {name for name, _ in of_step} == {*planned}
      devices |= {device for _, device in of_step}
  assert len(devices) == 2
  parts = (tmp / "trace/plugins/profile").glob("steps_3_to_7/*.xplane.pb")
  assert len(list(parts)) == 2
  assert not list((tmp / "trace").glob(".*"))
