"""The comparison of prepare with its codecs: the same squares on both sides."""

from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2

from alexnet_jax.data import shards
from benchmarks import preparation


def test_both_sides_make_the_same_bytes(tmp_path):
  picture = Image.effect_mandelbrot((400, 300), (-2, -1.5, 1, 1.5), 50)
  picture.convert("RGB").save(tmp_path / "picture.jpg")
  encoded = (tmp_path / "picture.jpg").read_bytes()
  preparation.write_folders(tmp_path / "pictures", [encoded], 20)
  shard = preparation.make_shard(tmp_path / "pictures", tmp_path, 3)
  with shard.origin.open(shard.scratch) as read:
    square, _ = shards.read_square(
      read(shard.members[0]), shards.SIDE, name="a.jpg", rotate=True
    )
  record, _ = shards.make_record(square, shard.members[0], shard.format)
  features = tf_example_pb2.Example.FromString(record).features.feature
  (stored,) = features["image"].bytes_list.value
  assert stored == preparation.work_alone(encoded)


def test_row_has_the_ratios_of_times_per_picture():
  table = preparation.make_table([b"x" * 2000])
  pairs = [((1.0, 2.0), (2.0, 8.0)), ((1.5, 2.0), (2.0, 2.0))]
  preparation.add_row(table, "shards", pairs, alone=100, prepared=200)
  cells = [next(column.cells) for column in table.columns]
  assert cells == [
    *("shards", "200", "10.00", "12.50"),
    *("1.25 (1.00 to 1.50)", "1.25 (0.50 to 2.00)"),
  ]
