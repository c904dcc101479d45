import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax.checkpoints import checksum
from alexnet_jax.partition import catalog
from tests import build


def mix(number: int) -> int:
  number = number * 0x9E3779B1 % 2**32
  number = (number ^ number >> 15) * 0x85EBCA77 % 2**32
  return number ^ number >> 13


def by_hand(array: np.ndarray) -> str:
  """The sums, element by element, in Python's integers."""
  words = np.atleast_1d(array).reshape(-1)
  words = words.view(f"u{array.dtype.itemsize}")
  sums = [0, 0]
  for index, word in enumerate(words.tolist()):
    position = mix(index)
    for i, number in enumerate((word ^ position, word * 0x85EBCA77 + position)):
      sums[i] = (sums[i] + mix(number)) % 2**32
  return f"{sums[0]:08x}{sums[1]:08x}"


def test_checksum_equals_a_loop():
  rng = np.random.default_rng(0)
  tree = {
    "f": rng.normal(size=(3, 5, 2)).astype(np.float32),
    "h": [rng.normal(size=7).astype(jnp.bfloat16), np.int32(-3)],
    "i": rng.integers(-9, 9, (4, 4), dtype=np.int32),
    "b": rng.random(6) < 0.5,
    "e": np.zeros((0, 2), np.float32),
  }
  tree["f"][1, 2, 0], tree["h"][0][3] = np.inf, np.nan
  found = checksum.compute(jax.tree.map(jnp.asarray, tree))
  assert [*found] == ["b", "e", "f", "h.0", "h.1", "i"]
  for name, array in zip(found, jax.tree.leaves(tree), strict=True):
    one = found[name]
    assert one.sums == by_hand(np.asarray(array)), name
    assert (one.shape, one.dtype) == (array.shape, str(array.dtype))
  bad = {name: one.not_finite for name, one in found.items()}
  assert bad == {"b": 0, "e": 0, "f": 1, "h.0": 1, "h.1": 0, "i": 0}


def test_every_single_flipped_bit_changes_the_checksum():
  rng = np.random.default_rng(1)
  array = rng.normal(size=(2, 2)).astype(np.float32)
  flipped = [-array]  # an even number of bits, all of the same kind
  for bit in range(8 * array.nbytes):
    data = bytearray(array.tobytes())
    data[bit // 8] ^= 1 << bit % 8
    flipped.append(np.frombuffer(data, np.float32).reshape(array.shape))
  # In one array of many: so many arrays would take seconds to compile.
  original = checksum.compute(jnp.asarray(array))[""].sums
  found = [by_hand(one) for one in flipped]
  assert by_hand(array) == original
  assert len({original, *found}) == 1 + len(flipped)


@pytest.mark.slow
def test_checksum_is_equal_under_every_layout():
  rng = np.random.default_rng(2)
  like = build.make_program(catalog.ONE_DEVICE).abstract_state
  arrays = jax.tree.map(
    lambda leaf: rng.integers(0, 99, leaf.shape).astype(leaf.dtype), like
  )
  expected = checksum.compute(jax.tree.map(jnp.asarray, arrays))
  assert len(expected) > 16
  for layout in (
    *(catalog.ONE_DEVICE, catalog.TWO_COLUMN_DATA),
    *(catalog.ONE_WEIRD_TRICK, catalog.FULLY_SHARDED),
  ):
    like = build.make_program(layout).abstract_state
    shardings = jax.tree.map(lambda leaf: leaf.sharding, like)
    found = checksum.compute(jax.device_put(arrays, shardings))
    assert found == expected, layout.name
