"""Writes files of weights as other programs do, for tests of the import.

Messages of Protocol Buffers by Google's library, with descriptors typed in from
Caffe's caffe.proto; pickles by Python's, as PyTorch and Python 2 make them.
Nothing here uses what is tested.
"""

from __future__ import annotations

import collections
import io
import pickle
import sys
import types
import zipfile
from unittest import mock

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_KINDS = {
  "string": descriptor_pb2.FieldDescriptorProto.TYPE_STRING,
  "float": descriptor_pb2.FieldDescriptorProto.TYPE_FLOAT,
  "double": descriptor_pb2.FieldDescriptorProto.TYPE_DOUBLE,
  "uint32": descriptor_pb2.FieldDescriptorProto.TYPE_UINT32,
  "int32": descriptor_pb2.FieldDescriptorProto.TYPE_INT32,
  "int64": descriptor_pb2.FieldDescriptorProto.TYPE_INT64,
  "bool": descriptor_pb2.FieldDescriptorProto.TYPE_BOOL,
}
# Messages of src/caffe/proto/caffe.proto: "type name number", * for repeated, #
# for repeated and packed.
_CAFFE = {
  "BlobShape": ["int64# dim 1"],
  "BlobProto": [
    *("int32 num 1", "int32 channels 2", "int32 height 3", "int32 width 4"),
    *("float# data 5", "float# diff 6", "BlobShape shape 7"),
    *("double# double_data 8",),
  ],
  "ConvolutionParameter": [
    *("uint32 num_output 1", "bool bias_term 2", "uint32* pad 3"),
    *("uint32* kernel_size 4", "uint32 group 5", "uint32* stride 6"),
    *("uint32 pad_h 9", "uint32 pad_w 10", "uint32* dilation 18"),
  ],
  "InnerProductParameter": ["uint32 num_output 1", "bool bias_term 2"],
  "LRNParameter": [
    *("uint32 local_size 1", "float alpha 2", "float beta 3"),
    *("int32 norm_region 4", "float k 5"),
  ],
  "PoolingParameter": [
    *("int32 pool 1", "uint32 kernel_size 2", "uint32 stride 3"),
    *("uint32 pad 4",),
  ],
  "DropoutParameter": ["float dropout_ratio 1"],
  "ReLUParameter": ["float negative_slope 1"],
  "TransformationParameter": [
    *("float scale 1", "bool mirror 2", "uint32 crop_size 3"),
    *("string mean_file 4", "float* mean_value 5"),
  ],
  "DataParameter": [
    *("string source 1", "uint32 batch_size 4", "uint32 crop_size 5"),
    *("string mean_file 3",),
  ],
  "NetStateRule": ["int32 phase 1"],
  "LayerParameter": [
    *("string name 1", "string type 2", "string* bottom 3", "string* top 4"),
    *("BlobProto* blobs 7", "NetStateRule* include 8"),
    *("TransformationParameter transform_param 100",),
    *("ConvolutionParameter convolution_param 106",),
    *("DataParameter data_param 107", "DropoutParameter dropout_param 108"),
    *("InnerProductParameter inner_product_param 117",),
    *("LRNParameter lrn_param 118", "PoolingParameter pooling_param 121"),
    *("ReLUParameter relu_param 123",),
  ],
  "V1LayerParameter": [
    *("string* bottom 2", "string* top 3", "string name 4", "int32 type 5"),
    *("BlobProto* blobs 6", "float* blobs_lr 7"),
    *("ConvolutionParameter convolution_param 10",),
    *("DataParameter data_param 11", "DropoutParameter dropout_param 12"),
    *("InnerProductParameter inner_product_param 17",),
    *("LRNParameter lrn_param 18", "PoolingParameter pooling_param 19"),
    *("ReLUParameter relu_param 30", "NetStateRule* include 32"),
    *("TransformationParameter transform_param 36",),
  ],
  "NetParameter": [
    *("string name 1", "V1LayerParameter* layers 2", "string* input 3"),
    *("int32* input_dim 4", "LayerParameter* layer 100"),
  ],
}
_OLD_TYPES = {
  **{"Convolution": 4, "Data": 5, "Dropout": 6, "InnerProduct": 14, "LRN": 15},
  **{"Pooling": 17, "ReLU": 18, "SoftmaxWithLoss": 21, "Sigmoid": 19},
  **{"Accuracy": 1, "Split": 22},
}


