"""The cases of `benchmarks.links`: which there are, and their way to a file."""

import json

import pytest

from alexnet_jax.partition import layout as layout_lib
from alexnet_jax.partition import per_device
from benchmarks import links, links_cases, links_network


@pytest.fixture(scope="module")
def drawn():
  return links_cases.draw_layouts(8, seed=0)


def test_random_layouts_are_distinct_and_those_of_a_smaller_count_the_same(
  drawn,
):
  network = links_cases.make_network("full")
  layouts = [*links_cases.find_layouts(network, batch_size=32), *drawn]
  distinct = per_device.find_distinct(network, layouts, batch_size=32)
  assert distinct == layouts
  assert links_cases.draw_layouts(3, seed=0) == drawn[:3]
  assert links_cases.draw_layouts(3, seed=1) != drawn[:3]


def test_layout_survives_json(drawn):
  network = links_cases.make_network("full")
  for layout in [*links_cases.find_layouts(network, batch_size=32), *drawn]:
    fields = json.loads(json.dumps(layout_lib.to_fields(layout)))
    assert links_cases.from_fields(fields, network) == layout


def test_cases_have_names_of_their_own():
  cases = list(
    links_cases.make_cases(
      ["full", "half"], [16, 32], random_layouts=2, seed=0, names=()
    )
  )
  assert len({case.name for case in cases}) == len(cases) > 30
  with pytest.raises(ValueError, match="is called mine. Set --layouts"):
    list(
      links_cases.make_cases(
        ["half"], [16], random_layouts=0, seed=0, names=["mine"]
      )
    )


def test_bucket_lasts_for_less_than_a_millisecond():
  for rate in links.RATES[:-1]:
    seconds = links_network.to_burst(rate) / links_network.to_bytes_per_second(
      rate
    )
    assert seconds < 1e-3
  with pytest.raises(ValueError, match="expected unshaped, or an integer with"):
    links_network.to_bytes_per_second("100Mbit/s")


def test_cores_stay_awake_while_the_file_is_open(tmp_path, monkeypatch):
  latency = tmp_path / "cpu_dma_latency"
  monkeypatch.setattr(links, "_WAKE_LATENCY", latency)
  with links.keep_awake() as awake:
    assert awake and latency.read_bytes() == bytes(4)  # 0 microseconds
  monkeypatch.setattr(links, "_WAKE_LATENCY", tmp_path / "none" / "file")
  with links.keep_awake() as awake:
    assert not awake


def test_results_resume_after_a_line_that_was_cut_off(tmp_path, capsys):
  file = tmp_path / "results.jsonl"
  links.Results(str(file)).add(kind="rate", rate="1gbit", burst=1)
  with file.open("a") as opened:
    opened.write('{"kind": "ra')
  results = links.Results(str(file))
  results.add(kind="step", rate="1gbit", seconds=[1.0, 2.0, 4.0])
  assert results.has(kind="rate", rate="1gbit")
  assert not results.has(kind="rate", rate="3gbit")
  lines = list(map(json.loads, file.read_text().splitlines()))
  assert [line["kind"] for line in lines] == ["rate", "step"]
  assert "median 2.000000" in capsys.readouterr().out
