"""The command that predicts pictures, as a person meets it."""

import json
import re
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

import alexnet_jax
from alexnet_jax.network import catalog as wirings
from tests import processes, small_sets, stored_run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """The workdir of a run."""
  path = tmp_path_factory.mktemp("runs") / "a run"
  stored_run.write(path, stored_run.make_config(wirings.FOUR_LAYER))
  return path


@pytest.fixture
def photos(tmp_path):
  """A folder of three pictures, of which one cannot be read."""
  folder = tmp_path / "meine Fotos, größere"
  folder.mkdir()
  for number, image in enumerate(small_sets.tiles(2, side=90)):
    Image.fromarray(image).save(folder / f"{number}.png")
  (folder / "page.jpg").write_bytes(b"<html>please log in</html>")
  return folder


def test_pictures_that_can_be_read_are_predicted(run, photos, tmp_path):
  file = tmp_path / "found.json"
  ended = processes.run(
    [
      *("python", "-m", "alexnet_jax.predict", f"--workdir={run}"),
      *(photos / "1.png", photos, "--top=3", f"--json={file}"),
      "--layout=data_parallel",
    ],
    tmp_path / "cache",
    variables={"JAX_PLATFORMS": "cpu"},
  )
  assert ended.code == 1
  assert re.fullmatch(r"error: '.*page\.jpg' .*\n", ended.errors)
  found = json.loads(file.read_text())
  names = [str(photos / name) for name in ("1.png", "0.png", "1.png")]
  assert [one["name"] for one in found["pictures"]] == names
  assert len(found["problems"]) == 1
  probabilities = alexnet_jax.load(run).probabilities(names)
  for one, row in zip(found["pictures"], probabilities, strict=True):
    falling = np.argsort(-row)[:3]
    classes = [stored_run.CLASSES[label] for label in falling]
    assert [each["class"] for each in one["classes"]] == classes
    # Another layout adds up in another order, in float32.
    np.testing.assert_allclose(
      [each["probability"] for each in one["classes"]], row[falling], atol=1e-6
    )
  heading, *table = ended.out.splitlines()
  assert heading.startswith(f"<run '{run}', step 3: own_four_layer, 67 pixels")
  assert table[-1] == f"the predictions are in {file}"
  shown = [line for line in table if re.search(r"class \d", line)]
  assert len(shown) == 9
  assert f"{probabilities[0].max():.2%}".replace("%", " %") in shown[0]


def make_huge(state):
  return state._replace(
    parameters=jax.tree.map(lambda x: x + 1e38, state.parameters)
  )


def test_what_is_wrong_is_said_in_one_line(run, photos, tmp_path):
  workdir, picture = f"--workdir={run}", str(photos / "0.png")
  config = stored_run.make_config(wirings.FOUR_LAYER)
  overflowing = tmp_path / "overflowing"
  stored_run.write(overflowing, config, change=make_huge)
  damaged = tmp_path / "damaged"
  shutil.copytree(run, damaged)
  files = (damaged / "checkpoints/3/state").rglob("*")
  max(files, key=lambda file: file.stat().st_size).write_bytes(b"")
  cases = {
    "no picture is given, expected files or folders": [workdir],
    "page.jpg' ": [workdir, str(photos / "page.jpg")],
    "there is no run in the workdir '.*'.* Set --workdir": [
      *(f"--workdir={tmp_path}", picture),
    ],
    "no checkpoint of step 9, but of 3. Set --checkpoint_step": [
      *(workdir, picture, "--checkpoint_step=9"),
    ],
    "unknown layout 'many'.* Set --layout": [workdir, picture, "--layout=many"],
    "does not end in .json. Set --json": [workdir, picture, "--json=a.txt"],
    "--top": [workdir, picture, "--top=0"],
    # Not --mesh or --batch_size, which other commands have.
    "do not divide. To evaluate it, set --layout.": [
      *(workdir, picture, "--layout=two_column_sharded"),
    ],
    "is not finite. Set --checkpoint_step to that of another checkpoint.": [
      *(f"--workdir={overflowing}", picture),
    ],
    "damaged: .* No earlier one is intact. Set --workdir to another run.": [
      *(f"--workdir={damaged}", picture),
    ],
  }
  listed = []
  for number, arguments in enumerate(cases.values()):
    folder = tmp_path / f"case {number}"
    folder.mkdir()
    listed.append(("predict", arguments, folder))
  ended = processes.run_forked(listed, tmp_path)
  for expected, one in zip(cases, ended, strict=True):
    assert (one.code, one.out) == (1, "")
    assert re.fullmatch(f"error: .*{expected}.*\n", one.errors), one.errors
