"""An accelerator for tests. NESTED_REFT_DEVICE names a real one, `cuda` or `mps`; without it one is pretended, whose
tensors lie in the CPU's memory and are computed there, under rules that are as strict as a GPU's."""

import os

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only

DEVICE = torch.empty(0, device=os.environ.get("NESTED_REFT_DEVICE", "meta")).device  # "cuda" is cuda:0 by now
CPU = torch.device("cpu")
PRETENDED = DEVICE.type == "meta"  # torch's own device without numbers: the one name that needs nothing of the machine


class Elsewhere(Tensor):
    """A tensor of the pretended accelerator; `inner` holds its numbers."""

    @staticmethod
    def __new__(cls, inner: Tensor):
        layout = {"strides": inner.stride(), "storage_offset": inner.storage_offset(), "dtype": inner.dtype}
        return Tensor._make_wrapper_subclass(cls, inner.shape, device=DEVICE, **layout)

    def __init__(self, inner: Tensor):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        raise AssertionError(f"{operation} on the accelerator, outside of `Accelerator`")


class Accelerator(TorchDispatchMode):
    """While it is entered, DEVICE works, and an operation on tensors of both devices is an error, CPU indices included;
    only a copy may have both, and a number may come from anywhere.

    waits: how often the CPU had to wait for a result: a copy to it, a number, or how many of a mask are true.
    """

    def __init__(self):
        super().__init__()
        self.waits, self.from_python = 0, FromPython()

    def __enter__(self):
        if PRETENDED:
            self.from_python.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        if PRETENDED:
            self.from_python.__exit__(*error)

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = operation.overloadpacket.__name__
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        mine = [x for x in tensors if (isinstance(x, Elsewhere) if PRETENDED else x.device == DEVICE)]
        others = [tuple(x.shape) for x in tensors if not any(x is each for each in mine) and x.dim()]
        if mine and others and name not in ("copy_", "_to_copy"):
            raise AssertionError(f"{operation}: {others} from the CPU, {[tuple(x.shape) for x in mine]} on {DEVICE}")
        if mine and PRETENDED and name == "_linalg_eigh":
            raise NotImplementedError(f"{operation}: Apple's GPU has none")
        to = args[0].device if name == "copy_" else kwargs["device"] if kwargs.get("device") else None
        self.waits += bool(mine) and (to == CPU or number_needed(name, args))
        if not PRETENDED:
            return operation(*args, **kwargs)
        on_cpu = kwargs | {"device": CPU} if kwargs.get("device") == DEVICE else kwargs
        args_, kwargs_ = tree_map_only(Elsewhere, lambda x: x.inner, (args, on_cpu))
        out = operation(*args_, **kwargs_)
        if to == DEVICE or (mine and to is None):
            out = tree_map_only(Tensor, Elsewhere, out)
        return return_and_correct_aliasing(operation, args, kwargs, out) if mine else out


def number_needed(name: str, args) -> bool:
    """Whether the CPU cannot go on without a number that the accelerator computes."""
    by_mask = name in ("index", "index_put", "index_put_") and any(
        x is not None and x.dtype == torch.bool for x in args[1]
    )
    return by_mask or name in ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero")


class FromPython(TorchFunctionMode):
    """What torch does not do for a pretended device by itself: to and from Python's lists."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if function is torch.tensor and kwargs.get("device") == DEVICE:
            return function(*args, **kwargs | {"device": CPU}).to(DEVICE)
        if function is Tensor.tolist and args[0].device == DEVICE:
            return args[0].cpu().tolist()
        return function(*args, **kwargs)
