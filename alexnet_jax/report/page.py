"""Lays out sections as one HTML page, which needs no other file.

Drawings of lines are SVG in the page, those of pictures PNG; `write_figures`
writes the same ones as files. Nothing in a text of a section is markup: the
template escapes it.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree

import jinja2
import matplotlib

from alexnet_jax.data import atomic
from alexnet_jax.figures import charts
from alexnet_jax.report import section as section_lib

# Kinds of files of `write_figures`.
KINDS = ("pdf", "svg", "png")
# Dots per inch: of a picture in the page, of one in a file.
_ON_SCREEN, _IN_PRINT = 144, 300
# CSS pixels per inch.
_PIXELS = 96
_TEMPLATE, _SCRIPT = "page.html", "page.js"
# Names of the SVG's own, which HTML does not need.
_NAMESPACE = re.compile(r"\{[^}]*\}")
# A reference to an element of the same drawing.
_REFERENCE = re.compile(r"url\(#([^)]*)\)")
_BLACK = re.compile(r"#000000|(?<=: )black\b")


def render(
  *, title: str, subtitle: str, sections: Sequence[section_lib.Section]
) -> str:
  """Returns the page.

  Args:
    title: of the page.
    subtitle: a line below it.
    sections: in their order; names of sections and of drawings occur once.
  """
  environment = jinja2.Environment(
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
    trim_blocks=True,
    lstrip_blocks=True,
  )
  template = environment.get_template(_TEMPLATE)
  script, *_ = environment.loader.get_source(environment, _SCRIPT)
  return template.render(
    title=title,
    subtitle=subtitle,
    sections=[
      {
        "name": one.name,
        "title": one.title,
        "text": one.text,
        "parts": [_to_part(part) for part in one.parts],
      }
      for one in sections
    ],
    script=script,
    # The page may run this script alone, and load nothing.
    script_hash=base64.b64encode(
      hashlib.sha256(script.encode()).digest()
    ).decode(),
  )


def write_figures(
  sections: Sequence[section_lib.Section], folder: str, *, kind: str
) -> int:
  """Writes each drawing to a file of its own, FOLDER/NAME.KIND.

  Args:
    kind: of `KINDS`; png with 300 dots per inch.

  Returns:
    The number of files.

  Raises:
    OSError: the folder cannot be made, or a file not be written.
  """
  drawings = [
    part
    for one in sections
    for part in one.parts
    if isinstance(part, section_lib.Drawing)
  ]
  try:
    os.makedirs(folder, exist_ok=True)
  except OSError as error:
    raise OSError(
      f"the folder {folder!r} cannot be made: {error.strerror}. Set --figures."
    ) from error
  for drawing in drawings:
    path = os.path.join(folder, f"{drawing.name}.{kind}")
    with (
      atomic.replace(path) as partial,
      matplotlib.rc_context(charts.SETTINGS),
    ):
      charts.save(
        drawing.figure,
        partial,
        kind=kind,
        dots_per_inch=_IN_PRINT,
        transparent=True,
      )
  return len(drawings)


def _to_part(part: section_lib.Part) -> dict[str, Any]:
  """Returns what the template needs of a part of a section."""
  match part:
    case section_lib.Table():
      return {"kind": "table", "table": part}
    case section_lib.Command():
      return {"kind": "command", "line": part.line, "caption": part.caption}
  width, _ = part.figure.get_size_inches()
  drawn = _to_svg(part) if part.kind == "svg" else _to_png(part)
  return {
    "kind": "drawing",
    "name": part.name,
    "svg": drawn if part.kind == "svg" else None,
    "png": drawn if part.kind == "png" else None,
    "width": round(_PIXELS * width),
    "caption": part.caption,
    "alternative": part.alternative,
    "table": part.table,
  }


def _to_png(drawing: section_lib.Drawing) -> str:
  """Returns a drawing as base64 of a PNG, on white."""
  buffer = io.BytesIO()
  with matplotlib.rc_context(charts.SETTINGS):
    charts.save(drawing.figure, buffer, kind="png", dots_per_inch=_ON_SCREEN)
  return base64.b64encode(buffer.getvalue()).decode()


def _to_svg(drawing: section_lib.Drawing) -> str:
  """Returns a drawing as an element of HTML.

  Black has the color of the page's text. Ids begin with the name of the
  drawing, so that they occur once in a page.
  """
  buffer = io.BytesIO()
  settings = charts.SETTINGS | {
    "svg.fonttype": "none",  # text, which can be searched
    "svg.hashsalt": drawing.name,
  }
  with matplotlib.rc_context(settings):
    charts.save(
      drawing.figure,
      buffer,
      kind="svg",
      dots_per_inch=_ON_SCREEN,
      transparent=True,
    )
  root = ElementTree.fromstring(buffer.getvalue())
  for parent in list(root.iter()):
    for child in list(parent):
      # The metadata; and a rule of CSS that would hold for the page.
      if _NAMESPACE.sub("", child.tag) in ("metadata", "style"):
        parent.remove(child)
  used = set()
  for element in root.iter():
    for value in element.attrib.values():
      used.update(_REFERENCE.findall(value))
      if value.startswith("#"):
        used.add(value[1:])
  prefix = f"{drawing.name}-"
  for element in root.iter():
    element.tag = _NAMESPACE.sub("", element.tag)
    attributes = {}
    for name, value in element.attrib.items():
      name = _NAMESPACE.sub("", name)
      if name == "id":
        if value not in used:
          continue
        value = prefix + value
      elif name == "href" and value.startswith("#"):
        value = f"#{prefix}{value[1:]}"
      elif name != "href":
        value = _REFERENCE.sub(rf"url(#{prefix}\1)", value)
        value = _BLACK.sub("currentColor", value)
      attributes[name] = value
    element.attrib.clear()
    element.attrib.update(attributes)
  root.attrib.clear()
  width, height = _PIXELS * drawing.figure.get_size_inches()
  points = 72 / _PIXELS
  root.attrib.update(
    {
      "viewBox": f"0 0 {width * points:g} {height * points:g}",
      "role": "img",
      "aria-label": drawing.alternative,
      "fill": "currentColor",  # of what is black, which has no color of its own
    }
  )
  return ElementTree.tostring(root, encoding="unicode")
