"""Merging many cases: time grows with their number, memory does not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from raw_worlds import stripes, write_raw

SCRIPT = """
import json, resource, sys, time
from nnunetv2_conemos import cli
start = time.monotonic()
assert cli.main(["merge", *sys.argv[1:], "-np", "2"]) == 0
usage = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
print(json.dumps({"seconds": time.monotonic() - start, "kilobytes": usage}))
"""


def merged(target: str, *datasets: Path) -> dict:
    words = [sys.executable, "-c", SCRIPT, *map(str, datasets), "-o", target]
    done = subprocess.run(words, capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_a_thousand_cases_take_linear_time_and_flat_memory(nnunet_folders):
    raw = nnunet_folders / "nnUNet_raw"
    sizes = {"few": 125, "many": 500}
    for place, (name, size) in enumerate(sizes.items()):
        for half in (0, 1):
            labels = {"background": 0, f"organ{half}": 1}
            cases = {f"c{i}": stripes(1) for i in range(size)}
            write_raw(raw / f"Dataset{10 + 2 * place + half:03d}_{name}{half}", labels, cases)
    few = merged("Dataset100_Few", raw / "Dataset010_few0", raw / "Dataset011_few1")
    many = merged("Dataset101_Many", raw / "Dataset012_many0", raw / "Dataset013_many1")
    print(few, many)
    assert many["seconds"] < 6 * few["seconds"], "four times the cases"
    assert all(after < 1.3 * before for before, after in zip(few["kilobytes"], many["kilobytes"], strict=True))
