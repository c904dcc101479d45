import errno
import functools
import itertools
import json
import math
import os
import pathlib
import re
import types

import jax
import numpy as np
import pytest

from alexnet_jax.checkpoints import checkpoint, metadata, reader
from alexnet_jax.data import records, source, statistics
from alexnet_jax.distributed import group as group_lib
from alexnet_jax.figures import confusion
from alexnet_jax.optim import schedules
from alexnet_jax.program import eval_step
from alexnet_jax.program import program as program_lib
from alexnet_jax.settings import settings
from alexnet_jax.training import events, report
from alexnet_jax.training import loop as loop_lib
from alexnet_jax.training import run as run_lib
from alexnet_jax.training import train as train_lib
from tests import (
  bucket,
  event_files,
  fake_group,
  processes,
  runs,
  short_network,
)

TWO_COLUMN = {"layout.name": "two_column"}
ONE_EPOCH = {"num_epochs": 1.0}
TWO_EPOCHS = {"num_epochs": 2.0}


def of(group, **fields):
  """Returns the fields of a group with their values."""
  return [(f"{group}{name}", value) for name, value in fields.items()]


@pytest.fixture
def train(tiny_config, tmp_path, data_dir):
  """Trains `tiny_config`, with some fields changed, in a folder of tmp_path.

  On a short network, which compiles fast.
  """
  short_network.shorten(tiny_config)
  tiny_config.network.width = 1 / 8

  def train(fields=None, *, folder=".", **options):
    tiny_config.update_from_flattened_dict(fields or {})
    return runs.train(tiny_config, tmp_path / folder, data_dir, **options)

  return train


def test_run_reports_validates_and_keeps_the_newest_checkpoints(
  train, tmp_path
):
  logged, closed = [], []

  def make_tracker(config, workdir):
    assert config["checkpoint_every_steps"] == 1
    assert workdir == str(tmp_path)
    return types.SimpleNamespace(
      log=lambda values, step: logged.append({"step": step} | values),
      close=lambda: closed.append(True),
    )

  state, lines, said, _ = train(
    TWO_COLUMN | {"checkpoint_every_steps": 1, "max_to_keep": 2},
    make_tracker=make_tracker,
  )
  text = (tmp_path / "metrics.jsonl").read_text()
  assert logged == list(map(json.loads, text.splitlines()))
  assert closed == [True]
  # Six steps of 16 images, of 48.
  assert (lines[-1]["images_seen"], lines[-1]["epoch"]) == (96, 2.0)
  assert [line["step"] for line in lines] == [2, 4, 6, 6]
  assert lines[-1]["validation_images"] == 21
  for name in ("validation_top1_error", "validation_top5_error"):
    assert 0 <= lines[-1][name] <= 1
  np.testing.assert_allclose(
    [line["learning_rate"] for line in lines[:3]], [0.01, 0.001, 0.001]
  )
  kept = {path.name for path in (tmp_path / "checkpoints").iterdir()}
  assert kept == {"5", "6"}
  assert checkpoint.Checkpoints(str(tmp_path), keep=2).latest_step() == 6
  # The kernels at the validation, of both devices.
  kernel = np.asarray(state.parameters["conv1"]["kernel"])
  images = event_files.read_images(tmp_path)
  assert [step for step, _ in images["confusion"]] == [6]
  (shown,) = images["kernels/conv1"]
  assert shown[0] == 6
  np.testing.assert_array_equal(shown[1], lay_out(kernel, columns=2))
  assert "layout two_column, mesh column=2" in said
  assert "the traced step has the 5 exchanges of the plan" in said
  # All in halves, but for the ten biases of fc8.
  sizes = re.search(r"holds ([\d,]+) of ([\d,]+) weights", said).groups()
  held, total = (int(size.replace(",", "")) for size in sizes)
  assert 2 * (held - 10) == total - 10


