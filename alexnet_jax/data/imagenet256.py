"""`imagenet256`: ImageNet as the paper prepared it, squares of 256 pixels.

From ILSVRC 2012 in any form (`origin.py`), in two encodings:

    imagenet256/jpeg   about 40 GB, decoded on the host
    imagenet256/raw    262 GB, only copied

Classes are in the order of their WordNet ids, as in TFDS's own `imagenet2012`.
The metadata hold the statistics that the augmentation needs, and odd files.
"""

from __future__ import annotations

import os

import tensorflow_datasets as tfds

from alexnet_jax.data import ilsvrc, preparation, shards, tars


class Imagenet256(tfds.core.dataset_builder.FileReaderBuilder):
  """TFDS builder: 1,281,167 images to train on, 50,000 to validate."""

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES = {"1.0.0": "First release."}
  MANUAL_DOWNLOAD_INSTRUCTIONS = (
    "ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar, from "
    "https://image-net.org/download-images; then "
    "python -m alexnet_jax.prepare --from=FOLDER"
  )
  BUILDER_CONFIGS = [
    tfds.core.BuilderConfig(
      name="jpeg", description=f"JPEG of quality {shards.QUALITY}"
    ),
    tfds.core.BuilderConfig(name="raw", description="uint8 pixels as such"),
  ]

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description=__doc__,
      features=shards.make_features(
        self.builder_config.name,
        side=shards.SIDE,
        label=tfds.features.ClassLabel(names=ilsvrc.class_names()),
      ),
      supervised_keys=("image", "label"),
      homepage="https://image-net.org/",
      metadata=tfds.core.MetadataDict(),
    )

  @property
  def default_manual_dir(self) -> str:
    """TFDS's default folder for the tars."""
    data_dir = self.data_path.parents[2]
    return os.fspath(data_dir / "downloads" / "manual")

  def download_and_prepare(
    self,
    *,
    download_dir=None,
    download_config: tfds.download.DownloadConfig | None = None,
    **kwargs,
  ) -> None:
    """Prepares the set in this process; `alexnet_jax.prepare` uses all cores.

    Not with TFDS's own code, which starts again after every interruption.
    """
    del download_dir, kwargs
    if self.info.splits:
      return
    asked = download_config or tfds.download.DownloadConfig()
    folder = os.fspath(asked.manual_dir or self.default_manual_dir)
    found = tars.find(folder, subset=False)
    if found is None:
      tars.check_complete(folder, [*tars.TARS])
    plan = preparation.make_plan(
      self,
      found,
      subset=False,
      leave_out=False,
      shard_images=preparation.SHARD_IMAGES,
      log=lambda text: None,
    )
    preparation.execute(plan, jobs=1, report=lambda count: None)

  def _download_and_prepare(self, dl_manager, download_config=None):
    raise NotImplementedError("download_and_prepare is overridden")
