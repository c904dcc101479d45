import math
import re

import numpy as np
import pytest

from alexnet_jax.checkpoints import checkpoint
from alexnet_jax.optim import schedules
from alexnet_jax.settings import settings
from tests import runs

TWO_COLUMN = {"layout.name": "two_column"}
ONE_EPOCH = {"num_epochs": 1.0}
TWO_EPOCHS = {"num_epochs": 2.0}


def of(group, **fields):
  """Returns the fields of a group with their values."""
  return [(f"{group}{name}", value) for name, value in fields.items()]


@pytest.fixture
def train(tiny_config, tmp_path, data_dir):
  """Trains `tiny_config`, with some fields changed, in a folder of tmp_path."""

  def train(fields=None, *, folder="."):
    tiny_config.update_from_flattened_dict(fields or {})
    return runs.train(tiny_config, tmp_path / folder, data_dir)

  return train


def test_run_reports_validates_and_leaves_a_checkpoint(train, tmp_path):
  _, lines, said, _ = train(TWO_COLUMN)
  assert [line["step"] for line in lines] == [2, 4, 6, 6]
  assert lines[-1]["validation_images"] == 21
  for name in ("validation_top1_error", "validation_top5_error"):
    assert 0 <= lines[-1][name] <= 1
  np.testing.assert_allclose(
    [line["learning_rate"] for line in lines[:3]], [0.01, 0.001, 0.001]
  )
  assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["6"]
  assert list(tmp_path.glob("events.out.tfevents.*"))
  assert "layout two_column, mesh column=2" in said
  assert "the traced step has the 7 exchanges of the plan" in said
  # Half of conv1: 6 kernels of 11 x 11 x 3 and 6 biases, float32.
  assert f"{4 * (11 * 11 * 3 * 6 + 6):,}" in said
  # All in halves, but for the ten biases of fc8.
  sizes = re.search(r"holds ([\d,]+) of ([\d,]+) bytes", said).groups()
  held, total = (int(size.replace(",", "")) for size in sizes)
  assert 2 * (held - 40) == total - 40


def test_stopped_and_restarted_run_ends_as_an_uninterrupted_one(train):
  straight, *_ = train(TWO_COLUMN, folder="straight")
  halfway, *_ = train(ONE_EPOCH, folder="halves")
  assert int(halfway.step) == 3
  resumed, lines, said, _ = train(TWO_EPOCHS, folder="halves")
  assert "resumes after step 3 of 6" in said
  assert lines[-1]["step"] == 6
  assert runs.same_bits(resumed, straight)
  assert not runs.same_bits(halfway.parameters, straight.parameters)


@pytest.mark.slow
def test_finished_run_says_so_and_changes_nothing(train):
  first, lines, *_ = train(ONE_EPOCH)
  again, lines_again, said, _ = train()
  assert runs.same_bits(first, again)
  assert lines == lines_again
  assert "finished already" in said


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


def test_checkpoint_of_one_layout_resumes_under_another(train):
  written, *_ = train(TWO_COLUMN | ONE_EPOCH)
  read, *_ = train({"layout.name": "data_parallel"})
  assert runs.same_bits(written, read)


def test_checkpoint_of_another_network_is_refused_in_words(train):
  train(ONE_EPOCH)
  with pytest.raises(ValueError, match="network.width: 0.125 in the workdir"):
    train({"network.width": 1 / 4})


def test_newest_checkpoints_are_kept(train, tmp_path):
  train({"checkpoint_every_steps": 1, "max_to_keep": 2})
  kept = {path.name for path in (tmp_path / "checkpoints").iterdir()}
  assert kept == {"5", "6"}
  assert checkpoint.Checkpoints(str(tmp_path), keep=2).latest_step() == 6


def test_override_on_one_layer_reaches_the_step(tiny_config):
  tiny_config.layout.name = "two_column_data"
  tiny_config.layout.mesh.data = 4
  tiny_config.layout.fc6.arrive = "sum"
  tiny_config.layout.fc8.features = ()
  layout = settings.make_layout(tiny_config)
  assert dict(layout.mesh) == {"data": 4, "column": 2}
  fc6 = layout.placement("fc6")
  assert (fc6.arrive, fc6.features) == ("sum", ("column",))
  assert layout.placement("fc8").features == ()


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
    *of("optimizer.", conv1_rates=(67.0, 1e-5)),
    *of("optimizer.", conv1_rates=((72.0, 1e-5), (67.0, 0.0))),
    *of("optimizer.", conv1_rates=((67.0, -1e-5),)),
    *PLATEAU,
  ],
)
def test_value_out_of_range_names_its_field(field, value, train, tmp_path):
  schedule = {"optimizer.schedule": "plateau"}
  fields = (schedule if (field, value) in PLATEAU else {}) | {field: value}
  with pytest.raises(ValueError, match=rf"{field} is .* Set config\.{field}\."):
    train(fields, folder="workdir")
  assert not (tmp_path / "workdir").exists()
