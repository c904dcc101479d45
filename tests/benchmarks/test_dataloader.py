"""The comparison with PyTorch's input reads the same pictures on both sides."""

import sys

import numpy as np
import pytest
from PIL import Image

from benchmarks import dataloader


def test_files_and_records_are_the_same_pictures(tmp_path):
  dataloader.write_pictures(tmp_path, 6)
  files = sorted(tmp_path.glob("files/*/*.jpeg"))
  assert len(files) == 6
  jpeg = dataloader.open_records(tmp_path, "jpeg", 6).read(range(6))
  raw = dataloader.open_records(tmp_path, "raw", 6).read(range(6))
  assert jpeg.labels.tolist() == raw.labels.tolist() == list(range(6))
  for number, path in enumerate(files):
    pixels = np.asarray(Image.open(path))
    np.testing.assert_array_equal(jpeg.images[number], pixels)
    # JPEG loses a little of what is stored as pixels, 3 gray levels here; other
    # cuts of the same photographs differ by 29 and more.
    lost = raw.images[number].astype(int) - pixels
    assert 0 < np.abs(lost).mean() < 10


def test_rates_are_given_as_medians_and_ratios_of_rounds():
  rates = {dataloader.PYTORCH: [10.0, 20.0, 30.0], "JPEG": [40.0, 60.0, 150.0]}
  theirs, ours = dataloader.make_rows(rates, cores=2)
  assert theirs == (dataloader.PYTORCH, "20", "10", "1.0")
  assert ours == ("JPEG", "60", "30", "4.0")


def test_missing_pytorch_is_said_with_what_to_do(monkeypatch):
  monkeypatch.setitem(sys.modules, "torch", None)
  with pytest.raises(ImportError, match="pip install torch=="):
    dataloader.import_torch()
