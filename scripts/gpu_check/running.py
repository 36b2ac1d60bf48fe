"""Programs that are started with a limit of time, and the device's memory meanwhile."""

import json
import os
import signal
import subprocess
import tempfile
import threading
import time
from dataclasses import dataclass


class Skipped(Exception):
    """Why a part, or one side of a row, could not run."""


class Failed(Exception):
    """What disagreed, or which of our own programs ended badly."""


@dataclass(frozen=True)
class Ended:
    """A program that ended, or was ended at its limit."""

    code: int | None  # None: the limit came first
    printed: str
    errors: str
    seconds: float
    device_peak_mib: float | None

    def lines(self):
        """The JSON objects among the lines that it printed.

        >>> Ended(0, 'loading\\n{"a": 1}\\n{"cut off', '', 1.0, None).lines()
        [{'a': 1}]
        """
        found = []
        for line in self.printed.splitlines():
            try:
                found += [json.loads(line)] if line.startswith("{") else []
            except json.JSONDecodeError:
                pass  # the last line of a program that was ended
        return found

    def complaint(self):
        """Why it did not end well, in one line."""
        if self.code is None:
            return f"out of time after {self.seconds:.0f} s"
        lines = [line.strip() for line in (self.errors.strip() or self.printed.strip() or "without a word").splitlines()]
        first = next((at for at, line in enumerate(lines) if "error" in line.lower()), len(lines) - 1)
        return f"exit status {self.code}: {' '.join(lines[first:first + 3])[:300]}"


def run(command, limit_s, device="cpu", environment=None):
    """Runs `command` for `limit_s` seconds at most; its whole process group is ended then."""
    start = time.monotonic()
    with tempfile.TemporaryFile("w+") as printed, tempfile.TemporaryFile("w+") as errors, MemoryWatch(device) as memory:
        try:
            words, variables = list(map(str, command)), os.environ | (environment or {})
            child = subprocess.Popen(words, stdout=printed, stderr=errors, env=variables, start_new_session=True)
        except OSError as error:
            raise Skipped(f"{command[0]}: {error.strerror}") from error
        try:
            code = child.wait(max(limit_s, 0.0))
        except subprocess.TimeoutExpired:
            code = None
        finally:
            end(child)
        texts = []
        for file in (printed, errors):
            file.seek(0)
            texts.append(file.read())
    return Ended(code, *texts, time.monotonic() - start, memory.peak_mib)


def end(child):
    """Ends what still runs of a program that leads its own process group."""
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    child.wait()


class MemoryWatch:
    """The most memory that the device had in use above what it had before, MiB; None without a CUDA device."""

    def __init__(self, device):
        self.number = device.removeprefix("cuda:") if device.startswith("cuda:") else None
        self.peak_mib, self.stop = None, threading.Event()

    def used(self):
        command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "-i", self.number]
        return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    def watch(self, before):
        while not self.stop.wait(0.1):
            try:
                self.peak_mib = max(self.peak_mib or 0.0, self.used() - before)
            except (OSError, subprocess.CalledProcessError, ValueError):
                return

    def __enter__(self):
        if self.number is not None:
            try:
                self.thread = threading.Thread(target=self.watch, args=(self.used(),))
                self.thread.start()
            except (OSError, subprocess.CalledProcessError, ValueError):
                self.number = None
        return self

    def __exit__(self, *_):
        self.stop.set()
        if self.number is not None:
            self.thread.join()


class Budget:
    """The seconds of the whole check and of each part: a part gets its own, or what is left of the whole."""

    def __init__(self, whole_s, parts_s):
        self.whole_s, self.parts_s, self.start = whole_s, parts_s, time.monotonic()

    def left(self):
        return self.whole_s - (time.monotonic() - self.start)

    def of(self, part):
        """When the part must have ended, on the monotonic clock, and its seconds."""
        seconds = min(self.parts_s[part], self.left())
        if seconds < 1:
            raise Skipped(f"nothing was left of the {self.whole_s:.0f} s; run it alone: --part {part}")
        return Limit(seconds)


class Limit:
    """The time of one part."""

    def __init__(self, seconds):
        self.seconds, self.end = seconds, time.monotonic() + seconds

    def left(self):
        return self.end - time.monotonic()

    def check(self):
        if self.left() <= 0:
            raise Skipped(f"out of time: the budget of {self.seconds:.0f} s was spent before")
