"""Every member of an ensemble is the single run of its seed."""

import io
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
import rich.console

from alexnet_jax.checkpoints import checkpoint, members, reader
from alexnet_jax.checkpoints import workdir as workdir_lib
from alexnet_jax.distributed import group as group_lib
from alexnet_jax.partition import catalog
from alexnet_jax.partition import ensemble as ensemble_lib
from alexnet_jax.program import compiled_step
from alexnet_jax.settings import settings
from alexnet_jax.training import report, train, trained_run
from alexnet_jax.training import run as run_lib
from tests import build, fake_group, processes

SEED = 3


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
  return str(tmp_path_factory.mktemp("data"))


def prepare(config, workdir, data_dir):
  return run_lib.prepare(
    config,
    group=group_lib.alone(),
    workdir=str(workdir),
    data_dir=data_dir,
    simulate_devices=None,
  )


def run(config, workdir, data_dir):
  """Trains; the run, its final state, the lines of metrics, what was said."""
  prepared = prepare(config, workdir, data_dir)
  console = rich.console.Console(record=True, width=120, file=io.StringIO())
  state = train.train(prepared, console)
  lines = processes.read_reports(pathlib.Path(workdir))
  return prepared, state, lines, console.export_text()


def same_bits(a, b) -> bool:
  equal = jax.tree.map(
    lambda x, y: np.array_equal(np.asarray(x), np.asarray(y)), a, b
  )
  return all(jax.tree.leaves(equal))


def find_distance(a, b) -> float:
  """The largest relative difference of two arrays of a state."""

  def distance(x, y):
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    return np.linalg.norm(x - y) / max(np.linalg.norm(y), 1e-30)

  return max(jax.tree.leaves(jax.tree.map(distance, a, b)))


@pytest.fixture(scope="module")
def two_members(tiny_network, tiny_augmentation):
  return build.make_program(
    tiny_network, catalog.TWO_COLUMN, tiny_augmentation, batch_size=8, members=2
  )


def test_members_start_with_the_bits_of_single_runs(
  two_members, tiny_network, tiny_augmentation
):
  init_key, _ = two_members.make_keys(SEED)
  state = two_members.init(init_key)
  kernel = state.parameters["conv3"]["kernel"]
  assert kernel.sharding.shard_shape(kernel.shape) == (1, 3, 3, 32, 24)
  single = build.make_program(
    tiny_network, catalog.TWO_COLUMN, tiny_augmentation, batch_size=8
  )
  for index, member in enumerate(two_members.members):
    init_key, _ = single.make_keys(SEED + index)
    mine = ensemble_lib.take(state, member.abstract_state)
    assert same_bits(mine, single.init(init_key))
  taken = [
    ensemble_lib.take(state, member.abstract_state)
    for member in two_members.members
  ]
  assert same_bits(ensemble_lib.join(taken, two_members.abstract_state), state)


@pytest.mark.slow
def test_members_draw_the_bits_of_single_runs(two_members, tiny_augmentation):
  specs = two_members.specs

  def draw(key, labels, *, images_spec, mask_spec):
    mask = jax.random.bernoulli(key, 0.5, (8, 512), out_sharding=mask_spec)
    drawn = tiny_augmentation.draw(key, len(labels), spec=images_spec)
    return drawn | {"mask": mask}

  def draw_split(key, labels):
    return draw(
      key, labels, images_spec=specs.images, mask_spec=specs.masks["fc6"]
    )

  labels = jax.device_put(np.zeros(8, np.int32), two_members.batch_shardings[1])
  result = dict.fromkeys(("offset", "flip", "color"), specs.images)
  of_each = two_members.ensemble.each(
    draw_split,
    two_members.mesh,
    own=(specs.whole,),
    shared=(specs.labels,),
    result=result | {"mask": specs.masks["fc6"]},
  )
  _, keys = two_members.make_keys(SEED)
  with jax.set_mesh(two_members.mesh):
    found = jax.tree.map(np.asarray, of_each(keys, labels))
  for member in range(2):
    _, key = jax.random.split(jax.random.key(SEED + member))
    alone = draw(key, labels, images_spec=None, mask_spec=None)
    for name, drawn in alone.items():
      # The bits are the same; what the normal distribution makes of them may
      # be rounded otherwise in a program of another shape.
      rtol = 1e-6 if name == "color" else 0
      np.testing.assert_allclose(
        found[name][member], drawn, rtol=rtol, err_msg=name
      )
  assert not np.array_equal(found["mask"][0], found["mask"][1])


