"""The peak of a process is its own."""

import subprocess
import sys

import numpy as np
import pytest

from nnunetv2_conemos.benchmark.memory import process_peak

CODE = "from nnunetv2_conemos.benchmark.memory import process_peak; print(process_peak())"


def test_the_peak_of_a_process_is_not_that_of_the_process_that_started_it():
    before = process_peak()
    if before is None:
        pytest.skip("this system does not tell")
    large = np.ones(400 * 2**20, np.uint8)
    assert process_peak() > 400, large.nbytes
    child = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert 5 < float(child.stdout) < 300
