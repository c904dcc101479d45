import pathlib
import re

import jax
import numpy as np
import pytest
import rich.console

from alexnet_jax.checkpoints import checkpoint
from alexnet_jax.distributed import group as group_lib
from alexnet_jax.optim import schedules
from alexnet_jax.settings import settings
from alexnet_jax.training import report, train
from alexnet_jax.training import run as run_lib
from tests import processes


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
  return str(tmp_path_factory.mktemp("data"))


def run(config, workdir, data_dir):
  """Trains; returns the final state, the lines of metrics, what was said."""
  prepared = run_lib.prepare(
    config,
    group=group_lib.alone(),
    workdir=str(workdir),
    data_dir=data_dir,
    simulate_devices=None,
  )
  console = rich.console.Console(record=True, width=120, quiet=False)
  state = train.train(prepared, console)
  lines = processes.read_reports(pathlib.Path(workdir))
  return state, lines, console.export_text()


def same_bits(a, b):
  equal = jax.tree.map(
    lambda x, y: np.array_equal(np.asarray(x), np.asarray(y)), a, b
  )
  return all(jax.tree.leaves(equal))


def test_run_reports_validates_and_leaves_a_checkpoint(
  tiny_config, tmp_path, data_dir
):
  tiny_config.layout.name = "two_column"
  _, lines, said = run(tiny_config, tmp_path, data_dir)
  assert [line["step"] for line in lines] == [2, 4, 6, 6]
  assert lines[-1]["validation_images"] == 21
  for name in ("validation_top1_error", "validation_top5_error"):
    assert 0 <= lines[-1][name] <= 1
  np.testing.assert_allclose(
    [line["learning_rate"] for line in lines[:3]], [0.01, 0.001, 0.001]
  )
  assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
    "6"
  ]
  assert list(tmp_path.glob("events.out.tfevents.*"))
  assert "layout two_column, mesh column=2" in said
  assert "the traced step has the 7 exchanges of the plan" in said
  # Half of conv1: 6 kernels of 11 x 11 x 3 and 6 biases, float32.
  assert f"{4 * (11 * 11 * 3 * 6 + 6):,}" in said
  # All in halves, but for the ten biases of fc8.
  held, whole = re.search(r"holds ([\d,]+) of ([\d,]+) bytes", said).groups()
  held, whole = int(held.replace(",", "")), int(whole.replace(",", ""))
  assert 2 * (held - 40) == whole - 40


def test_stopped_and_restarted_run_ends_as_one_that_ran_through(
  tiny_config, tmp_path, data_dir
):
  tiny_config.layout.name = "two_column"
  straight, _, _ = run(tiny_config, tmp_path / "straight", data_dir)
  tiny_config.num_epochs = 1.0
  halfway, _, _ = run(tiny_config, tmp_path / "halves", data_dir)
  assert int(halfway.step) == 3
  tiny_config.num_epochs = 2.0
  resumed, lines, said = run(tiny_config, tmp_path / "halves", data_dir)
  assert "goes on after step 3 of 6" in said
  assert lines[-1]["step"] == 6
  assert same_bits(resumed, straight)
  assert not same_bits(halfway.parameters, straight.parameters)


@pytest.mark.slow
def test_finished_run_says_so_and_changes_nothing(
  tiny_config, tmp_path, data_dir
):
  tiny_config.num_epochs = 1.0
  first, lines, _ = run(tiny_config, tmp_path, data_dir)
  again, lines_again, said = run(tiny_config, tmp_path, data_dir)
  assert same_bits(first, again)
  assert lines == lines_again
  assert "finished already" in said


@pytest.mark.slow
def test_restarted_run_drops_where_one_that_ran_through_does(
  tiny_config, tmp_path, data_dir
):
  tiny_config.layout.name = "two_column"
  tiny_config.optimizer.schedule = "plateau"
  # Nothing is an improvement but the first: a drop with every third.
  tiny_config.optimizer.plateau_min_change = 0.9
  tiny_config.optimizer.plateau_patience = 2
  tiny_config.optimizer.ema_decay = 0.5
  tiny_config.eval_every_steps = 1
  tiny_config.log_every_steps = 1
  straight, lines, _ = run(tiny_config, tmp_path / "straight", data_dir)
  rates = [line["learning_rate"] for line in lines if "learning_rate" in line]
  np.testing.assert_allclose(rates, [0.01] * 3 + [0.001] * 2 + [0.0001])
  tiny_config.num_epochs = 1.0
  halfway, _, _ = run(tiny_config, tmp_path / "halves", data_dir)
  np.testing.assert_allclose(
    schedules.find_scale(halfway.optimizer), 0.1, rtol=1e-6
  )
  tiny_config.num_epochs = 2.0
  resumed, lines, _ = run(tiny_config, tmp_path / "halves", data_dir)
  assert lines[-2]["learning_rate"] == 0.0001
  assert same_bits(resumed, straight)


