"""The page as text: what it has, what it escapes, and the files of figures."""

import html.parser
import re

import matplotlib
import numpy as np
import pytest
from matplotlib import figure

from alexnet_jax.figures import charts
from alexnet_jax.report import page, section

EVIL = '<script>alert("x")</script> & "quotes" \'too\''
# Elements of HTML that have no end.
VOID = {"meta", "link", "img", "br", "hr", "input"}


class Reader(html.parser.HTMLParser):
  """Collects elements, text and ids, and checks that elements are closed."""

  def __init__(self):
    super().__init__()
    self.open, self.names, self.ids, self.text = [], [], [], []
    self.targets, self.attributes = [], []

  def handle_starttag(self, tag, attrs):
    self.handle_startendtag(tag, attrs)
    if tag not in VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.names.append(tag)
    self.attributes.append((tag, dict(attrs)))
    for name, value in attrs:
      if name == "id":
        self.ids.append(value)
      if name in ("href", "xlink:href", "src"):
        self.targets.append(value)
      self.targets += [
        f"#{one}" for one in re.findall(r"url\(#(.*?)\)", value or "")
      ]

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    self.text.append(data)


def read(content):
  reader = Reader()
  reader.feed(content)
  reader.close()
  assert not reader.open
  return reader


def draw(kind, name):
  with matplotlib.rc_context(charts.SETTINGS):
    drawn = figure.Figure(figsize=(3, 2))
    axes = drawn.add_subplot()
    axes.plot([0, 1], [0, 1], marker="o", color="black", label=EVIL)
    axes.fill_between([0, 1], [1, 2], color="black", hatch="//")
    axes.imshow(np.arange(4.0).reshape(2, 2))
    axes.set_title(charts.to_label(EVIL))
  return section.Drawing(
    name=name,
    figure=drawn,
    kind=kind,
    caption=f"Caption {EVIL}",
    alternative=f"Alternative {EVIL}",
    table=section.Table(header=[EVIL, "n"], rows=[[EVIL, "1"]], caption="T"),
  )


@pytest.fixture(scope="module")
def sections():
  return [
    section.Section(
      name="first",
      title=EVIL,
      text=[EVIL],
      parts=[
        draw("svg", "one"),
        draw("svg", "two"),
        draw("png", "three"),
        section.Table(header=["a", "b"], rows=[[EVIL, "2"]], caption=EVIL),
        section.Command(line=f"python {EVIL}", caption="Runs."),
      ],
    ),
    section.Section(name="second", title="Empty", text=["Not known."]),
  ]


def test_texts_are_escaped_and_ids_occur_once(sections):
  content = page.render(title=EVIL, subtitle=EVIL, sections=sections)
  found = read(content)
  # Its own script alone.
  assert found.names.count("script") == 1
  shown = "".join(found.text)
  # Title twice, subtitle, title of the section twice, its text, two captions
  # of tables with a cell each and more in the drawings.
  assert shown.count(EVIL) > 10
  # A command can be copied, though its lines end between words only.
  assert f"python {EVIL}" in shown
  assert len(found.ids) == len({*found.ids})
  # Nothing is loaded: links lead to the page itself, pictures are inside.
  for target in found.targets:
    assert target.startswith(("#", "data:"))
    assert target == "data:," or target[0] != "#" or target[1:] in found.ids
  assert found.names.count("h1") == 1
  alternatives = [
    attributes.get("alt") or attributes.get("aria-label")
    for tag, attributes in found.attributes
    if tag == "img" or attributes.get("role") == "img"
  ]
  assert alternatives == [f"Alternative {EVIL}"] * 3
  # Black is the color of the text, which is another one on a dark page.
  svg = content[content.index("<svg") : content.rindex("</svg>")]
  assert "#000000" not in svg and "currentColor" in svg
  assert "<style" not in svg and "<metadata" not in svg
  # The same sections are the same page.
  assert content == page.render(title=EVIL, subtitle=EVIL, sections=sections)


@pytest.mark.parametrize(
  ("kind", "begins"),
  [("svg", b"<?xml"), ("png", b"\x89PNG"), ("pdf", b"%PDF")],
)
def test_each_drawing_is_a_file(kind, begins, sections, tmp_path):
  folder = tmp_path / "a" / "figures"
  assert page.write_figures(sections, str(folder), kind=kind) == 3
  files = sorted(folder.iterdir())
  assert [file.name for file in files] == [
    f"{name}.{kind}" for name in ("one", "three", "two")
  ]
  assert all(file.read_bytes().startswith(begins) for file in files)
