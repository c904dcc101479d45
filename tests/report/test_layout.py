"""The section on the layout shows the one of the run's config."""

import matplotlib.text
import pytest

from alexnet_jax.report import layout as report
from configs import default
from tests import build

SENDS = {
  "one_device": "Nothing is sent.",
  "two_column": "These send: conv3 along column; fc6 along column; fc7 ",
}


@pytest.mark.parametrize("layout", ["two_column", *build.slow("one_device")])
def test_section_shows_the_layout_of_the_run(layout):
  config = default.get_config("imagenet")
  config.layout.name = layout
  (drawing,) = report.make_section(config).parts
  texts = [
    text.get_text() for text in drawing.figure.findobj(matplotlib.text.Text)
  ]
  assert layout in texts and "conv5" in texts
  assert SENDS[layout] in drawing.alternative
