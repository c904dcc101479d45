"""Networks of the catalog on drawn layouts, as in `test_random.py`."""

import pytest

from alexnet_jax.network import catalog
from tests import cases, random_cases

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("table", catalog.WIRINGS, ids=lambda table: table.name)
def test_network_is_refused_or_computes_as_one_device(table):
  cases.check_cases(random_cases.draw_of_catalog(table), least=2)
