import platform
import subprocess
import sys

MEASURE = """
import resource, torch
from secondlens.commands.process import keep_freed_memory
kept = keep_freed_memory()
for _ in range(10):  # until small things no longer take room between
    torch.ones(2**24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    torch.ones(2**24)
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_large_tensors_reuse_pages_where_the_c_library_can():
    run = [sys.executable, "-c", MEASURE]
    kept, faults = subprocess.run(run, capture_output=True, text=True, check=True).stdout.split()
    assert (kept == "True") == (platform.libc_ver()[0] == "glibc")
    if kept == "True":
        assert int(faults) < 5 * 16384  # the pages of 5 fresh tensors of 64 MB, of 20


HOLES = """
import psutil
from secondlens.commands.process import give_back_memory
blocks = [b"x" * 2**16 for _ in range(2000)]
last = b"y" * 2**16  # what is freed below it stays
del blocks
process = psutil.Process()
before = process.memory_info().rss
print(give_back_memory(), before - process.memory_info().rss)
"""


def test_holes_are_given_back_where_the_c_library_can():
    run = [sys.executable, "-c", HOLES]
    given, size = subprocess.run(run, capture_output=True, text=True, check=True).stdout.split()
    assert (given == "True") == (platform.libc_ver()[0] == "glibc")
    if given == "True":
        assert int(size) > 100e6
