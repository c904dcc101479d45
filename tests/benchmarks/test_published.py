"""The comparison with published measurements runs, and prices what it says."""

import dataclasses

import pytest

from alexnet_jax.planner import machine as machine_lib
from benchmarks.results import published


@pytest.fixture(scope="module")
def link():
  """Two nodes of two devices each, one link a node."""
  base = machine_lib.load("p100_4x4")
  inside, between = base.links
  links = (
    dataclasses.replace(
      inside, joins_devices=2, bytes_per_second=8e9, latency_seconds=0.0
    ),
    dataclasses.replace(
      between,
      unit_devices=2,
      shared_by=2,
      bytes_per_second=1e9,
      latency_seconds=0.0,
    ),
  )
  return dataclasses.replace(base, links=links, launch_seconds=0.0)


def test_every_table_has_a_number_in_every_column():
  tables = list(published.list_tables(searches=False))
  titles = [table.title for table in tables]
  assert len(set(titles)) == len(titles) == 10
  for table in tables:
    assert table.rows, table.title
    assert {len(row) for row in table.rows} == {len(table.header)}, table.title
    assert table.to_markdown().count("\n| ") == len(table.rows) + 2


def test_pase_is_priced_as_its_own_code_prices_it():
  (table,) = (
    table
    for table in published.compare_pase(searches=False)
    if table.title.startswith("PaSE's model")
  )
  for row in table.rows:
    # Its table is rounded to two digits; it also counts the input gradient of
    # conv1, 3 % of the multiplications.
    assert float(row[2]) == pytest.approx(float(row[1]), rel=0.02)
    if int(row[0]) <= published.PASE_DEVICES:
      assert float(row[5]) == pytest.approx(float(row[4]), rel=0.03)


def test_servers_send_what_a_model_takes(link):
  pricer = published.make_pricer(link, "merged tower", 8)
  model = 4 * 61_100_840
  # Each of four devices sends half of its gradients to the other node, and two
  # share a link of 1 GB/s; as much comes back.
  expected = 2 * (model / 2 * 2 / 1e9)
  assert published.serve_on_all(pricer, 4) == pytest.approx(expected)
  # To one device: of two devices, each all of it.
  assert published.serve_on_one(pricer, 4) == pytest.approx(2 * 2 * model / 1e9)
  one_node = 2 * model / 8e9
  assert published.serve_on_one(pricer, 2) == pytest.approx(one_node)


def test_in_turns_each_device_sends_its_features_to_each_other_one(link):
  flat = published.to_one_level(link, 1e9)
  pricer = published.make_pricer(flat, "merged tower", 4 * 128)
  features = 4 * 128 * 9216
  found = published.exchange_in_turns(pricer, 4)
  assert found == pytest.approx(4 * 2 * 3 * features / 1e9)
