import platform
import subprocess
import sys

MEASURE = """
import resource, torch
from secondlens.allocator import keep_freed_memory
kept = keep_freed_memory()
torch.ones(2**24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    torch.ones(2**24)
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_large_tensors_reuse_pages_where_the_c_library_can():
    run = [sys.executable, "-c", MEASURE]
    kept, faults = subprocess.run(run, capture_output=True, text=True, check=True).stdout.split()
    assert (kept == "True") == (platform.libc_ver()[0] == "glibc")
    if kept == "True":
        assert int(faults) < 1000  # a fresh tensor of 64 MB has 16,384 pages