@pytest.mark.slow
def test_members_on_one_device_each_train_as_single_runs(
  program, tiny_network, tiny_augmentation, tiny_batch
):
  layout = catalog.ONE_DEVICE
  parts = build.make_program(
    tiny_network, layout, tiny_augmentation, batch_size=8, members=2
  )
  compiled, found = compiled_step.compile_step(parts)
  single, _, single_step = program(layout)
  assert found.agrees and parts.plan == single.plan
  assert sorted(found.compiled) == sorted(found.plan)
  init_key, key = parts.make_keys(SEED)
  state = parts.init(init_key)
  images, labels = build.put(parts, tiny_batch)
  # One copy for each group of devices, and none for each member besides.
  assert images.shape == (8, 72, 72, 3)
  for _ in range(3):
    state, totals = compiled(state, key, images, labels)
  for index, member in enumerate(parts.members):
    init_key, key = single.make_keys(SEED + index)
    expected = single.init(init_key)
    batch = build.put(single, tiny_batch)
    for _ in range(3):
      expected, expected_totals = single_step(expected, key, *batch)
    # Rounding of sums that are compiled otherwise, through three steps.
    mine = ensemble_lib.take(state, member.abstract_state)
    assert find_distance(mine, expected) <= 1e-5
    np.testing.assert_allclose(
      np.asarray(totals)[index], np.asarray(expected_totals), rtol=1e-5
    )


@pytest.mark.slow
def test_ensemble_goes_on_and_so_does_each_member_alone(
  tiny_config, tmp_path, data_dir
):
  tiny_config.seed = SEED
  tiny_config.ensemble = 2
  tiny_config.layout.name = "two_column"
  tiny_config.checkpoint_every_steps = 1
  tiny_config.max_to_keep = 10
  both = tmp_path / "both"
  _, straight, lines, said = run(tiny_config, both, data_dir)
  assert "2 members of an ensemble at once, with seeds 3 to 4" in said
  # As many as one member has: nothing more is sent.
  assert "the traced step has the 7 exchanges of the plan and no others" in said
  assert "validation mean of 2 members: loss" in said
  # A kill leaves some members ahead; the newest step of all is 2.
  for member, first_lost in enumerate((4, 3)):
    for step in range(first_lost, 7):
      shutil.rmtree(both / f"member_{member}" / "checkpoints" / str(step))
  resumed, state, _, said = run(tiny_config, both, data_dir)
  assert "goes on after step 2 of 6" in said
  assert same_bits(state, straight)

  tiny_config.ensemble = 1
  tiny_config.seed = SEED + 1
  tiny_config.data.seed = SEED
  alone, expected, lines_alone, _ = run(tiny_config, tmp_path / "one", data_dir)
  mine = ensemble_lib.take(state, resumed.program.members[1].abstract_state)
  assert find_distance(mine, expected) <= 1e-5  # as above, through six steps
  for name in ("loss", "top1_error", "top5_error"):
    np.testing.assert_allclose(
      lines[-1][f"validation_member_{name}"][1],
      lines_alone[-1][f"validation_{name}"],
      rtol=1e-5,
    )
  # The folder of the member is that of the single run, and goes on as such.
  prepare(tiny_config, both / "member_1", data_dir)
  single = checkpoint.Checkpoints(str(both / "member_1"), keep=10)
  assert single.latest_step() == 6
  assert same_bits(single.restore(alone.program.abstract_state), mine)
  single.close()


def test_members_have_the_configs_of_single_runs(tiny_config, tmp_path):
  tiny_config.ensemble = 2
  tiny_config.seed = SEED
  fields = tiny_config.to_dict()
  workdir_lib.acquire(str(tmp_path), fields, {})
  kept = workdir_lib.read(str(tmp_path))
  assert kept["ensemble"] == 2 and kept["data.seed"] is None
  for member in range(2):
    kept = workdir_lib.read(str(tmp_path / f"member_{member}"))
    names = ("ensemble", "seed", "data.seed")
    assert [kept[name] for name in names] == [1, SEED + member, SEED]
  # The same run where the order has no seed of its own; and another one.
  tiny_config.ensemble = 1
  workdir_lib.acquire(str(tmp_path / "member_0"), tiny_config.to_dict(), {})
  tiny_config.seed = SEED + 1
  with pytest.raises(ValueError, match="data.seed: 3 there, 4 here"):
    workdir_lib.acquire(str(tmp_path / "member_1"), tiny_config.to_dict(), {})


