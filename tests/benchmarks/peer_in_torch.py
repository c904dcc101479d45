"""Runs steps of PyTorch's peer: python -m tests.benchmarks.peer_in_torch

Arguments: IN OUT LAYOUT. A program of its own, since JAX and PyTorch are never
in one process. IN has our parameters, as LAYER/kernel and LAYER/bias, images,
labels and the number of steps; OUT gets the new parameters in the same form,
and the loss of each step.
"""

import sys

import numpy as np
import torch
from torch.nn import functional

from benchmarks.peers import torch_worker


def to_torch(name: str, kernel: np.ndarray, maps: int) -> np.ndarray:
  """Converts HWIO or (in, out) kernels; PyTorch's fc6 reads maps first."""
  if kernel.ndim == 4:
    return kernel.transpose(3, 2, 0, 1)
  if name == "fc6":
    kernel = kernel.reshape(-1, maps, kernel.shape[-1])  # positions, maps
    kernel = kernel.transpose(1, 0, 2).reshape(-1, kernel.shape[-1])
  return kernel.T


def from_torch(name: str, weight: np.ndarray, maps: int) -> np.ndarray:
  if weight.ndim == 4:
    return weight.transpose(2, 3, 1, 0)
  kernel = weight.T
  if name == "fc6":
    kernel = kernel.reshape(maps, -1, kernel.shape[-1])
    kernel = kernel.transpose(1, 0, 2).reshape(-1, kernel.shape[-1])
  return kernel


def main(given: str, result: str, layout: str) -> None:
  arrays = dict(np.load(given))
  images, labels = arrays.pop("images"), arrays.pop("labels")
  steps, width = int(arrays.pop("steps")), float(arrays.pop("width"))
  maps = len(arrays["conv5/bias"])
  model = torch_worker.AlexNet(
    width=width,
    image_size=images.shape[1],
    classes=len(arrays["fc8/bias"]),
    dropout=0.0,
  )
  with torch.no_grad():
    for name, array in arrays.items():
      layer, _, kind = name.partition("/")
      if kind == "kernel":
        array = to_torch(layer, array, maps)
      parameter = {"kernel": "weight", "bias": "bias"}[kind]
      getattr(getattr(model, layer), parameter).copy_(
        torch.from_numpy(np.ascontiguousarray(array))
      )
  memory_format = torch_worker.MEMORY_FORMATS[layout]
  model = model.to(memory_format=memory_format)
  x = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
  x = x.to(memory_format=memory_format)
  optimizer = torch_worker.make_optimizer(model)
  losses = []
  for _ in range(steps):
    optimizer.zero_grad()
    loss = functional.cross_entropy(model(x), torch.from_numpy(labels))
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
  after = {"losses": np.array(losses)}
  for layer, module in model.named_children():
    if hasattr(module, "weight"):
      weight = module.weight.detach().numpy()
      after[f"{layer}/kernel"] = from_torch(layer, weight, maps)
      after[f"{layer}/bias"] = module.bias.detach().numpy()
  np.savez(result, **after)


if __name__ == "__main__":
  main(*sys.argv[1:])
