"""The command `report`, and its pages in a browser."""

import json
import pathlib
import re
import shutil

import pytest

from alexnet_jax.data import photos
from alexnet_jax.network import catalog as wirings
from configs import photos as photos_config
from tests import processes, runs, short_network, stored_run
from tests.report import browser

pytestmark = pytest.mark.slow

EVIL = "<script>alert('x')</script>"
# Sections of a run with a checkpoint and its data set.
COMPLETE = (
  *("what-ran", "curves", "layout", "kernels", "layers", "predictions"),
  *("nearest-neighbors", "mistakes", "costs"),
)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
  return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def demo(tmp_path_factory, data_dir):
  """A short run on digits, in two columns."""
  config = short_network.get_config("two_device")
  config.update_from_flattened_dict(processes.SMALL | {"eval_every_steps": 3})
  workdir = tmp_path_factory.mktemp("runs") / "demo"
  runs.train(config, workdir, data_dir)
  return workdir


@pytest.fixture(scope="module")
def photographs(tmp_path_factory, data_dir):
  """A short run on few crops of photographs."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(photos, "TRAINING_CROPS", 2)
    patch.setattr(photos, "VALIDATION_CROPS", 2)
    config = photos_config.get_config()
    classes = config.network.num_classes
    short_network.shorten(config)
    config.network.num_classes, config.network.init = classes, "he"
    config.network.width, config.batch_size = 1 / 8, 8
    config.num_epochs, config.optimizer.drop_epochs = 1.0, (0.5,)
    config.log_every_steps = config.eval_every_steps = 2
    workdir = tmp_path_factory.mktemp("runs") / "photos"
    runs.train(config, workdir, data_dir)
  return workdir


def write_several(path, demo):
  """Two runs that were trained at once, from one that was not."""
  for member in range(2):
    shutil.copytree(demo, path / f"member_{member}")
  fields = json.loads((demo / "config.json").read_text()) | {"ensemble": 2}
  (path / "config.json").write_text(json.dumps(fields))
  with (path / "metrics.jsonl").open("w") as file:
    lines = (demo / "metrics.jsonl").read_text().splitlines()
    for line in map(json.loads, lines):
      for name in ("training_loss", "validation_loss"):
        if name in line:
          line[name.replace("loss", "member_loss")] = [line[name]] * 2
      file.write(f"{json.dumps(line)}\n")


def report(cases, folder):
  """Runs the command for {name: flags}; returns {name: (ended, page)}."""
  listed = []
  for name, flags in cases.items():
    (folder / name).mkdir(parents=True)
    listed.append(("report", [*flags, "--out=page.html"], str(folder / name)))
  ended = processes.run_forked(listed, folder)
  return {
    name: (one, folder / name / "page.html")
    for name, one in zip(cases, ended, strict=True)
  }


def find_sections(page):
  """{anchor: text of the section} of a page."""
  parts = re.split(r'<section aria-labelledby="(.*?)">', page.read_text())
  return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.fixture(scope="module")
def pages(demo, photographs, data_dir, tmp_path_factory):
  """The pages of two runs."""
  data = f"--data_dir={data_dir}"
  folder = tmp_path_factory.mktemp("pages")
  made = report(
    {
      "demo": [f"--workdir={demo}", data, "--figures=figures"],
      "photos": [
        *(f"--workdir={photographs}", data, "--figures=figures"),
        *("--figures_format=svg", "--machine=k20", "--smoothing=0.5"),
      ],
    },
    folder,
  )
  for ended, _ in made.values():
    assert (ended.code, ended.errors) == (0, "")
  return {name: page for name, (_, page) in made.items()}


def check_figures(page, kind):
  """Checks that each figure is a file, too; returns their names."""
  files = sorted((page.parent / "figures").iterdir())
  assert {file.suffix for file in files} == {f".{kind}"}
  drawn = re.findall(r'<figure id="figure-(.*?)"', page.read_text())
  assert sorted(drawn) == [file.stem for file in files]
  return drawn


def test_page_has_all_sections_and_files(pages):
  for name, page in pages.items():
    assert tuple(find_sections(page)) == COMPLETE
    assert "Not shown" not in page.read_text()
    drawn = check_figures(page, {"demo": "pdf", "photos": "svg"}[name])
    assert len(drawn) >= 12
    assert page.stat().st_size < 5e6


@pytest.fixture(scope="module")
def opened():
  if browser.PROGRAM is None:
    pytest.skip("there is no Chromium; apt-get install chromium")
  with browser.start() as started:
    yield started


@pytest.mark.parametrize("name", ["demo", "photos"])
def test_page_in_a_browser(pages, name, opened):
  page = pages[name]
  count = page.read_text().count("<figure ")
  for width, scheme, scripts in (
    (1280, "dark", True),
    (380, "light", False),
  ):
    opened.open(page, width=width, scheme=scheme, scripts=scripts)
    # Nothing is wider than the page: wide things scroll inside.
    wide, window = opened.evaluate(
      "[document.documentElement.scrollWidth, innerWidth]"
    )
    assert wide == window == width
    boxes = opened.evaluate(
      """[...document.querySelectorAll("figure")].map(one => {
        const drawn = one.querySelector("svg, img");
        const box = drawn.getBoundingClientRect();
        return [box.width, box.height, drawn.naturalWidth ?? 1];
      })"""
    )
    assert len(boxes) == count
    assert opened.evaluate(
      """(() => {
        const ids = [...document.querySelectorAll("[id]")].map(one => one.id);
        return new Set(ids).size === ids.length;
      })()"""
    )
    assert all(min(box) > 0 for box in boxes)
    # Black lines and texts are light on a dark page.
    colors = opened.evaluate(
      """[getComputedStyle(document.body).backgroundColor,
          getComputedStyle(document.querySelector("svg text")).fill]"""
    )
    behind, text = (
      sum(map(int, re.findall(r"\d+", one)[:3])) for one in colors
    )
    assert (behind < text) == (scheme == "dark")
    hidden = opened.evaluate('document.getElementById("theme").hidden')
    assert hidden == (not scripts)
    assert opened.errors == []
  # Without scripts, too, all numbers are on paper.
  opened.open(page, width=780, media="print", scripts=False)
  assert opened.evaluate(
    """[...document.querySelectorAll("details")].every(
      one => one.lastElementChild.getBoundingClientRect().height > 0)"""
  )
  assert opened.print_page().startswith(b"%PDF")
  assert opened.errors == []


def test_page_works_by_keyboard(pages, opened):
  opened.open(pages["demo"])
  opened.press("Tab")
  assert opened.evaluate("document.activeElement.className") == "skip"
  opened.press("Tab")
  assert opened.evaluate("document.activeElement.id") == "theme"
  color = "getComputedStyle(document.body).backgroundColor"
  light = opened.evaluate(color)
  opened.press("Enter")
  assert opened.evaluate(color) != light
  opened.press("Enter")
  assert opened.evaluate(color) == light
  opened.press("Tab")
  target = opened.evaluate("document.activeElement.getAttribute('href')")
  assert target == "#what-ran"
  # What scrolls, and what unfolds, can have the focus.
  assert opened.evaluate(
    """[...document.querySelectorAll(".scroll, summary, pre")].every(
      one => one.tabIndex === 0)"""
  )
  assert opened.errors == []


def write_many_classes(path):
  """A run of 1,000 classes that was never trained."""
  config = stored_run.make_config(
    wirings.FOUR_LAYER, **{"network.num_classes": 1000}
  )
  names = [f"{EVIL} {number}" for number in range(1000)]
  stored_run.write(path, config, class_names=names)


def test_what_cannot_be_shown_gets_a_line(
  demo, photographs, data_dir, tmp_path
):
  data = f"--data_dir={data_dir}"

  def copy(name):
    shutil.copytree(demo, tmp_path / name)
    return tmp_path / name

  newer = copy("newer") / "config.json"
  newer.write_text(json.dumps(json.loads(newer.read_text()) | {"new.field": 1}))
  with (copy("broken") / "metrics.jsonl").open("a") as file:
    file.write('{"step":\n')
  young = copy("young")
  shutil.rmtree(young / "checkpoints")
  lines = (young / "metrics.jsonl").read_text().splitlines(keepends=True)
  first = [one for one in lines if "training_loss" in one][:1]
  (young / "metrics.jsonl").write_text("".join(first))
  damaged = copy("damaged") / "checkpoints"
  for file in damaged.rglob("*"):
    if file.is_file() and file.stat().st_size > 10_000:
      file.write_bytes(b"")
  write_many_classes(tmp_path / "many")
  write_several(tmp_path / "several", demo)
  cases = {
    "newer": ("newer", data, "not-shown", "new.field"),
    "broken": ("broken", data, "curves", "has no curves"),
    "young": ("young", data, "not-shown", "has no checkpoint"),
    "damaged": ("damaged", data, "not-shown", "is damaged"),
    "no_data": (demo, f"--data_dir={tmp_path}/no", "predictions", "--data_dir"),
    "many": ("many", data, "predictions", "--data_dir"),
    "several": (
      "several",
      data,
      "what-ran",
      "2 runs that were trained at once",
    ),
  }
  flags = {
    name: [f"--workdir={tmp_path / workdir}", where]
    for name, (workdir, where, *_) in cases.items()
  }
  flags["two"] = [
    *(f"--workdir={demo},{photographs}", f"--data_dir={tmp_path}/no"),
    *("--x=step", "--figures=figures", "--figures_format=png"),
  ]
  done = report(flags, tmp_path / "pages")
  for name, (_, _, section, message) in cases.items():
    ended, page = done[name]
    assert (ended.code, ended.errors) == (0, ""), (name, ended)
    sections = find_sections(page)
    assert re.search(message, sections[section]), (name, sections[section])
    assert "Traceback" not in page.read_text()
    assert EVIL not in page.read_text()
    # What can be shown is there.
    assert ("kernels" in sections) == (section != "not-shown")
    assert {"layout", "costs"} <= {*sections} or name == "newer"
    assert ("figure-curve_loss" in sections["curves"]) == (
      name not in ("broken", "many")
    )
  assert tuple(find_sections(done["several"][1])) == COMPLETE
  ended, page = done["two"]
  assert (ended.code, ended.errors) == (0, "")
  assert "curve_loss" in check_figures(page, "png")
  text = find_sections(page)["what-ran"]
  assert f"What follows the curves is of the run in {demo}." in text
  assert str(photographs) in text


def test_what_is_wrong_is_said_in_one_line(demo, tmp_path):
  one = f"--workdir={demo}"
  (tmp_path / "none").mkdir()
  (tmp_path / "text.png").write_text("no picture")
  no_config = tmp_path / "no config"
  no_config.mkdir()
  (no_config / "config.json").write_text("{")
  cases = {
    "--out": [one],
    "no run is given": ["--out=a.html"],
    "does not end in .html": [one, "--out=a.txt"],
    "there is no run in": [f"--workdir={tmp_path}/none", "--out=a.html"],
    "is no JSON": [f"--workdir={no_config}", "--out=a.html"],
    "--images is 0, expected 1 or more": [one, "--out=a.html", "--images=0"],
    "--smoothing is 1.0": [one, "--out=a.html", "--smoothing=1"],
    "there is no picture 'x.png'": [one, "--out=a.html", "--picture=x.png"],
    "text.png": [one, "--out=a.html", f"--picture={tmp_path}/text.png"],
    "no checkpoint of step 77, but": [
      *(one, "--out=a.html", "--checkpoint_step=77"),
    ],
    "--machine": [one, "--out=a.html", "--machine=abacus"],
    "the folder '.*' cannot be made or written": [
      *(one, "--out=a.html", f"--figures={tmp_path}/text.png/a"),
    ],
  }
  listed = []
  for number, flags in enumerate(cases.values()):
    folder = tmp_path / f"case{number}"
    folder.mkdir()
    listed.append(("report", flags, str(folder)))
  ended = processes.run_forked(listed, tmp_path)
  for message, case, (_, _, folder) in zip(cases, ended, listed, strict=True):
    assert (case.code, case.out) == (1, ""), case
    assert re.fullmatch(f"error: .*{message}.*\n", case.errors), case.errors
    assert not list(pathlib.Path(folder).iterdir())