def test_run_older_than_ensembles_goes_on(tiny_config, tmp_path):
  fields = workdir_lib.to_fields(tiny_config.to_dict(), {})
  older = {
    name: value
    for name, value in fields.items()
    if name not in ("ensemble", "data.seed")
  }
  workdir_lib.check_same(str(tmp_path), older, fields)
  with pytest.raises(ValueError, match="ensemble: 1 there, 2 here"):
    workdir_lib.check_same(str(tmp_path), older, fields | {"ensemble": 2})


def test_reports_show_the_mean_and_each_member(tmp_path):
  console = rich.console.Console(record=True, width=120, file=io.StringIO())
  reporter = report.Reporter(str(tmp_path), console, first_step=0, num_steps=4)
  totals = np.array([[8.0, 4, 2, 8], [24.0, 8, 4, 8]], np.float32)
  reporter.training(2, [totals] * 2, learning_rate=0.1, replaced=lambda: 0)
  reporter.flush()
  reporter.validation(2, totals, lambda: 0)
  bad = np.where(np.arange(2)[:, None] == 1, np.nan, totals)
  reporter.training(4, [totals, bad], learning_rate=0.1, replaced=lambda: 0)
  with pytest.raises(FloatingPointError, match="member 1 of step 4 is nan"):
    reporter.flush()
  reporter.close()
  text = (tmp_path / "metrics.jsonl").read_text()
  training, validated = map(json.loads, text.splitlines())
  assert training["training_loss"] == 2.0
  assert training["training_member_loss"] == [1.0, 3.0]
  assert validated["validation_images"] == 8
  assert validated["validation_top1_error"] == 0.75
  assert validated["validation_member_top1_error"] == [0.5, 1.0]
  said = console.export_text()
  assert "mean of 2 members: loss 2, top-1 error 75.00%" in said
  assert "top-1 error of each member: 50.00%, 100.00%" in said


def test_what_an_ensemble_cannot_be_is_refused(tiny_config, tmp_path):
  tiny_config.ensemble = 0
  with pytest.raises(ValueError, match=r"config\.ensemble"):
    settings.check(tiny_config)
  tiny_config.ensemble, tiny_config.seed = 2, 2**32 - 1
  with pytest.raises(ValueError, match="has seed 4294967296"):
    settings.check(tiny_config)
  tiny_config.seed, tiny_config.data.seed = 0, -1
  with pytest.raises(ValueError, match=r"config\.data\.seed"):
    settings.check(tiny_config)
  tiny_config.data.seed = None
  with pytest.raises(ValueError, match=r"compare .* Set config\.ensemble"):
    settings.check_single(tiny_config, command="compare")
  with tiny_config.unlocked():
    tiny_config.layout.mesh[ensemble_lib.AXIS] = 2
  with pytest.raises(ValueError, match="an axis 'ensemble'"):
    settings.check(tiny_config)
  with pytest.raises(ValueError, match=r"Set config\.ensemble or"):
    ensemble_lib.make_mesh(catalog.ONE_DEVICE, ensemble_lib.Ensemble(9))


def test_ensemble_of_several_processes_is_refused(tiny_config, tmp_path):
  tiny_config.ensemble = 2
  group, _ = fake_group.make_groups("a", "b")
  with pytest.raises(ValueError, match=r"2 processes.* Set config\.ensemble=1"):
    run_lib.prepare(
      tiny_config,
      group=group,
      workdir=str(tmp_path / "workdir"),
      data_dir=None,
      simulate_devices=None,
    )
  assert not (tmp_path / "workdir").exists()


def test_members_without_a_common_step_are_not_started_again(
  two_members, tmp_path
):
  for member, step in enumerate((2, 4)):
    folder = members.find_folder(str(tmp_path), member)
    one = members.open_checkpoints(folder, two_members.members[member], keep=1)
    one.save(step, _zeros(two_members.members[member]))
    one.close()
  of_both = members.open_checkpoints(str(tmp_path), two_members, keep=1)
  with pytest.raises(OSError, match="no checkpoint of one step"):
    of_both.latest_step()
  of_both.close()


