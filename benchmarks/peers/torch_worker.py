"""The network and step of 2012 in PyTorch, as a worker of `benchmarks.peers`.

This runs in the Python of --torch_python and never imports JAX. It differs from
the usual tutorial:
- conv1 is padded on one side only, with `pad`;
- normalization stays inside a column. `nn.LocalResponseNorm` on each column is
  slower, with channels last several times, as it pools over strided maps. Here
  PyTorch pools over the last axis;
- kernels and biases are two groups of the optimizer. It is the fused one, which
  takes a quarter of the time of the default on a CPU.

PyTorch scales the kept units of dropout during training; ours multiplies in
evaluation.
"""

import torch
from torch import nn
from torch.nn import functional

from benchmarks.peers import worker

CLASSES = 1000
MEMORY_FORMATS = {
  "nchw": torch.contiguous_format,
  "channels_last": torch.channels_last,
}


def local_response_norm(x: torch.Tensor) -> torch.Tensor:
  """Over five maps of a column: [n, c, h, w]."""
  last = x.permute(0, 2, 3, 1)  # [n, h, w, c]
  columns = last.reshape(-1, 2, last.shape[-1] // 2)
  energy = functional.avg_pool1d(columns * columns, 5, stride=1, padding=2)
  normed = columns / (2.0 + 1e-4 * energy).pow(0.75)
  return normed.reshape(last.shape).permute(0, 3, 1, 2)


class AlexNet(nn.Module):
  """Two columns as groups of the convolutions.

  Args:
    width: multiplies the features of all layers but the last.
    image_size: side of the images, in pixels.
    classes: of the last layer.
    dropout: rate for the units of fc6 and fc7.
  """

  def __init__(
    self,
    *,
    width: float = 1.0,
    image_size: int = 224,
    classes: int = CLASSES,
    dropout: float = 0.5,
  ):
    super().__init__()
    c1, c2, c3, c4, c5, units = (
      round(width * features) for features in (96, 256, 384, 384, 256, 4096)
    )
    side = (image_size + 3 - 11) // 4 + 1
    for _ in range(3):
      side = (side - 3) // 2 + 1  # 6 of 224 pixels
    self.conv1 = nn.Conv2d(3, c1, 11, stride=4)
    self.conv2 = nn.Conv2d(c1, c2, 5, padding=2, groups=2)
    self.conv3 = nn.Conv2d(c2, c3, 3, padding=1)
    self.conv4 = nn.Conv2d(c3, c4, 3, padding=1, groups=2)
    self.conv5 = nn.Conv2d(c4, c5, 3, padding=1, groups=2)
    self.fc6 = nn.Linear(c5 * side * side, units)
    self.fc7 = nn.Linear(units, units)
    self.fc8 = nn.Linear(units, classes)
    self.relu, self.pool = nn.ReLU(inplace=True), nn.MaxPool2d(3, 2)
    self.drop = nn.Dropout(dropout)
    for name, layer in self.named_children():
      if hasattr(layer, "weight"):
        std = 0.03 if name in ("conv3", "conv4", "conv5") else 0.01
        nn.init.normal_(layer.weight, std=std)
        ones = name in ("conv2", "conv4", "conv5", "fc6", "fc7")
        nn.init.constant_(layer.bias, float(ones))

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    """f32[n, 3, image_size, image_size] -> f32[n, classes]."""
    x = functional.pad(x, (0, 3, 0, 3))
    x = self.pool(local_response_norm(self.relu(self.conv1(x))))
    x = self.pool(local_response_norm(self.relu(self.conv2(x))))
    x = self.relu(self.conv3(x))
    x = self.relu(self.conv4(x))
    x = self.pool(self.relu(self.conv5(x)))
    x = x.flatten(1)
    x = self.drop(self.relu(self.fc6(x)))
    x = self.drop(self.relu(self.fc7(x)))
    return self.fc8(x)


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
  """SGD, momentum .9; rate .01 and decay for kernels, .02 for biases."""
  kernels, biases = (
    [p for p in model.parameters() if (p.ndim > 1) is of_kernels]
    for of_kernels in (True, False)
  )
  return torch.optim.SGD(
    [
      {"params": kernels, "lr": 0.01, "weight_decay": 5e-4},
      {"params": biases, "lr": 0.02},
    ],
    momentum=0.9,
    fused=True,  # faster than the default, on CPU and GPU
  )


def make(
  *,
  batch_size: int,
  width: float,
  image_size: int,
  device: str,
  layout: str,
  compile_mode: str | None,
  precision: str,
) -> tuple[worker.RunSteps, dict]:
  """A step, and facts about it.

  Args:
    batch_size, width, image_size: of the network and its input.
    device: `cpu` or `cuda`.
    layout: `nchw` or `channels_last`.
    compile_mode: of torch.compile; None: eager.
    precision: `float32`; `tf32`: products of TF32; `bfloat16`: by autocast.
  """
  torch.manual_seed(0)
  torch.set_num_threads(worker.count_cores())
  torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
  torch.backends.cudnn.allow_tf32 = precision == "tf32"
  torch.backends.cudnn.benchmark = True
  memory_format = MEMORY_FORMATS[layout]
  model = AlexNet(width=width, image_size=image_size)
  model = model.to(device=device, memory_format=memory_format)
  optimizer = make_optimizer(model)
  shape = (batch_size, 3, image_size, image_size)
  images = torch.randint(0, 256, shape).float() - 120.0
  images = images.to(device=device, memory_format=memory_format)
  labels = torch.randint(0, CLASSES, (batch_size,)).to(device)

  def find_loss() -> torch.Tensor:
    with torch.autocast(
      device, dtype=torch.bfloat16, enabled=precision == "bfloat16"
    ):
      return functional.cross_entropy(model(images), labels)

  if compile_mode:
    find_loss = torch.compile(find_loss, mode=compile_mode)

  def run_steps(count: int) -> float:
    for _ in range(count):
      optimizer.zero_grad()
      loss = find_loss()
      loss.backward()
      optimizer.step()
    if device == "cuda":
      torch.cuda.synchronize()
    return loss.item()

  facts = {"version": f"torch {torch.__version__}"}
  if device == "cuda":
    facts |= {
      "device": torch.cuda.get_device_name(),
      "matmul.allow_tf32": torch.backends.cuda.matmul.allow_tf32,
      "cudnn.allow_tf32": torch.backends.cudnn.allow_tf32,
    }
  else:
    facts |= {"device": device, "threads": torch.get_num_threads()}
  return run_steps, facts


if __name__ == "__main__":
  worker.serve(make)
