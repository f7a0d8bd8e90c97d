"""A fake accelerator: tensors on the CPU that behave as those of a GPU do, in pure Python.

It has two devices, "fake:0" and "fake:1", with real values. Like CUDA it refuses to mix devices, to
make NumPy arrays of its tensors, and to draw with generators of another device. `machine` takes
float64 away from it, as Metal lacks it, or gives it so many bytes of memory. Gradients are computed
on the first device alone.
"""

import weakref
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType

import torch
from torch.utils import backend_registration
from torch.utils._pytree import tree_leaves, tree_map

from secondlens import devices

COUNT = 2
PLENTY = 2**40
MOVING = {"aten::copy_", "aten::_to_copy", "aten::_copy_from", "aten::_copy_from_and_resize"}
"""Operations that may see tensors of several devices."""
INDEXING = {"aten::index", "aten::index_put_", "aten::_index_put_impl_", "aten::index_put"}
"""Operations whose indices may be on the CPU."""
WIDE = (torch.float64, torch.complex128)


@dataclass
class Machine:
    """What the devices can do, and what they did."""

    float64: bool = True
    memory: int = PLENTY
    used: list[int] = field(default_factory=lambda: [0] * COUNT)
    peak: list[int] = field(default_factory=lambda: [0] * COUNT)
    held: set[int] = field(default_factory=set)

    def take(self, storage, number):
        """Count the memory of a storage until it is gone, once."""
        key, size = storage._cdata, storage.nbytes()
        if key in self.held:
            return
        if self.used[number] + size > self.memory:
            raise torch.OutOfMemoryError(
                f"fake out of memory. Tried to allocate {size} bytes: {self.used[number]} of "
                f"{self.memory} are in use."
            )
        self.held.add(key)
        self.used[number] += size
        self.peak[number] = max(self.peak[number], self.used[number])
        weakref.finalize(storage, self._give_back, key, size, number).atexit = False

    def _give_back(self, key, size, number):
        self.held.discard(key)
        self.used[number] -= size


MACHINE = Machine()


@contextmanager
def machine(*, float64=True, memory=PLENTY):
    """Inside the `with`, the devices can do no more than this; `memory` comes on top of what is
    used already."""
    MACHINE.float64, MACHINE.memory = float64, memory + max(MACHINE.used)
    MACHINE.peak = list(MACHINE.used)
    devices.has_float64.cache_clear()
    try:
        yield MACHINE
    finally:
        MACHINE.float64, MACHINE.memory = True, PLENTY
        devices.has_float64.cache_clear()


class FakeTensor(torch.Tensor):
    """A tensor on a fake device; `host` holds its numbers."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, real, device):
        if real.dtype in WIDE and not MACHINE.float64:
            raise TypeError(
                "Cannot convert a fake Tensor to float64 dtype as the fake framework doesn't "
                "support float64. Please use float32 instead."
            )
        MACHINE.take(real.untyped_storage(), device.index)
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            real.size(),
            strides=real.stride(),
            storage_offset=real.storage_offset(),
            dtype=real.dtype,
            layout=real.layout,
            device=device,
        )
        made.host = real
        return made

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        return run(operation, args, kwargs or {})

    # because of these two, torch swaps whole tensors where it would swap their memory
    def __tensor_flatten__(self):
        return ["host"], self.device

    @staticmethod
    def __tensor_unflatten__(inner, device, size, stride):
        return FakeTensor(inner["host"], device)

    def __reduce_ex__(self, protocol):
        is_parameter = isinstance(self, torch.nn.Parameter)
        return rebuilt, (self.host, str(self.device), is_parameter, self.requires_grad)

    def __repr__(self):
        return f"FakeTensor({self.host!r}, device={self.device})"

    def numpy(self, *_, **__):
        raise TypeError(
            f"can't convert {self.device} device type tensor to numpy. Use Tensor.cpu() to copy "
            "the tensor to host memory first."
        )

    def tolist(self):
        return self.cpu().tolist()


def rebuilt(real, device, is_parameter, requires_grad):
    """What was pickled, on the device that `torch.load` is told to put it on."""
    where = torch.device(torch._utils._get_restore_location(device))
    found = real if where.type == "cpu" else FakeTensor(real, place(where))
    found = torch.nn.Parameter(found) if is_parameter else found
    return found.requires_grad_(requires_grad)


def place(device):
    """A device with its number."""
    found = torch.device(device)
    if found.type == "fake" and (found.index or 0) >= COUNT:
        raise RuntimeError(f"fake error: invalid device ordinal {found.index}")
    return torch.device(found.type, found.index or 0) if found.type == "fake" else found


def run(operation, args, kwargs):
    """One operation on tensors of which one at least is fake."""
    given = tensors_by_name(operation, args, kwargs)
    fakes = [t for of_name in given.values() for t in of_name if isinstance(t, FakeTensor)]
    check_devices(operation, given, fakes)
    if any(isinstance(each, torch.Generator) for each in (*args, *kwargs.values())):
        raise RuntimeError("Expected a 'fake' device type for generator but found 'cpu'")
    target = fakes[0].device if fakes else torch.device("cpu")
    if kwargs.get("device") is not None:
        target, kwargs = place(kwargs["device"]), kwargs | {"device": torch.device("cpu")}
    if operation._schema.name == "aten::_fused_sdp_choice":
        return 0
    found = operation(*tree_map(host_of, args), **tree_map(host_of, kwargs))
    known = {id(fake.host): fake for fake in fakes}

    def on_device(result):
        if not isinstance(result, torch.Tensor):
            return result
        if id(result) not in known:
            return result if target.type == "cpu" else FakeTensor(result, target)
        same = known[id(result)]
        if same.shape != result.shape:  # squeezed in place
            same.data = FakeTensor(result, target)
        return same

    return tree_map(on_device, found)


def tensors_by_name(operation, args, kwargs):
    """The tensors of each argument, by the name it has in the operation's schema."""
    names = [each.name for each in operation._schema.arguments]
    named = dict(zip(names, args, strict=False)) | kwargs
    return {
        name: [leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor)]
        for name, value in named.items()
    }


