"""Processes that tests start and kill, and all that came of them."""

import os
import subprocess
import sys
import time
import uuid
from pathlib import Path

import psutil


class Family:
    """A process that says "ready", and its children and theirs, which its environment marks."""

    def __init__(self, arguments, **options):
        self.mark = uuid.uuid4().hex
        paths = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "MARK": self.mark}
        self.process = subprocess.Popen(
            [sys.executable, *arguments],
            env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options,
        )  # fmt: skip
        assert self.process.stdout.readline() == "ready\n"

    def members(self):
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("MARK") == self.mark:
                    found.append(process)
            except psutil.Error:
                pass
        return [each for each in found if each.status() != psutil.STATUS_ZOMBIE]

    def end(self):
        """What it says until it ends. Not by `communicate`, which forgets what was read ahead with
        the first line."""
        with self.process:
            return self.process.stdout.read(), self.process.stderr.read()

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        self.process.stderr.close()

    def orphans(self, seconds):
        """What is left after that time at the latest; it is ended."""
        deadline = time.monotonic() + seconds
        while (left := self.members()) and time.monotonic() < deadline:
            time.sleep(0.1)
        for each in left:
            each.kill()
        return left
