"""Every member of an ensemble equals the single run of its seed."""

import functools
import io
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
import rich.console

from alexnet_jax.checkpoints import checkpoint, members, metadata, reader
from alexnet_jax.checkpoints import workdir as workdir_lib
from alexnet_jax.partition import catalog
from alexnet_jax.partition import ensemble as ensemble_lib
from alexnet_jax.program import compiled_step
from alexnet_jax.settings import settings
from alexnet_jax.training import report
from tests import build, fake_group, runs, short_network

SEED = 3


def find_distance(a, b) -> float:
  """The largest relative difference of two arrays of a state."""

  def distance(x, y):
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    return np.linalg.norm(x - y) / max(np.linalg.norm(y), 1e-30)

  return max(jax.tree.leaves(jax.tree.map(distance, a, b)))


def make_short_program(**options):
  """Makes a program of two columns that compiles fast."""
  parts = build.SHORT_NETWORK, build.SHORT_AUGMENTATION
  return build.make_program(catalog.TWO_COLUMN, *parts, **options)


@pytest.fixture(scope="module")
def two_members():
  return make_short_program(members=2)


def test_members_start_with_the_bits_of_single_runs(two_members):
  init_key, _ = two_members.make_keys(SEED)
  state = two_members.init(init_key)
  kernel = state.parameters["conv2"]["kernel"]
  assert kernel.sharding.shard_shape(kernel.shape) == (1, 5, 5, 6, 16)
  single = make_short_program()
  taken = [
    ensemble_lib.take_member(state, member.abstract_state)
    for member in two_members.members
  ]
  for index, mine in enumerate(taken):
    init_key, _ = single.make_keys(SEED + index)
    assert runs.same_bits(mine, single.init(init_key))
  assert runs.same_bits(
    ensemble_lib.stack_members(taken, two_members.abstract_state), state
  )


@pytest.mark.slow
def test_members_draw_the_bits_of_single_runs(tiny_augmentation):
  two_members = build.make_program(catalog.TWO_COLUMN, members=2)
  specs = two_members.specs

  def draw(key, labels, *, images_spec=None, mask_spec=None):
    mask = jax.random.bernoulli(key, 0.5, (8, 512), out_sharding=mask_spec)
    drawn = tiny_augmentation.draw(key, len(labels), spec=images_spec)
    return drawn | {"mask": mask}

  labels = jax.device_put(np.zeros(8, np.int32), two_members.batch_shardings[1])
  result = dict.fromkeys(("offset", "flip", "color"), specs.images)
  of_each = two_members.ensemble.map_members(
    functools.partial(
      draw, images_spec=specs.images, mask_spec=specs.masks["fc6"]
    ),
    two_members.mesh,
    own=(specs.replicated,),
    shared=(specs.labels,),
    result=result | {"mask": specs.masks["fc6"]},
  )
  _, keys = two_members.make_keys(SEED)
  with jax.set_mesh(two_members.mesh):
    found = jax.tree.map(np.asarray, of_each(keys, labels))
  for member in range(2):
    _, key = jax.random.split(jax.random.key(SEED + member))
    for name, drawn in draw(key, labels).items():
      # The bits are the same; what the normal distribution makes of them may
      # be rounded otherwise in a program of another shape.
      rtol = 1e-6 if name == "color" else 0
      np.testing.assert_allclose(
        found[name][member], drawn, rtol=rtol, err_msg=name
      )
  assert not np.array_equal(found["mask"][0], found["mask"][1])


@pytest.mark.slow
def test_members_on_one_device_each_train_as_single_runs(program, tiny_batch):
  parts = build.make_program(
    catalog.ONE_DEVICE, members=2, compute_dtype="float64"
  )
  compiled, found = compiled_step.compile_step(parts)
  single, _, single_step = program(catalog.ONE_DEVICE, "float64")
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
    mine = ensemble_lib.take_member(state, member.abstract_state)
    assert find_distance(mine, expected) <= 1e-8
    np.testing.assert_allclose(
      np.asarray(totals)[index], np.asarray(expected_totals), rtol=1e-8
    )