def check_devices(operation, given, fakes):
    """Raise as CUDA does for tensors of several devices, but for numbers and indices on the CPU."""
    name = operation._schema.name
    if name in MOVING:
        return
    places = {fake.device for fake in fakes}
    for argument, tensors in given.items():
        free = name in INDEXING and argument == "indices"
        places |= {t.device for t in tensors if t.dim() and not free}
    if len(places) > 1:
        raise RuntimeError(
            "Expected all tensors to be on the same device, but found at least two devices, "
            f"{' and '.join(sorted(map(str, places)))}! (when calling {name})"
        )


def host_of(value):
    return value.host if isinstance(value, FakeTensor) else value


def _empty(size, dtype=None, layout=None, device=None, pin_memory=None, memory_format=None):
    layout = memory_format or torch.contiguous_format
    real = torch.empty(size, dtype=dtype, device="cpu", memory_format=layout)
    return FakeTensor(real, place(device))


def _empty_strided(size, stride, dtype=None, layout=None, device=None, pin_memory=None):
    return FakeTensor(torch.empty_strided(size, stride, dtype=dtype, device="cpu"), place(device))


def _made(operation):
    """The kernel of an operation that makes a tensor and finds its size by itself."""

    def kernel(*args, device=None, **kwargs):
        if any(isinstance(each, torch.Generator) for each in (*args, *kwargs.values())):
            raise RuntimeError("Expected a 'fake' device type for generator but found 'cpu'")
        return FakeTensor(operation(*args, device=torch.device("cpu"), **kwargs), place(device))

    return kernel


def _copy_from(source, target, non_blocking=False):
    host_of(target).copy_(host_of(source))
    return target


def _module():
    """What torch asks of the module of a device."""
    found = ModuleType("torch.fake")
    found.is_available = found.is_initialized = lambda: True
    found.device_count = lambda: COUNT
    found.current_device = lambda: 0
    found.get_amp_supported_dtype = lambda: [torch.float16, torch.bfloat16]
    found.mem_get_info = lambda device=None: (
        MACHINE.memory - MACHINE.used[place(device or "fake").index],
        MACHINE.memory,
    )
    found._is_in_bad_fork = lambda: False
    found._lazy_init = found.manual_seed_all = found.synchronize = lambda *_: None
    return found


torch.utils.rename_privateuse1_backend("fake")
torch._register_device_module("fake", _module())
torch._C._acc.register_python_privateuseone_device_guard(backend_registration._DummyDeviceGuard())
torch._C._acc.register_python_privateuseone_hook(backend_registration._DummyPrivateUse1Hook())
_library = torch.library.Library("aten", "IMPL")
for _name, _kernel in (
    ("empty.memory_format", _empty),
    ("empty_strided", _empty_strided),
    ("_copy_from", _copy_from),
):
    _library.impl(_name, _kernel, "PrivateUse1")
for _name in ("arange", "eye", "linspace", "randperm", "triu_indices", "tril_indices"):
    _packet = getattr(torch.ops.aten, _name)
    for _overload in _packet.overloads():
        _operation = getattr(_packet, _overload)
        if "device" in [each.name for each in _operation._schema.arguments]:
            _library.impl(_operation, _made(_operation), "PrivateUse1")
