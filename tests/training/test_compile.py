"""torch.compile sees one graph without breaks, in training and in prediction.

In a process of its own: the run-time shape checks of the other tests would break the graph themselves.
"""

import json
import os
import subprocess
import sys

import pytest
from paths import ROOT


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["plain", "residual"])
def test_one_graph_and_no_breaks(kind):
    helpers = [str(ROOT), str(ROOT / "tests" / "helpers"), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(helpers)}
    done = subprocess.run([sys.executable, __file__, kind], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) >= 7, "three requests to each of at least two trainers, and one more to one of them"
    assert {tuple(counts) for counts in found.values()} == {(1, 0)}, found


def graphs(kind: str) -> dict[str, tuple[int, int]]:
    """(graphs, breaks) of every trainer's network for what training and prediction give it."""
    import torch
    from architectures import build, patch, plans
    from every_trainer import TRAINERS
    from torch._dynamo import explain

    from nnunetv2_conemos.methods import UniMOSTrainer
    from nnunetv2_conemos.methods.unimos.scale_fusion import Perturb
    from nnunetv2_conemos.records import Query

    image, labels = torch.randn(2, 1, *patch(2)), torch.tensor([[1], [2]])
    queries = {
        "query": Query(image, labels),
        "with modality": Query(image, labels, torch.tensor([1, 0])),
        "tensor": image,
    }
    found = {}
    for trainer in TRAINERS:
        network = build(trainer, plans(2, kind))
        own = {"views": Perturb(image)} if trainer is UniMOSTrainer else {}
        for name, request in (queries | own).items():
            torch._dynamo.reset()
            seen = explain(network)(request)
            found[f"{trainer.__name__} {name}"] = (seen.graph_count, seen.graph_break_count)
    return found


if __name__ == "__main__":
    print(json.dumps(graphs(sys.argv[1])))
