"""One change each to the network of 2012, and what it cost its authors.

    python -m alexnet_jax.main --config=configs/ablations.py:tanh
    python -m alexnet_jax.main --config=configs/ablations.py:tanh,imagenet

The name alone is the embedded default with that change, `NAME,imagenet` the
run of 2012 with it. Devices: one; any layout with --config.layout.name. Times:
those of one_device.py. Results on ImageNet: not measured. Below is the change
in top-1 / top-5 error, in points, that the authors report: [P] in the paper,
[S] with the number of the run in the notebook of the released code.

tanh, sigmoid         instead of ReLU. [P] tanh takes six times the epochs
                      to 25 % training error, with another network, on CIFAR-10
                      (benchmarks/results/activations.py)
lrn_off               no response normalization. +1.4 / +1.2 [P, S 148]
lrn2_off              none in block 2: no difference [S 167]
lrn_across            over the maps of both columns: not reported
lrn_k1                k = 1 instead of 2. -.14 / +.16 [S 135]
pooling_2x2           windows of 2 x 2, which do not overlap. +.4 / +.3 [P,
                      S 147, which also had other padding in conv2 and conv5
                      and rounded the sizes of its maps up]
stochastic_pool2      stochastic pooling in block 2: no gain [S 178]
one_gpu               one column of half the maps. +1.7 / +1.2 [P, S 145-half]
independent_columns   columns that meet at the logits only. +1.2 / +1.1 [S 150]
join_at_conv4         the columns meet one layer later: worse, stopped [S 132]
join_at_fc            or at fc6: clearly worse, stopped [S 127]
without_conv3         one middle convolution less. About +2 top-1 each [P]
without_conv4
without_conv5
no_color_noise        more than +1 top-1 [P]
scalar_mean           one mean for all pixels: no difference [S 136]
no_dropout            strong overfitting, half of the epochs [P]
dropout_after_conv4   a fifth of conv4's outputs dropped. +.16 / +.25 against
                      run 170 [S 177]
no_weight_decay       higher training error too [P]
"""

import ml_collections

from configs import default

# Name -> the fields that differ.
ABLATIONS = {
  "tanh": {"network.activation": "tanh"},
  "sigmoid": {"network.activation": "sigmoid"},
  "lrn_off": {"network.normalization": "none"},
  "lrn2_off": {"network.wiring": "without_lrn2"},
  "lrn_across": {"network.normalization": "across"},
  "lrn_k1": {"network.lrn_k": 1.0},
  "pooling_2x2": {"network.pooling": (2, 2)},
  "stochastic_pool2": {"network.wiring": "stochastic_pool2"},
  "one_gpu": {"network.wiring": "one_gpu"},
  "independent_columns": {"network.wiring": "independent_columns"},
  "join_at_conv4": {"network.wiring": "join_at_conv4"},
  "join_at_fc": {"network.wiring": "join_at_fc"},
  "without_conv3": {"network.wiring": "without_conv3"},
  "without_conv4": {"network.wiring": "without_conv4"},
  "without_conv5": {"network.wiring": "without_conv5"},
  "no_color_noise": {"augment.color_noise": 0.0},
  "scalar_mean": {"augment.mean": (117.3, 117.3, 117.3)},
  "no_dropout": {"network.dropout_rate": 0.0},
  "dropout_after_conv4": {"network.wiring": "dropout_after_conv4"},
  "no_weight_decay": {"optimizer.weight_decay": 0.0},
}


def get_config(variant: str = "lrn_off") -> ml_collections.ConfigDict:
  """The config of an ablation.

  Args:
    variant: a name of `ABLATIONS`, alone or with `,imagenet`.

  Raises:
    ValueError: there is no such ablation or variant.
  """
  name, _, size = variant.partition(",")
  if name not in ABLATIONS:
    raise ValueError(
      f"unknown ablation {name!r}, expected one of {', '.join(ABLATIONS)}. "
      "Set what follows ':' in --config."
    )
  config = default.get_config(size or "digits")
  if size != "imagenet" and name == "scalar_mean":
    return config  # the digits have one mean already
  config.update_from_flattened_dict(ABLATIONS[name])
  return config
