"""The command that draws the curves of runs."""

import csv
import json
import re

import numpy as np
import pytest

from alexnet_jax.figures import curves as curves_lib
from alexnet_jax.figures import runs
from tests import processes, reported_run

RATES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5)


@pytest.fixture
def sweep(tmp_path):
  """Ten runs that differ in one field, and a folder that is no run."""
  for number, rate in enumerate(RATES):
    # Folders in another order than the rates.
    name = str((7 * number) % 10)
    reported_run.write(
      tmp_path / "sweep" / name, **{"optimizer.learning_rate": rate, "seed": 3}
    )
  (tmp_path / "sweep" / "notes").mkdir()
  return tmp_path / "sweep"


def read_sorted(folder):
  workdirs, _ = runs.find_workdirs([f"{folder}/*"])
  return runs.sort([runs.read(workdir) for workdir in workdirs])


def test_workdirs_are_named_by_paths_patterns_and_lists(sweep, tmp_path):
  reported_run.write(tmp_path / "a,b")
  for given, expected in (
    ([f"{sweep}/2,{sweep}/1"], [sweep / "2", sweep / "1"]),
    ([f"{sweep}/2", f"{sweep}/[12],{sweep}/3"], [sweep / n for n in "213"]),
    ([f"{tmp_path}/a,b"], [tmp_path / "a,b"]),
    ([f"{tmp_path}/a,*"], [tmp_path / "a,b"]),
  ):
    found, others = runs.find_workdirs(given)
    assert (found, others) == (list(map(str, expected)), [])
  with pytest.raises(ValueError, match="no run in '.*/no'.* Set --workdir"):
    runs.find_workdirs([f"{sweep}/1,{tmp_path}/no"])


def test_legend_of_a_sweep_names_only_what_differs(sweep):
  found = read_sorted(sweep)
  legend = runs.make_legend(found)
  assert legend.title == "optimizer.learning_rate"
  assert list(legend.labels) == list(map(str, RATES))
  figure = curves_lib.to_figure(
    *(found, legend),
    axis="epoch",
    panels=[["validation_top1_error"], ["training_loss"]],
    smoothing=0.0,
  )
  (drawn,) = figure.legends
  assert drawn.get_title().get_text() == legend.title
  assert [text.get_text() for text in drawn.get_texts()] == list(legend.labels)
  for panel, curve in zip(
    figure.axes, ("validation_top1_error", "training_loss"), strict=True
  ):
    assert len(panel.lines) == 10
    for line, run in zip(panel.lines, found, strict=True):
      kind = curve.partition("_")[0]
      np.testing.assert_array_equal(
        line.get_xdata(), run.curves[f"{kind}_epoch"]
      )
      np.testing.assert_array_equal(line.get_ydata(), run.curves[curve])
  # Smoothing adds lines, and leaves those of the values.
  smoothed = curves_lib.to_figure(
    found, legend, axis="step", panels=[["training_loss"]], smoothing=0.5
  )
  assert len(smoothed.axes[0].lines) == 20


def test_legends_of_other_runs(tmp_path):
  def label(**runs_fields):
    found = []
    for name, fields in runs_fields.items():
      if not (tmp_path / name).exists():
        reported_run.write(tmp_path / name, **fields)
      found.append(runs.read(str(tmp_path / name)))
    legend = runs.make_legend(runs.sort(found))
    return legend.title, [
      text.replace(f"{tmp_path}/", "") for text in legend.labels
    ]

  # Two fields; numbers by their value, words after them.
  title, labels = label(
    a={"batch_size": 128, "seed": 1},
    b={"batch_size": 64, "seed": 2},
    c={"batch_size": 64, "seed": 1},
  )
  assert title == ""
  assert labels == [
    "batch_size=64, seed=1",
    "batch_size=64, seed=2",
    "batch_size=128, seed=1",
  ]
  # The same config twice, and alone: the folder.
  assert label(d={}, e={}) == ("", ["d", "e"])
  assert label(d={}) == ("", ["d"])
  title, labels = label(d={}, e={}, f={"seed": 5})
  assert (title, labels) == ("seed", ["0 d", "0 e", "5"])
  # A value that is a tuple, or not set.
  title, labels = label(d={}, g={"augment.channel_scale": (1.0, 2.0, 3.0)})
  assert title == "augment.channel_scale"
  assert sorted(labels) == ["(1.0, 2.0, 3.0)", "None"]
  # Many fields that follow from one: the one.
  for name, wiring in (("h", "w"), ("i", "v")):
    reported_run.write(tmp_path / name)
    file = tmp_path / name / "config.json"
    fields = json.loads(file.read_text()) | {"network.wiring": wiring}
    rows = {f"network.layers.{wiring}{k}.maps": 8 for k in range(5)}
    file.write_text(json.dumps(fields | rows))
  assert label(h={}, i={}) == ("network.wiring", ["v", "w"])


