"""Sources of pictures that give trouble, for tests of engines. Marks in a folder count over all
processes: what happened, and how often."""

import os
import resource
import signal
import time
import uuid

import torch

from secondlens.storage.remote import Unreachable


def mark(folder, name):
    (folder / f"{name}-{uuid.uuid4().hex}").touch()


def marks(folder, name):
    return len(list(folder.glob(f"{name}-*")))


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def fill_memory():
    """A real allocation beyond a real limit."""
    size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()  # noqa: SIM115, PTH123
    resource.setrlimit(resource.RLIMIT_AS, (size + 2**24, resource.RLIM_INFINITY))
    bytearray(2**32)


def fail():
    raise RuntimeError("a decoder tripped")


def be_unreachable():
    raise Unreachable("the store does not answer")


class Pictures:
    """Rows of a tensor; reading number `at` does something bad, the first few times.

    Every read leaves a mark, as does every trouble.
    """

    def __init__(self, images, folder, at=None, trouble=fail, times=1, seconds=0.0):
        self.images, self.folder = images, folder
        self.at, self.trouble, self.times, self.seconds = at, trouble, times, seconds
        self.ids = [f"image-{i}" for i in range(len(images))]

    def load(self, index):
        mark(self.folder, "read")
        if index == self.at and marks(self.folder, "trouble") < self.times:
            mark(self.folder, "trouble")
            self.trouble()
        time.sleep(self.seconds)
        return self.images[index]


def close(one, other):
    """The tolerances of results that several workers made."""
    assert one.layers == other.layers
    assert one.image_ids == other.image_ids
    for layer in one.layers:
        a, b = one[layer], other[layer]
        assert (a.mean - b.mean).norm() <= 1e-6 * b.mean.norm()
        assert torch.equal(a.top_images, b.top_images)
        torch.testing.assert_close(a.directions, b.directions, rtol=0, atol=1e-5)
        assert torch.equal(a.histogram, b.histogram)