def make_messages() -> dict[str, type]:
  """Makes the classes of Caffe's messages, by name."""
  file = descriptor_pb2.FileDescriptorProto(name="caffe.proto", package="caffe")
  for name, fields in _CAFFE.items():
    message = file.message_type.add(name=name)
    for line in fields:
      kind, field, number = line.split()
      added = message.field.add(name=field, number=int(number))
      added.label = added.LABEL_REPEATED if kind[-1] in "*#" else 1
      if kind[-1] == "#":
        added.options.packed = True
      kind = kind.rstrip("*#")
      if kind in _KINDS:
        added.type = _KINDS[kind]
      else:
        added.type, added.type_name = added.TYPE_MESSAGE, f".caffe.{kind}"
  pool = descriptor_pool.DescriptorPool()
  pool.Add(file)
  return {
    name: message_factory.GetMessageClass(
      pool.FindMessageTypeByName(f"caffe.{name}")
    )
    for name in _CAFFE
  }


def caffe_layers(arrays, *, pools_first: bool, crop: int) -> list[dict]:
  """The layers of bvlc_alexnet, or of CaffeNet, as train_val.prototxt has them.

  Args:
    arrays: {layer: {"weight", "bias"}}.
    pools_first: as CaffeNet does.
  """
  data = {
    "name": "data",
    "type": "Data",
    "top": ["data", "label"],
    "transform_param": {
      **{"mirror": True, "crop_size": crop},
      "mean_file": "data/ilsvrc12/imagenet_mean.binaryproto",
    },
    "data_param": {"source": "examples/imagenet", "batch_size": 256},
  }
  layers, blob = [data], "data"

  def add(name, kind, bottom, top=None, **parameters):
    layers.append(
      {
        **{"name": name, "type": kind, "bottom": [bottom]},
        "top": [top or name],
        **parameters,
      }
    )
    return top or name

  lrn = {"local_size": 5, "alpha": 1e-4, "beta": 0.75}
  pool = {"pool": 0, "kernel_size": 3, "stride": 2}
  for number, stride, padding, group in (
    *((1, 4, 0, 1), (2, 1, 2, 2), (3, 1, 1, 1), (4, 1, 1, 2), (5, 1, 1, 2)),
  ):
    name = f"conv{number}"
    weight = arrays[name]["weight"]
    convolution = {
      "num_output": len(weight),
      "kernel_size": [weight.shape[-1]],
      "stride": [stride],
    }
    convolution |= {"pad": [padding]} if padding else {}
    convolution |= {"group": group} if group > 1 else {}
    blob = add(
      *(name, "Convolution", blob),
      convolution_param=convolution,
      blobs=[weight, arrays[name]["bias"]],
    )
    add(f"relu{number}", "ReLU", blob, blob)
    steps = [
      lambda x, n=number: add(f"norm{n}", "LRN", x, lrn_param=dict(lrn)),
      lambda x, n=number: add(
        f"pool{n}", "Pooling", x, pooling_param=dict(pool)
      ),
    ]
    if number in (1, 2):
      for step in reversed(steps) if pools_first else steps:
        blob = step(blob)
    elif number == 5:
      blob = steps[1](blob)
  for name in ("fc6", "fc7", "fc8"):
    weight = arrays[name]["weight"]
    blob = add(
      *(name, "InnerProduct", blob),
      inner_product_param={"num_output": len(weight)},
      blobs=[weight, arrays[name]["bias"]],
    )
    if name != "fc8":
      add(f"relu{name[2]}", "ReLU", blob, blob)
      add(
        *(f"drop{name[2]}", "Dropout", blob, blob),
        dropout_param={"dropout_ratio": 0.5},
      )
  layers.append(
    {
      **{"name": "loss", "type": "SoftmaxWithLoss"},
      **{"bottom": [blob, "label"], "top": ["loss"]},
    }
  )
  return layers


def write_caffemodel(layers, *, form: str, **fields) -> bytes:
  """Serializes layers as Caffe does.

  Args:
    layers: from `caffe_layers`.
    form: "new", with a shape for each array; or "old", with four dimensions.
    fields: others of the net.
  """
  messages = make_messages()
  net = messages["NetParameter"](**{"name": "AlexNet"} | fields)
  for layer in layers:
    values = {key: value for key, value in layer.items() if key != "blobs"}
    if form == "old":
      values["type"] = _OLD_TYPES[values["type"]]
    made = (net.layer if form == "new" else net.layers).add(**values)
    for array in layer.get("blobs", []):
      blob = made.blobs.add(data=np.ravel(array).tolist())
      if form == "new":
        blob.shape.dim.extend(array.shape)
      else:
        shape = (1,) * (4 - array.ndim) + array.shape
        blob.num, blob.channels, blob.height, blob.width = shape
  return net.SerializeToString()


def write_npy(arrays, *, python: int = 2) -> bytes:
  """Writes {layer: [kernel, bias]} as `np.save` did under Python 2 or does now.

  In Python 2 text was bytes, and the module of `_reconstruct` had its old name.
  """
  content = {name: list(pair) for name, pair in arrays.items()}
  file = io.BytesIO()
  np.save(file, np.array(content, dtype=object), allow_pickle=True)
  if python == 3:
    return file.getvalue()
  header = file.getvalue()[:128]
  return header + _Python2Pickler.dumps(np.array(content, dtype=object))