@pytest.mark.slow
def test_ensemble_resumes_and_so_does_each_member_alone(
  tiny_config, tmp_path, data_dir
):
  tiny_config.update_from_flattened_dict(
    {"seed": SEED, "ensemble": 2, "layout.name": "two_column"}
    | {"checkpoint_every_steps": 1, "max_to_keep": 10}
  )
  short_network.shorten(tiny_config)
  tiny_config.network.width = 1 / 8
  both = tmp_path / "both"
  straight, lines, said, _ = runs.train(tiny_config, both, data_dir)
  assert "2 members of an ensemble at once, with seeds 3 to 4" in said
  # As many as one member has: nothing more is sent.
  assert "the traced step has the 5 exchanges of the plan and no others" in said
  assert "validation mean of 2 members: loss" in said
  # A kill leaves some members ahead; the newest step of all is 2.
  for member, first_lost in enumerate((4, 3)):
    for step in range(first_lost, 7):
      shutil.rmtree(both / f"member_{member}" / "checkpoints" / str(step))
  state, _, said, resumed = runs.train(tiny_config, both, data_dir)
  assert "resumes after step 2 of 6" in said
  assert runs.same_bits(state, straight)

  tiny_config.ensemble, tiny_config.data.seed = 1, SEED
  tiny_config.seed = SEED + 1
  expected, lines_alone, _, alone = runs.train(
    tiny_config, tmp_path / "one", data_dir
  )
  mine = ensemble_lib.take_member(
    state, resumed.program.members[1].abstract_state
  )
  assert find_distance(mine, expected) <= 1e-5  # as above, through six steps
  for name in ("loss", "top1_error", "top5_error"):
    np.testing.assert_allclose(
      lines[-1][f"validation_member_{name}"][1],
      lines_alone[-1][f"validation_{name}"],
      rtol=1e-5,
    )
  # The folder of a member is a workdir, which can be resumed alone.
  runs.prepare(tiny_config, both / "member_1", data_dir)
  single = checkpoint.Checkpoints(str(both / "member_1"), keep=10)
  assert single.latest_step() == 6
  assert runs.same_bits(single.restore(alone.program.abstract_state), mine)
  single.close()


def test_members_have_the_configs_of_single_runs(tiny_config, tmp_path):
  def acquire(workdir):
    members.acquire(str(workdir), tiny_config.to_dict(), {}, may_change=())

  tiny_config.ensemble, tiny_config.seed = 2, SEED
  acquire(tmp_path)
  kept = workdir_lib.read_config(str(tmp_path))
  assert kept["ensemble"] == 2 and kept["data.seed"] is None
  for member in range(2):
    kept = workdir_lib.read_config(str(tmp_path / f"member_{member}"))
    names = ("ensemble", "seed", "data.seed")
    assert [kept[name] for name in names] == [1, SEED + member, SEED]
  # The same run where the order has no seed of its own; and another one.
  tiny_config.ensemble = 1
  acquire(tmp_path / "member_0")
  tiny_config.seed = SEED + 1
  with pytest.raises(ValueError, match="data.seed: 3 in the workdir, 4 now"):
    acquire(tmp_path / "member_1")


def test_workdir_of_an_ensemble_stands_for_its_members(tmp_path):
  workdir = tmp_path / "w"
  folders = [str(workdir / f"member_{number}") for number in range(11)]
  single = str(tmp_path / "single")
  for path in (single, *folders):
    (pathlib.Path(path) / "checkpoints" / "3").mkdir(parents=True)
  (workdir / "member_x").mkdir()
  assert members.find_workdirs([single, str(workdir)]) == [single, *folders]
  assert members.find_workdirs([folders[3]]) == [folders[3]]
  with pytest.raises(ValueError, match="member_3' is given twice"):
    members.find_workdirs([str(workdir), folders[3]])
  (workdir / "member_3").rename(workdir / "gone")
  with pytest.raises(ValueError, match="10 members .* not member_3"):
    members.find_workdirs([str(workdir)])


def test_reports_show_the_mean_and_each_member(tmp_path):
  console = rich.console.Console(record=True, width=120, file=io.StringIO())
  reporter = report.Reporter(
    *(str(tmp_path), console),
    first_step=0,
    num_steps=4,
    batch_size=8,
    num_images=16,
    run_name="member",
  )
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


def test_what_an_ensemble_cannot_be_is_refused(tiny_config):
  for ensemble, seed, data_seed, message in (
    (0, 0, None, r"config\.ensemble"),
    (2, 2**32 - 1, None, "has seed 4294967296"),
    (2, 0, -1, r"config\.data\.seed"),
  ):
    tiny_config.ensemble, tiny_config.seed = ensemble, seed
    tiny_config.data.seed = data_seed
    with pytest.raises(ValueError, match=message):
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
    runs.prepare(tiny_config, tmp_path / "workdir", tmp_path, group=group)
  assert not (tmp_path / "workdir").exists()