def test_csv_has_the_numbers_of_the_reports(sweep, tmp_path):
  # A curve of two members, and a report without a value.
  lines = [
    json.dumps({"step": 1, "training_loss": 1 / 3, "training_member_loss": x})
    for x in ([0.1, 0.2],)
  ]
  reported_run.write(sweep / "members", lines)
  found = read_sorted(sweep)
  curves = ["training_loss", "validation_top1_error", "training_member_loss"]
  path = tmp_path / "curves.csv"
  runs.write_csv(str(path), found, runs.make_legend(found), curves)
  with open(path, newline="") as opened:
    rows = list(csv.DictReader(opened))
  written = {
    (row["workdir"], row["curve"], int(row["step"])): row for row in rows
  }
  assert len(written) == len(rows)
  expected = 0
  for file in sweep.glob("*/metrics.jsonl"):
    for line in map(json.loads, file.read_text().splitlines()):
      values = {name: line[name] for name in curves if name in line}
      members = values.pop("training_member_loss", [])
      values |= {
        f"training_member_loss/{k}": one for k, one in enumerate(members)
      }
      for name, value in values.items():
        row = written[str(file.parent), name, line["step"]]
        assert float(row["value"]) == value
        for axis in ("epoch", "elapsed_seconds", "images_seen"):
          read = float(row[axis]) if row[axis] else None
          assert read == line.get(axis)
        expected += 1
  assert expected == len(rows)
  first = next(row for row in rows if row["workdir"] == found[0].workdir)
  assert float(first["optimizer.learning_rate"]) == RATES[0]


def test_smoothing_is_an_average_of_what_is_before():
  values = np.array([1.0, np.nan, 3.0, 2.0, 8.0])
  smoothed = runs.smooth(values, 0.75)
  there = [0, 2, 3, 4]
  for count, index in enumerate(there, start=1):
    weights = 0.75 ** np.arange(count)[::-1]
    expected = np.average(values[there[:count]], weights=weights)
    # Rounding of sums in another order.
    np.testing.assert_allclose(smoothed[index], expected, rtol=1e-12)
  assert np.isnan(smoothed[1])
  np.testing.assert_array_equal(runs.smooth(values, 0.0), values)


def plot(*flags, tmp_path):
  ended = processes.run(
    ["python", "-m", "alexnet_jax.plot", *flags],
    tmp_path / "cache",
    variables={"JAX_PLATFORMS": "cpu"},
  )
  assert ended.code == 0, ended.errors
  return ended


@pytest.mark.slow
def test_command_draws_a_sweep(sweep, tmp_path):
  reported_run.write(
    sweep / "young", reported_run.make_lines(0.01, steps=[10]), seed=4
  )
  old = [
    re.sub(r'"(epoch|ela|ima)\w*": [^,]+, ', "", x)
    for x in reported_run.make_lines(1)
  ]
  reported_run.write(sweep / "old", old)
  picture, table = tmp_path / "a b.svg", tmp_path / "curves.csv"
  ended = plot(
    f"--workdir={sweep}/*",
    *("--x=step", "--y=validation_top1_error,training_loss"),
    *(f"--out={picture}", f"--csv={table}"),
    tmp_path=tmp_path,
  )
  assert ended.out.splitlines() == [
    f"no runs: {sweep}/notes",
    f"without validation_top1_error: {sweep}/young",
    "12 runs, which differ in optimizer.learning_rate, seed",
    f"the picture is in {picture}",
    f"the values are in {table}",
  ]
  assert picture.read_text().startswith("<?xml")
  ended = plot(f"--workdir={sweep}/*", f"--out={picture}", tmp_path=tmp_path)
  assert f"(--x=step shows them): {sweep}/old\n" in ended.out


@pytest.mark.slow
def test_what_is_wrong_is_said_in_one_line(sweep, tmp_path):
  out, one = f"--out={tmp_path}/a.svg", f"--workdir={sweep}/1"
  reported_run.write(
    tmp_path / "broken",
    [*reported_run.make_lines(1), '{"step":', *reported_run.make_lines(1)],
  )
  reported_run.write(
    tmp_path / "old", ['{"step": 1, "validation_top1_error": 1.0}']
  )
  reported_run.write(tmp_path / "old2", ['{"step": 1, "training_loss": 1.0}'])
  cases = (
    ([out], "no run is given"),
    ([one], "no file to write is given"),
    ([one, f"--out={tmp_path}/a.jpg"], "does not end in .svg or .png or .pdf"),
    ([one, out, "--y="], "--y is empty"),
    ([one, out, "--smoothing=1"], "--smoothing is 1.0, expected 0 or more"),
    ([one, out, "--y=loss"], "no run has a curve 'loss', but training_loss"),
    ([f"--workdir={sweep}/x*", out], "there is no run in "),
    ([f"--workdir={sweep}/notes", out], "there is no run in "),
    ([f"--workdir={tmp_path}/broken", out], "line 8 of .* is damaged"),
    (
      [f"--workdir={tmp_path}/old2", out, "--y=training_loss"],
      "do not say at which epoch they are.* Set --x=step",
    ),
  )
  folders = [tmp_path / f"here{number}" for number in range(len(cases))]
  for folder in folders:
    folder.mkdir()
  done = processes.run_forked(
    [
      ("plot", flags, folder)
      for (flags, _), folder in zip(cases, folders, strict=True)
    ],
    tmp_path,
  )
  for ended, (_, message) in zip(done, cases, strict=True):
    assert ended.code == 1
    assert re.fullmatch(rf"error: .*{message}.*\n", ended.errors), ended.errors
  assert not (tmp_path / "a.svg").exists()
