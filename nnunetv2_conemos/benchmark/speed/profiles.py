"""Where the time of an arm goes, by operator."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch.profiler import ProfilerActivity, profile

from nnunetv2_conemos.benchmark.speed.timing import Work, synchronise

OPERATORS = 15


def write_profile(file: Path, calls: Mapping[str, Work], device: str) -> None:
    """Write torch.profiler's table of one call each, the most expensive operators first."""
    on_gpu = device == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    parts = []
    for what, call in calls.items():
        with profile(activities=activities) as found:
            call()
            synchronise(device)
        order = "self_cuda_time_total" if on_gpu else "self_cpu_time_total"
        table = found.key_averages().table(sort_by=order, row_limit=OPERATORS, max_name_column_width=60)
        parts.append(f"{what}\n{table}\n")
    file.write_text("\n".join(parts))