def lay_out(kernel, *, columns):
  """Lays out kernels weight by weight."""
  window, _, _, maps = kernel.shape
  own = maps // columns
  assert own <= 16  # a row
  height = window * (2 * columns - 1)
  sheet = np.zeros((height, own * (window + 1) - 1, 4), np.uint8)
  for number, y, x in np.ndindex(maps, window, window):
    one = kernel[..., number]
    colors = np.round(127.5 + 127.5 * (one[y, x] / np.abs(one).max()))
    top, left = 2 * window * (number // own), (window + 1) * (number % own)
    sheet[top + y, left + x] = [*colors, 255]
  return sheet


def test_confusion_of_all_batches_is_shown():
  rng = np.random.default_rng(0)
  labels = rng.integers(-1, 3, (4, 8)).astype(np.int32)  # -1: no image
  predicted = rng.integers(0, 3, (4, 8)).astype(np.int32)
  expected = np.zeros((3, 3), int)
  for label, one in zip(labels.ravel(), predicted.ravel(), strict=True):
    if label >= 0:
      expected[label, one] += 1
  outcomes = [
    (np.stack([one, np.zeros_like(one)]), label)  # the second copy is not read
    for one, label in zip(predicted, labels, strict=True)
  ]
  of_two_runs = [(np.stack([one, one]), label) for one, label in outcomes]
  images = {}

  def show(*, classes=3, processes=1, outcomes=outcomes):
    images.clear()
    network = types.SimpleNamespace(
      layers=(types.SimpleNamespace(features=classes),)
    )
    loop = types.SimpleNamespace(
      _run=types.SimpleNamespace(
        program=types.SimpleNamespace(network=network),
        group=types.SimpleNamespace(count=processes),
      ),
      _reporter=types.SimpleNamespace(
        has_events=True, images=lambda step, found: images.update(found)
      ),
    )
    loop_lib.Loop._show_confusion(loop, 1, outcomes)
    return images.get("confusion")

  np.testing.assert_array_equal(show(), confusion.to_pixels(expected))
  for left_out in (
    {"classes": 201},
    {"processes": 2},
    {"outcomes": of_two_runs},
  ):
    assert show(**left_out) is None


def test_kernels_are_read_where_this_process_has_all_of_them():
  whole = np.arange(24.0).reshape(4, 6)

  def make(*indices):
    shards = [
      types.SimpleNamespace(index=index, data=whole[index]) for index in indices
    ]
    return types.SimpleNamespace(
      shape=whole.shape,
      size=24,
      dtype=whole.dtype,
      addressable_shards=shards,
    )

  every = slice(None)
  left, right = (every, slice(0, 3)), (every, slice(3, 6))
  for indices in (((every, every),), (left, right), (left, right, left)):
    np.testing.assert_array_equal(loop_lib.read_whole(make(*indices)), whole)
  assert loop_lib.read_whole(make(left)) is None
  assert loop_lib.read_whole(make(left, left)) is None


def show_kernels(kernel, *, times=1):
  """Shows a kernel as the loop does after validations; two columns.

  Returns the images, and the lines that are printed.
  """
  images, lines = {}, []
  layer = types.SimpleNamespace(name="conv1", kind="conv")
  augmentation = types.SimpleNamespace(
    color_order="rgb", statistics=statistics.PUBLISHED
  )
  program = types.SimpleNamespace(
    network=types.SimpleNamespace(layers=(layer,), columns=2),
    augmentation=augmentation,
  )
  loop = types.SimpleNamespace(
    _run=types.SimpleNamespace(program=program),
    _reporter=types.SimpleNamespace(
      has_events=True,
      say=lambda step, line: lines.append(line),
      images=lambda step, found: images.update(found),
    ),
    _said_no_kernels=False,
    state=types.SimpleNamespace(
      optimizer=(), variables={"conv1": {"kernel": kernel}}
    ),
  )
  for step in range(times):
    loop_lib.Loop._show_kernels(loop, step)
  return images, lines


def test_kernels_of_several_runs_are_shown_by_run():
  kernels = np.random.default_rng(0).normal(size=(2, 3, 3, 3, 4))
  images, lines = show_kernels(jax.numpy.asarray(kernels, "float32"))
  assert not lines
  assert [*images] == ["kernels/conv1/0", "kernels/conv1/1"]
  for kernel, shown in zip(kernels, images.values(), strict=True):
    np.testing.assert_array_equal(shown, lay_out(kernel, columns=2))


def test_missing_kernels_are_said_once(monkeypatch):
  monkeypatch.setattr(loop_lib, "read_whole", lambda array: None)
  images, lines = show_kernels(None, times=3)
  assert not images
  (line,) = lines
  assert "TensorBoard gets no pictures of conv1's kernels" in line


def test_stopped_and_restarted_run_ends_as_an_uninterrupted_one(train):
  straight, *_ = train(TWO_COLUMN, folder="straight")
  halfway, *_ = train(ONE_EPOCH, folder="halves")
  assert int(halfway.step) == 3
  resumed, lines, said, _ = train(TWO_EPOCHS, folder="halves")
  assert "resumes after step 3 of 6" in said
  assert lines[-1]["step"] == 6
  assert runs.same_bits(resumed, straight)
  assert not runs.same_bits(halfway.parameters, straight.parameters)


def test_finished_run_that_has_to_train_again_starts_its_tracker(
  train, tmp_path
):
  fields = TWO_COLUMN | ONE_EPOCH | {"checkpoint_every_steps": 2}
  straight, *_ = train(fields)
  files = (tmp_path / "checkpoints" / "3" / "state").rglob("*")
  max(files, key=lambda file: file.stat().st_size).write_bytes(b"")
  events = []

  def make_tracker(config, workdir):
    return types.SimpleNamespace(
      log=lambda values, step: events.append(step),
      close=lambda: events.append("closed"),
    )

  again, _, said, _ = train(make_tracker=make_tracker)
  assert "resumes after step 2 of 3" in said
  assert runs.same_bits(again, straight)
  assert 3 in events[:-1] and set(events[:-1]) == {3}
  assert events[-1] == "closed"


def test_tracker_is_closed_when_its_run_does_not_compile(train, monkeypatch):
  monkeypatch.setattr(
    train_lib, "_compile", functools.partial(fail, error=FULL)
  )
  closed = []
  tracker = types.SimpleNamespace(log=fail, close=lambda: closed.append(True))
  with pytest.raises(OSError, match=FULL.strerror):
    train(TWO_COLUMN, make_tracker=lambda config, workdir: tracker)
  assert closed == [True]


def test_run_whose_checkpoints_are_gone_is_not_started_over(tmp_path):
  reports = tmp_path / "metrics.jsonl"
  train_lib._check_not_emptied(str(tmp_path))
  # A run that was killed before its first checkpoint starts over.
  reports.write_text('{"step": 2, "training_loss": 1.5}\n{"step": 3, "trai')
  train_lib._check_not_emptied(str(tmp_path))
  reports.write_text('{"step": 3, "checkpoint_seconds": 0.5}\n{"step": 4')
  with pytest.raises(OSError, match="metrics.jsonl says that step 3 was saved"):
    train_lib._check_not_emptied(str(tmp_path))


@pytest.mark.slow
def test_restarted_run_drops_where_an_uninterrupted_one_does(train):
  # Nothing is an improvement but the first: a drop with every third.
  plateau = of("optimizer.", plateau_min_change=0.9, plateau_patience=2)
  fields = of("optimizer.", schedule="plateau", ema_decay=0.5)
  fields += of("", eval_every_steps=1, log_every_steps=1)
  straight, lines, *_ = train(
    TWO_COLUMN | dict(plateau + fields), folder="straight"
  )
  rates = [line["learning_rate"] for line in lines if "learning_rate" in line]
  np.testing.assert_allclose(rates, [0.01] * 3 + [0.001] * 2 + [0.0001])
  halfway, *_ = train(ONE_EPOCH, folder="halves")
  np.testing.assert_allclose(
    schedules.find_plateau_scale(halfway.optimizer), 0.1, rtol=1e-6
  )
  resumed, lines, *_ = train(TWO_EPOCHS, folder="halves")
  assert lines[-2]["learning_rate"] == 0.0001
  assert runs.same_bits(resumed, straight)


@pytest.mark.slow
def test_restarted_run_with_rules_of_layers_ends_as_an_uninterrupted_one(
  train, tiny_config
):
  tiny_config.optimizer.layers = {
    "conv1": {"lr_multiplier": 0.0},
    "conv3": {"rates": ((0.5, 1e-3), (1.5, 0.0))},
    "fc8": {"lr_multiplier": 0.5, "weight_decay": 0.0},
  }
  options = TWO_COLUMN | {"optimizer.ema_decay": 0.5}
  straight, _, said, _ = train(options, folder="straight")
  assert "frozen, without gradients: conv1; the backward pass ends at" in said
  halfway, *_ = train(ONE_EPOCH, folder="halves")
  resumed, *_ = train(TWO_EPOCHS, folder="halves")
  assert runs.same_bits(resumed, straight)
  for name, layer in halfway.parameters.items():
    is_same = runs.same_bits(layer, straight.parameters[name])
    assert is_same == (name == "conv1")


def fill_training_only(self, *arguments, original=records.Records.fill):
  if "validation" in self.source.name:
    raise source.RecordError("record 3 has label -1")
  return original(self, *arguments)


def fail(*_, error):
  raise error


def rename_workdir(self, step, *, original=report.Reporter.advance):
  original(self, step)
  if step == 3:
    os.rename(self._workdir, f"{self._workdir}.renamed")


def rename_and_stop(self, number):
  """In place of `Loop._follow_up`: a signal comes before the next report."""
  os.rename(self._run.workdir, f"{self._run.workdir}.renamed")
  self._stop(number)


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
NAN = np.array([math.nan, 0, 0, 16], np.float32)
# What fails at the next start: an attribute, what takes its place, the error,
# and the step that is saved.
FAILURES = [
  (
    *(program_lib.Program, "evaluate", lambda *_: eval_step.Evaluated(NAN, 0)),
    "loss of the validation after step 1 is nan: the state is finite, so an "
    "output of the network overflows. There is no checkpoint yet",
    None,
  ),
  (records.Records, "fill", fill_training_only, "label -1", 1),
  (
    *(events.Events, "add", functools.partial(fail, error=FULL)),
    *("reports in .* cannot be written: No space left", 1),
  ),
  (
    *(loop_lib.Loop, "_follow_up", rename_and_stop),
    *(r"is gone: .* It is now '.*/a\.renamed': rename it back", 2),
  ),
  (
    *(report.Reporter, "advance", rename_workdir),
    *(r"is gone: .* It is now '.*/a\.renamed': rename it back", 3),
  ),
]


def call_once(function):
  """The function, which returns its first result whatever its arguments."""
  results = []

  def call(*arguments, **options):
    if not results:
      results.append(function(*arguments, **options))
    return results[0]

  return call


def test_error_after_a_step_ends_the_run_with_that_step_saved(
  train, monkeypatch, tmp_path
):
  # One program serves all starts.
  for module, name in ((run_lib, "make_program"), (train_lib, "_compile")):
    monkeypatch.setattr(module, name, call_once(getattr(module, name)))
  each_step = {"eval_every_steps": 1, "log_every_steps": 1}
  four_steps = {"num_epochs": 4 / 3}
  straight, expected, *_ = train(four_steps | each_step, folder="straight")
  folder = str(tmp_path / "a")
  for where, name, failing, message, step in FAILURES:
    with monkeypatch.context() as broken:
      broken.setattr(where, name, failing)
      with pytest.raises(Exception, match=message):
        train(folder="a")
    if os.path.exists(f"{folder}.renamed"):
      assert not os.path.exists(folder)
      os.rename(f"{folder}.renamed", folder)
    assert reader.find_latest_step(folder) == step, message
    if step is not None:
      assert reader.read_facts(folder, step)["owes_validation"]
  resumed, *_ = train(folder="a")
  assert runs.same_bits(resumed, straight)
  text = (tmp_path / "a" / "metrics.jsonl").read_text()
  # Strict JSON, also where a validation was not a number.
  lines = [
    json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()
  ]
  sessions = [line["session"] for line in lines if "session" in line]
  assert sessions == [*range(2, len(sessions) + 2)] and sessions
  lines = processes.read_reports(tmp_path / "a")
  for line in lines + expected:
    line.pop("images_per_second", None)
  # Step 1 was repeated after the first failure. A report that TensorBoard could
  # not get is written once more.
  assert [line for line, _ in itertools.groupby(lines[1:])] == expected
  # A finished run says so, changes nothing, and compiles nothing.
  monkeypatch.setattr(
    train_lib, "_compile", functools.partial(fail, error=FULL)
  )
  again, _, said, _ = train(folder="a", make_tracker=fail)
  assert "finished already, at step 4" in said
  assert runs.same_bits(again, straight)
  assert (tmp_path / "a" / "metrics.jsonl").read_text() == text


@pytest.fixture
def make_loop():
  """Makes a loop whose steps end with an error, if one is given."""

  def make(group, error=None, **parts):
    options = dict.fromkeys(("checkpoints", "reporter", "train_step", "key"))
    loop = loop_lib.Loop(
      types.SimpleNamespace(group=group),
      first_step=0,
      state=types.SimpleNamespace(optimizer=()),
      **options | parts,
    )
    loop._step = 1
    loop._run_steps = functools.partial(fail, error=error)
    return loop

  return make


def test_record_that_one_process_cannot_read_costs_no_report(make_loop):
  reported = []
  loop = make_loop(
    fake_group.make_groups("a", "b")[0],
    source.RecordError("record 3 has label -1"),
    reporter=types.SimpleNamespace(flush=lambda: reported.append("due")),
  )
  with pytest.raises(source.RecordError):
    loop.run_steps(None)
  assert reported == ["due"]


def test_workdir_that_is_gone_is_the_error_not_the_save_to_it(make_loop):
  waited = []

  def wait():
    waited.append("for the save")
    raise metadata.CheckpointError("cannot be written")

  reporter = types.SimpleNamespace(
    check=lambda: None, is_in_place=False, find_workdir=lambda: None
  )
  loop = make_loop(
    group_lib.alone(),
    report.WorkdirGone("is gone"),
    reporter=reporter,
    checkpoints=types.SimpleNamespace(wait=wait),
  )
  with pytest.raises(report.WorkdirGone):
    loop.run_steps(None)
  assert waited  # else its error would come when the checkpoints are closed


def test_error_without_a_text_is_raised_in_all_processes(make_loop):
  def meet(group):
    loop = make_loop(group)
    with pytest.raises(Exception) as raised:
      loop._raise_together("error", [ValueError()] if group.index else [])
    assert loop._raises_together
    return repr(raised.value)

  assert fake_group.in_all(fake_group.make_groups("a", "b"), meet) == [
    "OSError('process 1 of 2 (b): ValueError')",
    "ValueError()",
  ]


def test_checkpoint_of_one_layout_resumes_under_another(train):
  written, *_ = train(TWO_COLUMN | ONE_EPOCH)
  read, *_ = train({"layout.name": "data_parallel"})
  assert runs.same_bits(written, read)


def test_run_of_another_network_is_refused_in_words(
  train, tiny_config, tmp_path, data_dir
):
  runs.prepare(tiny_config, tmp_path, data_dir)
  with pytest.raises(ValueError, match="network.width: 0.125 in the workdir"):
    train({"network.width": 1 / 4})


def test_override_on_one_layer_reaches_the_step(tiny_config):
  tiny_config.layout.name = "two_column_data"
  tiny_config.layout.mesh.data = 4
  tiny_config.layout.fc6 = {"inputs": ("column",)}
  tiny_config.layout.fc8 = {"features": ()}
  network, layout = settings.check(tiny_config)
  assert dict(layout.mesh) == {"data": 4, "column": 2}
  fc6 = layout.placement(network.layer("fc6"))
  assert (fc6.inputs, fc6.features) == (("column",), ())
  fc8 = layout.placement(network.layer("fc8"))
  assert (fc8.batch, fc8.features) == (("data",), ())


# Out of range with the plateau schedule.
PLATEAU = [
  *of("optimizer.", drop_factor=1.0, plateau_patience=0),
  *of("optimizer.", plateau_min_change=0.0, plateau_max_drops=-1),
]


@pytest.mark.parametrize(
  ("field", "value"),
  [
    *of("", num_epochs=0.0, grad_accumulation_steps=0, label_smoothing=1.0),
    *of("", log_every_steps=0, max_to_keep=-1, keep_best=-1, seed=-1),
    *of("", keep_every_steps=0, validation_views=5, compute_dtype="half"),
    *of("", keep_every_steps=150),
    *of("data.", threads=0, batches_ahead=0, unreadable="skip"),
    *of("augment.", scale=0.0, mean=(1.0,), statistics="own", mean_from="crop"),
    *of("augment.", color_noise_until_epoch=-1.0),
    *of("augment.", color_divisor=0.0, color_noise=-1.0, scale=math.nan),
    *of("augment.", color_divisor=-1.1, color_noise=-0.1, mean=(1.0, 2.0)),
    *of("augment.", mean=(1.0, 2.0, 256.0)),
    *of("augment.", mean=(1.0, 2.0, "3")),
    *of("augment.", mean=(math.nan, 1.0, 2.0)),
    *of("optimizer.", learning_rate=-1.0, momentum=1.0, weight_decay=-0.1),
    *of("optimizer.", drop_epochs=(3.0, 1.0), drop_factor=0.0),
    *of("optimizer.", bias_lr_multiplier=-1.0, schedule="linear"),
    *of("optimizer.", warmup_epochs=2.0, trust_coefficient=0.0, ema_decay=1.0),
    *of("optimizer.", warmup_epochs=-1.0, polynomial_power=0.0, end_rate=1.5),
    *of("optimizer.", exponential_factor=0.5, exponential_steps=1),
    *PLATEAU,
  ],
)
def test_value_out_of_range_names_its_field(field, value, train, tmp_path):
  schedule = {"optimizer.schedule": "plateau"}
  fields = (schedule if (field, value) in PLATEAU else {}) | {field: value}
  with pytest.raises(ValueError, match=rf"{field} is .* Set config\.{field}\."):
    train(fields, folder="workdir")
  assert not (tmp_path / "workdir").exists()


@pytest.mark.slow
def test_run_on_a_set_in_a_bucket_is_that_on_a_folder(
  tiny_config, tmp_path, data_dir, monkeypatch
):
  expected = runs.train(tiny_config, tmp_path / "here", data_dir)
  folder = pathlib.Path(data_dir)
  with bucket.serve(folder.parent, monkeypatch):
    found = runs.train(tiny_config, tmp_path / "there", f"gs://{folder.name}")
  jax.tree.map(np.testing.assert_array_equal, found.state, expected.state)
  for one, other in zip(found.lines, expected.lines, strict=True):
    for name in ("step", "training_loss", "validation_loss"):
      assert one.get(name) == other.get(name)
