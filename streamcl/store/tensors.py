"""Named tensors and a JSON value as safetensors bytes, and back without copying."""

from __future__ import annotations

import json
import math
import struct
import warnings
from collections.abc import Mapping
from typing import Any

import safetensors.torch
import torch

from streamcl.errors import Corrupt, NotFinite

Buffer = bytes | bytearray | memoryview
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_META = "streamcl"


def pack(tensors: Mapping[str, torch.Tensor], meta: Mapping[str, Any]) -> bytes:
    """Tensors and `meta` as one safetensors file; equal ones give equal bytes.  Raises NotFinite."""
    check_finite(tensors)
    flat = {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(tensors.items())}
    seen: set[int] = set()
    for name, tensor in flat.items():  # safetensors refuses tensors that share memory
        if tensor.data_ptr() in seen:
            flat[name] = tensor.clone()
        seen.add(tensor.data_ptr())
    # one entry only: the order of several is not defined
    return bytes(safetensors.torch.save(flat, metadata={_META: json.dumps(meta, sort_keys=True, allow_nan=False)}))


def unpack(data: Buffer) -> tuple[dict[str, torch.Tensor], Any]:
    """What `pack` was given, names in order.  Raises Corrupt.

    The tensors are views of `data`: `data` may lie in shared memory, and nobody may write to them.
    """
    view = memoryview(data).cast("B")
    try:
        (length,) = struct.unpack_from("<Q", view)
        header = json.loads(bytes(view[8 : 8 + length]))
        meta = json.loads(header.pop("__metadata__")[_META])
        tensors = {name: _tensor(view[8 + length :], header[name]) for name in sorted(header)}
        check_finite(tensors)
    except (struct.error, ValueError, KeyError, TypeError, NotFinite) as error:
        raise Corrupt(f"{len(view)} bytes are not tensors that we wrote: {error!r}") from error
    return tensors, meta


def check_finite(tensors: Mapping[str, torch.Tensor]) -> None:
    """Raises NotFinite, naming the tensor."""
    for name, tensor in tensors.items():
        # NaN and infinity survive a sum, which allocates nothing; a sum may also overflow, so look closely then
        if tensor.is_floating_point() and not torch.isfinite(tensor.sum()) and not torch.isfinite(tensor).all():
            raise NotFinite(f"tensor {name!r} holds NaN or infinity")


def _tensor(body: memoryview, entry: Mapping[str, Any]) -> torch.Tensor:
    dtype, shape, (begin, end) = _DTYPES[entry["dtype"]], entry["shape"], entry["data_offsets"]
    count = math.prod(shape)
    if not 0 <= begin <= end <= len(body) or count * dtype.itemsize != end - begin or min(shape, default=0) < 0:
        raise ValueError(f"{shape} of {entry['dtype']} at {begin}-{end} of {len(body)} bytes")
    if not count:
        return torch.empty(shape, dtype=dtype)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not writable")
        return torch.frombuffer(body, dtype=dtype, count=count, offset=begin).reshape(shape)
