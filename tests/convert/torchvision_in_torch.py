"""Saves a state dict of torchvision's layout, and logits, with PyTorch.

    python -m tests.convert.torchvision_in_torch FOLDER

A program of its own, since JAX and PyTorch are never in one process. FOLDER has
pictures.npy, u8[n, 256, 256, 3], and gets new.pth, old.pth and half.pth, and
reference.npz and half.npz with the logits of the pictures for `--reference`.
"""

import pathlib
import sys

import numpy as np
import torch
from torch import nn

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class AlexNet(nn.Module):
  """torchvision/models/alexnet.py, with fewer maps and ten classes."""

  def __init__(self):
    super().__init__()
    self.features = nn.Sequential(
      nn.Conv2d(3, 8, kernel_size=11, stride=4, padding=2),
      nn.ReLU(inplace=True),
      nn.MaxPool2d(kernel_size=3, stride=2),
      nn.Conv2d(8, 12, kernel_size=5, padding=2),
      nn.ReLU(inplace=True),
      nn.MaxPool2d(kernel_size=3, stride=2),
      nn.Conv2d(12, 16, kernel_size=3, padding=1),
      nn.ReLU(inplace=True),
      nn.Conv2d(16, 12, kernel_size=3, padding=1),
      nn.ReLU(inplace=True),
      nn.Conv2d(12, 12, kernel_size=3, padding=1),
      nn.ReLU(inplace=True),
      nn.MaxPool2d(kernel_size=3, stride=2),
    )
    self.avgpool = nn.AdaptiveAvgPool2d((6, 6))
    self.classifier = nn.Sequential(
      nn.Dropout(p=0.5),
      nn.Linear(12 * 6 * 6, 64),
      nn.ReLU(inplace=True),
      nn.Dropout(p=0.5),
      nn.Linear(64, 64),
      nn.ReLU(inplace=True),
      nn.Linear(64, 10),
    )

  def forward(self, x):
    x = torch.flatten(self.avgpool(self.features(x)), 1)
    return self.classifier(x)


def main(folder: str) -> None:
  place = pathlib.Path(folder)
  pictures = np.load(place / "pictures.npy")
  # CenterCrop(224), ToTensor and Normalize.
  crops = torch.from_numpy(pictures[:, 16:240, 16:240].transpose(0, 3, 1, 2))
  mean, deviation = (
    torch.tensor(values)[None, :, None, None] for values in (MEAN, DEVIATION)
  )
  inputs = (crops.float() / 255 - mean) / deviation
  torch.manual_seed(0)
  model = AlexNet().eval()
  with torch.no_grad():
    for parameter in model.parameters():
      parameter *= 2.0  # logits of some units
    logits = model(inputs).numpy()
    np.savez(place / "reference.npz", images=pictures, logits=logits)
    torch.save(model.state_dict(), place / "new.pth")
    torch.save(
      {"epoch": 1, "state_dict": model.state_dict()},
      place / "old.pth",
      _use_new_zipfile_serialization=False,
    )
    half = {name: one.bfloat16() for name, one in model.state_dict().items()}
    torch.save(half, place / "half.pth")
    model.load_state_dict({name: one.float() for name, one in half.items()})
    logits = model(inputs).numpy()
    np.savez(place / "half.npz", images=pictures, logits=logits)


if __name__ == "__main__":
  main(sys.argv[1])