def test_checkpoint_of_one_layout_goes_on_under_another(
  tiny_config, tmp_path, data_dir
):
  tiny_config.num_epochs = 1.0
  tiny_config.layout.name = "two_column"
  written, _, _ = run(tiny_config, tmp_path, data_dir)
  tiny_config.layout.name = "data_parallel"
  read, _, _ = run(tiny_config, tmp_path, data_dir)
  assert same_bits(written, read)


def test_checkpoint_of_another_network_is_refused_in_words(
  tiny_config, tmp_path, data_dir
):
  tiny_config.num_epochs = 1.0
  run(tiny_config, tmp_path, data_dir)
  tiny_config.network.width = 1 / 4
  with pytest.raises(ValueError, match="network.width: 0.125 there, 0.25 here"):
    run(tiny_config, tmp_path, data_dir)


def test_newest_checkpoints_are_kept(tiny_config, tmp_path, data_dir):
  tiny_config.checkpoint_every_steps = 1
  tiny_config.max_to_keep = 2
  run(tiny_config, tmp_path, data_dir)
  kept = {path.name for path in (tmp_path / "checkpoints").iterdir()}
  assert kept == {"5", "6"}
  assert checkpoint.Checkpoints(str(tmp_path), keep=2).latest_step() == 6


def test_loss_that_is_not_finite_stops_and_names_the_step(tmp_path):
  console = rich.console.Console(quiet=True)
  reporter = report.Reporter(str(tmp_path), console, first_step=0, num_steps=10)
  totals = [np.array([1.0, 0, 0, 8]), np.array([np.nan, 8, 8, 8])]
  reporter.training(5, totals, learning_rate=0.1, replaced=lambda: 0)
  with pytest.raises(FloatingPointError, match="loss of step 5 is nan"):
    reporter.flush()
  reporter.close()


def test_override_on_one_layer_reaches_the_step(tiny_config):
  tiny_config.layout.name = "two_column_data"
  tiny_config.layout.mesh.data = 4
  tiny_config.layout.fc6.arrive = "sum"
  tiny_config.layout.fc8.features = ()
  layout = settings.make_layout(tiny_config)
  assert dict(layout.mesh) == {"data": 4, "column": 2}
  assert layout.placement("fc6").arrive == "sum"
  assert layout.placement("fc6").features == ("column",)
  assert layout.placement("fc8").features == ()


@pytest.mark.parametrize(
  ("field", "value"),
  [
    ("num_epochs", 0.0),
    ("grad_accumulation_steps", 0),
    ("label_smoothing", 1.0),
    ("log_every_steps", 0),
    ("max_to_keep", -1),
    ("keep_best", -1),
    ("keep_every_steps", 0),
    ("keep_every_steps", 150),
    ("data.threads", 0),
    ("data.batches_ahead", 0),
    ("data.unreadable", "skip"),
    ("augment.scale", 0.0),
    ("augment.mean", (1.0,)),
    ("augment.statistics", "own"),
    ("augment.mean_from", "crop"),
    ("augment.color_divisor", 0.0),
    ("augment.color_noise", -1.0),
    ("augment.color_noise_until_epoch", -1.0),
    ("data.stored_size", 60),
    ("optimizer.learning_rate", -1.0),
    ("optimizer.momentum", 1.0),
    ("optimizer.weight_decay", -0.1),
    ("optimizer.drop_epochs", (3.0, 1.0)),
    ("optimizer.bias_lr_multiplier", -1.0),
    ("optimizer.drop_factor", 0.0),
    ("seed", -1),
    ("validation_views", 5),
    ("compute_dtype", "half"),
  ],
)
def test_value_out_of_range_names_its_field(
  field, value, tiny_config, tmp_path, data_dir
):
  *groups, name = field.split(".")
  target = tiny_config
  for group in groups:
    target = target[group]
  target[name] = value
  workdir = tmp_path / "workdir"
  with pytest.raises(ValueError, match=f"config\\.{field}"):
    run(tiny_config, workdir, data_dir)
  assert not workdir.exists()