@pytest.fixture(scope="module")
def zeros(two_members):
  """The states of both members and of both together, all zeros."""
  of_each = [
    jax.tree.map(
      lambda leaf: jax.device_put(
        np.zeros(leaf.shape, leaf.dtype), leaf.sharding
      ),
      member.abstract_state,
    )
    for member in two_members.members
  ]
  together = ensemble_lib.stack_members(of_each, two_members.abstract_state)
  return *of_each, together


def test_members_without_a_common_step_are_not_started_again(
  two_members, zeros, tmp_path
):
  for member, step in enumerate((2, 4)):
    folder = members.find_folder(str(tmp_path), member)
    one = members.open_checkpoints(folder, two_members.members[member], keep=1)
    one.save(step, zeros[member])
    one.close()
  of_both = members.open_checkpoints(str(tmp_path), two_members, keep=1)
  with pytest.raises(OSError, match="no checkpoint of one step"):
    of_both.latest_step()
  of_both.close()


def test_members_resume_from_the_newest_intact_step_of_all(
  two_members, zeros, tmp_path
):
  both = members.open_checkpoints(str(tmp_path), two_members, keep=3, best=1)
  for step in (2, 4):
    both.save(step, zeros[-1], {"validation_error": [0.5, step / 10]})
  saved = both.close()
  assert [one.step for one in saved] == [2, 4]
  folders = [members.find_folder(str(tmp_path), one) for one in range(2)]
  # As after a kill between two saves; and one checkpoint is damaged.
  first = checkpoint.Checkpoints(folders[0], keep=3)
  assert first.facts(4) == {"validation_error": 0.5}
  first.save(6, zeros[0])
  first.close()
  assert members.find_common_steps([str(tmp_path)]) == dict.fromkeys(folders, 4)
  (pathlib.Path(folders[1]) / "checkpoints/4/_CHECKPOINT_METADATA").unlink()
  both = members.open_checkpoints(str(tmp_path), two_members, keep=3, best=1)
  said = []
  step, _ = both.resume(two_members.abstract_state, said.append)
  both.close()
  assert step == 2
  assert "member_1/checkpoints/4' is damaged: it has no" in said[0]
  places = [pathlib.Path(folder) / "checkpoints" for folder in folders]
  assert [line.split(":")[0] for line in said[1:]] == [
    f"the checkpoint of step {other} in {folders[0]} is now "
    f"'{places[0]}/later-{other}'"
    for other in (4, 6)
  ]
  # Nothing is deleted: a member keeps its intact ones.
  names = [{path.name for path in place.iterdir()} for place in places]
  assert names == [{"2", "later-4", "later-6"}, {"2", "broken-4"}]
  (places[0] / "later-6").rename(places[0] / "6")
  restored = reader.load(folders[0], 6, zeros[0])
  assert runs.same_bits(restored, zeros[0])


def test_members_start_again_after_a_kill_during_their_first_save(
  two_members, zeros, tmp_path
):
  # Each member can be the first whose checkpoint is on disk.
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
  both.save(2, zeros[-1])
  both.close()
  assert both.latest_step() == 2
  # A member that had a checkpoint is not in its first save.
  second = tmp_path / "member_1" / "checkpoints"
  (second / "2").rename(second / "broken-2")
  with pytest.raises(OSError, match=r"newest are 2, None"):
    both.latest_step()


def test_saves_of_all_members_end_before_the_next_begins(
  two_members, zeros, tmp_path, monkeypatch
):
  events, failing = [], set()

  class OfMember:
    def __init__(self, folder, **_):
      self._member = folder[-1]

    def wait(self):
      events.append(f"end {self._member}")
      if self._member in failing:
        raise metadata.CheckpointError("cannot be written")

    def save(self, step, state, facts):
      events.append(f"begin {self._member}")

  monkeypatch.setattr(checkpoint, "Checkpoints", OfMember)
  both = members.open_checkpoints(str(tmp_path), two_members, keep=2)
  both.save(2, zeros[-1])
  assert events == ["end 0", "end 1", "begin 0", "begin 1"]
  # So do those of the others where one fails.
  events.clear()
  failing.add("0")
  with pytest.raises(metadata.CheckpointError, match="cannot be written"):
    both.wait()
  assert events == ["end 0", "end 1"]