class _Python2Pickler(pickle._Pickler):
  """Pickles text and bytes as the `str` of Python 2."""

  dispatch = pickle._Pickler.dispatch.copy()

  @classmethod
  def dumps(cls, value) -> bytes:
    file = io.BytesIO()
    cls(file, protocol=2, fix_imports=True).dump(value)
    return file.getvalue().replace(
      b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"
    )

  def _save_text(self, value):
    data = value if isinstance(value, bytes) else value.encode("latin1")
    size = len(data)
    self.write(
      pickle.SHORT_BINSTRING + bytes([size]) + data
      if size < 256
      else pickle.BINSTRING + size.to_bytes(4, "little") + data
    )
    self.memoize(value)

  dispatch[bytes] = dispatch[str] = _save_text


class _Storage:
  """What a tensor of PyTorch is a view of."""

  def __init__(self, kind: type, key: str, values: np.ndarray):
    self.kind, self.key, self.values = kind, key, values


class _Tensor:
  """A tensor as `torch.save` pickles it."""

  def __init__(self, rebuild, storage, offset, size, stride):
    self.arguments = (storage, offset, size, stride, False)
    self.rebuild = rebuild

  def __reduce__(self):
    return self.rebuild, (*self.arguments, collections.OrderedDict())


# torch/serialization.py: MAGIC_NUMBER.
_MAGIC = 0x1950A86A20F9469CFC6C
_TORCH_TYPES = {
  "float32": "FloatStorage",
  "float16": "HalfStorage",
  "bfloat16": "BFloat16Storage",
  "float64": "DoubleStorage",
  "int64": "LongStorage",
}


def write_pth(
  arrays,
  *,
  wrap=lambda state: state,
  strides=None,
  extra=None,
  folder: str = "archive",
  old: bool = False,
) -> bytes:
  """Writes a state dict as `torch.save` does since version 1.6.

  Args:
    arrays: {name: array}.
    wrap: makes what is saved of the state dict.
    strides: {name: (offset, size, strides)} of tensors that are other views.
    extra: {entry: bytes}, more entries of the zip file.
    old: as it did before, without a zip file.
  """
  fake, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")

  def rebuild(*_):
    raise AssertionError

  rebuild.__module__, rebuild.__qualname__ = (
    utils.__name__,
    "_rebuild_tensor_v2",
  )
  utils._rebuild_tensor_v2 = rebuild
  storages, state = [], collections.OrderedDict()
  for index, (name, array) in enumerate(arrays.items()):
    kind_name = _TORCH_TYPES[array.dtype.name]
    if not hasattr(fake, kind_name):
      setattr(fake, kind_name, type(kind_name, (), {"__module__": "torch"}))
    storage = _Storage(getattr(fake, kind_name), str(index), np.ravel(array))
    storages.append(storage)
    step = np.cumprod((1, *array.shape[:0:-1]))[::-1]
    offset, size, stride = (strides or {}).get(
      name, (0, array.shape, tuple(map(int, step))[: array.ndim])
    )
    state[name] = _Tensor(rebuild, storage, offset, size, stride)
  state._metadata = collections.OrderedDict({"": {"version": 1}})

  class Pickler(pickle.Pickler):
    def persistent_id(self, value):
      if not isinstance(value, _Storage):
        return None
      count = value.values.size
      end = (None,) if old else ()
      return "storage", value.kind, value.key, "cpu", count, *end

  file = io.BytesIO()
  modules = {"torch": fake, "torch._utils": utils}
  with mock.patch.dict(sys.modules, modules):
    Pickler(file, protocol=2).dump(wrap(state))
  if old:
    machine = {"protocol_version": 1001, "little_endian": True}
    keys = sorted(one.key for one in storages)
    by_key = {one.key: one.values for one in storages}
    return b"".join(
      [
        *(pickle.dumps(one, 2) for one in (_MAGIC, 1001, machine)),
        *(file.getvalue(), pickle.dumps(keys, 2)),
        *(
          by_key[key].size.to_bytes(8, "little") + by_key[key].tobytes()
          for key in keys
        ),
      ]
    )
  entries = {
    "data.pkl": file.getvalue(),
    "byteorder": b"little",
    **{f"data/{one.key}": one.values.tobytes() for one in storages},
    "version": b"3\n",
  }
  return write_zip(
    {f"{folder}/{name}": data for name, data in entries.items()} | (extra or {})
  )


def write_zip(entries, *, compression=zipfile.ZIP_STORED) -> bytes:
  file = io.BytesIO()
  with zipfile.ZipFile(file, "w", compression) as archive:
    for name, data in entries.items():
      archive.writestr(name, data)
  return file.getvalue()
