"""Timing, memory and the machine: the measurement of every figure of this folder."""

import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

import torch

T = TypeVar("T")


def interleaved(
    steps: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    inner: int,
    warmup: int = 4,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Return the median milliseconds of each step, all steps in turn in every round.

    Arguments:
        steps: the functions to time, by name.
        rounds: the number of rounds, over which the median is taken.
        inner: calls of one step in a round.
        warmup: calls of each step before the first round.
        clock: tells the time; ``time.process_time`` leaves out all other work of the machine.
    """
    found = by_clocks(steps, (clock,), rounds=rounds, inner=inner, warmup=warmup)
    return {name: ms for name, (ms,) in found.items()}


def by_clocks(
    steps: Mapping[str, Callable[[], object]],
    clocks: Sequence[Callable[[], float]] = (time.process_time, time.perf_counter),
    *,
    rounds: int,
    inner: int,
    warmup: int = 4,
) -> dict[str, tuple[float, ...]]:
    """Return the median milliseconds of each step by each clock; else as :func:`interleaved`."""
    for step in steps.values():
        for _ in range(warmup):
            step()
    times: dict[str, list[list[float]]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            starts = [clock() for clock in clocks]
            for _ in range(inner):
                step()
            spent = [clock() - start for clock, start in zip(clocks, starts, strict=True)]
            times[name].append([1e3 * s / inner for s in spent])
    return {
        name: tuple(statistics.median(values) for values in zip(*found, strict=True))
        for name, found in times.items()
    }


def in_fresh_process(function: Callable[..., T], *arguments: object) -> T:
    """Return ``function(*arguments)`` of a module, computed by a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def peak_memory(function: Callable[..., object], *arguments: object) -> float:
    """Return the MiB that ``function(*arguments)`` adds to the peak of a fresh process.

    Arguments:
        function: a function of a module, which another process can import. The imports of the
            module do not count; imports inside the function do.
        arguments: arguments of the function.
    """
    return in_fresh_process(_peak_of, function, arguments)


def _peak_of(function: Callable[..., object], arguments: tuple[object, ...]) -> float:
    before = high_water()
    function(*arguments)
    return high_water() - before


def high_water() -> float:
    """Return the peak of the resident memory of this process, MiB."""
    # getrusage would count the memory that the parent had when it started this process.
    return _status("VmHWM") / 1024


def resident_memory() -> float:
    """Return the KiB of memory that this process holds now."""
    return _status("VmRSS")


def _status(name: str) -> float:
    with open("/proc/self/status") as lines:
        return next(float(line.split()[1]) for line in lines if line.startswith(name))


def machine() -> str:
    """Describe processor, cores and versions in one line."""
    packages = ("torch", "pyro-ppl", "nflows", "normflows", "flowcon", "torchflows", "zuko")
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    return (
        f"{_processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads; Python "
        f"{platform.python_version()}, {versions}"
    )


def commit() -> str:
    """Name the commit of the code, and say whether code differs from the commit."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.check_output(command, text=True, stderr=subprocess.DEVNULL).strip()

    try:
        head = git("rev-parse", "--short", "HEAD")
        code = (":/pyro_iresnet", ":/benchmarks", ":!/benchmarks/results")
        changed = git("status", "--porcelain", "--", *code)
    except (OSError, subprocess.CalledProcessError):
        return "an unknown commit"
    return f"commit {head}" + (" with changes" if changed else "")


# Of the code that runs: a run takes hours, and the files may change meanwhile.
COMMIT = commit()


def origin() -> str:
    """Name the commit, the machine and the versions of a run that is made now."""
    return f"{COMMIT}: {machine()}"


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.split(":")[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
