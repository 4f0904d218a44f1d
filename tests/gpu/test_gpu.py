"""On a CUDA device: mixed precision and torch.compile, which no processor shows. Run by `make gpu`."""

import numpy as np
import pytest
import torch
from every_trainer import TRAINERS
from worlds import make_trainer, shapes, train, write_world

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
DEVICE = "cuda"
LABELS = {"background": 0, "square": 1, "disc": 2}
SOURCES = {
    "A": {"cases": ["a*"], "annotated": ["square"]},
    "B": {"cases": ["b*"], "annotated": ["disc"]},
    "U": {"cases": ["u*"], "annotated": []},
}


def partly_annotated(base, dim):
    """Cases a* annotate squares, b* discs, u* nothing."""
    rng, cases = np.random.default_rng(0), {}
    for group, label in (("a", 1), ("b", 2), ("u", 0)):
        for i in range(6):
            image, target = shapes(rng, depth=16 if dim == 3 else 1)
            cases[f"{group}{i}"] = image, np.where(target == label, target, 0).astype(np.int8)
    write_world(base, cases, LABELS, SOURCES, dim=dim, batch_size=2)


@pytest.mark.parametrize("compiled", ["f", "t"])
@pytest.mark.parametrize(
    ("trainer", "dim"),
    [(t, dim) for t in TRAINERS for dim in t.method.dimensions],
    ids=lambda v: getattr(v, "__name__", v),
)
def test_steps_and_predictions_are_finite_in_mixed_precision(nnunet_folders, monkeypatch, trainer, dim, compiled):
    monkeypatch.setenv("nnUNet_compile", compiled)
    partly_annotated(nnunet_folders, dim)
    made = make_trainer(nnunet_folders, trainer, device=DEVICE)
    made.initialize()
    before = {name: value.clone() for name, value in made.bare_network.state_dict().items()}
    network = train(made, 5)
    after = made.bare_network.state_dict()
    assert all(value.isfinite().all() for value in after.values())
    assert any(not torch.equal(value, before[name]) for name, value in after.items()), "not every step was skipped"
    image = torch.randn(2, 1, *made.configuration_manager.patch_size, device=DEVICE)
    with torch.no_grad(), torch.autocast(DEVICE):
        answer = network(image)
    assert answer.shape == (2, 3, *image.shape[2:])
    assert answer.isfinite().all()