def test_members_go_on_from_the_newest_sound_step_of_all(two_members, tmp_path):
  program = two_members
  both = members.open_checkpoints(str(tmp_path), program, keep=3, best=1)
  zeros = [_zeros(member) for member in program.members]
  state = ensemble_lib.join(zeros, program.abstract_state)
  for step in (2, 4):
    both.save(step, state, {"validation_error": [0.5, step / 10]})
  saved = both.close()
  assert [one.step for one in saved] == [2, 4]
  folders = [members.find_folder(str(tmp_path), one) for one in range(2)]
  # As a kill between the two saves leaves them; and a sound one that is not.
  first = checkpoint.Checkpoints(folders[0], keep=3)
  assert first.facts(4) == {"validation_error": 0.5}
  first.save(6, zeros[0])
  first.close()
  assert trained_run.find_common_steps([str(tmp_path)]) == dict.fromkeys(
    folders, 4
  )
  (pathlib.Path(folders[1]) / "checkpoints/4/_CHECKPOINT_METADATA").unlink()
  both = members.open_checkpoints(str(tmp_path), program, keep=3, best=1)
  said = []
  step, _ = both.resume(program.abstract_state, said.append)
  both.close()
  assert step == 2
  assert "member_1/checkpoints/4' is damaged: it has no" in said[0]
  places = [pathlib.Path(folder) / "checkpoints" for folder in folders]
  assert [line.split(":")[0] for line in said[1:]] == [
    f"the checkpoint of step {other} in {folders[0]} is now "
    f"'{places[0]}/later-{other}'"
    for other in (4, 6)
  ]
  # Nothing is deleted: the sound ones of single members are still theirs.
  names = [{path.name for path in place.iterdir()} for place in places]
  assert names == [{"2", "later-4", "later-6"}, {"2", "broken-4"}]
  (places[0] / "later-6").rename(places[0] / "6")
  restored = reader.load(folders[0], 6, zeros[0])
  assert same_bits(restored, zeros[0])


def test_members_start_again_after_a_kill_during_their_first_save(
  two_members, tmp_path
):
  zeros = [_zeros(member) for member in two_members.members]
  state = ensemble_lib.join(zeros, two_members.abstract_state)
  # Twice: which member is the first to be on disk is chance.
  for member in range(2):
    folder = members.find_folder(str(tmp_path), member)
    first = checkpoint.Checkpoints(folder, keep=2)
    first.save(2, zeros[member])
    first.close()
    both = members.open_checkpoints(str(tmp_path), two_members, keep=2)
    assert both.latest_step() is None
    said = []
    assert both.resume(two_members.abstract_state, said.append) is None
    (line,) = said
    assert f"step 2 in {folder} is now '{folder}/checkpoints/later-2'" in line
    if member == 0:
      both.close()
  both.save(2, state)
  both.close()
  assert both.latest_step() == 2
  # A member that had some is not one of a first save.
  second = tmp_path / "member_1" / "checkpoints"
  (second / "2").rename(second / "broken-2")
  with pytest.raises(OSError, match=r"newest are 2, None"):
    both.latest_step()


def test_save_of_a_member_begins_when_the_last_one_of_all_has_ended(
  two_members, tmp_path, monkeypatch
):
  events = []

  class OfMember:
    def __init__(self, folder, **_):
      self._member = folder[-1]

    def finish(self):
      events.append(f"end {self._member}")

    def save(self, step, state, facts):
      events.append(f"begin {self._member}")

  monkeypatch.setattr(checkpoint, "Checkpoints", OfMember)
  both = members.open_checkpoints(str(tmp_path), two_members, keep=2)
  zeros = [_zeros(member) for member in two_members.members]
  both.save(2, ensemble_lib.join(zeros, two_members.abstract_state))
  assert events == ["end 0", "end 1", "begin 0", "begin 1"]


def _zeros(program):
  return jax.tree.map(
    lambda leaf: jax.device_put(
      np.zeros(leaf.shape, leaf.dtype), leaf.sharding
    ),
    program.abstract_state,
  )
