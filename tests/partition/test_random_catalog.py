"""Networks of the catalog on drawn layouts, as in `test_random.py`."""

import pytest

from alexnet_jax.network import catalog
from tests import random_cases
from tests.partition.test_random import check_cases

pytestmark = pytest.mark.slow


# 115 cases of 23 networks.
@pytest.mark.parametrize("table", catalog.WIRINGS, ids=lambda table: table.name)
def test_network_is_refused_or_computes_as_one_device(table):
  check_cases(random_cases.draw_cases(0, table=table, cases=5))
