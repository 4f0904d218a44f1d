"""Training that is killed three times and resumed gives the checkpoint of training that is not, bit by bit.

nnU-Net saves weights, optimiser, scaler and curves, but no state of any random generator: a resumed training draws
other patches. Here every epoch therefore seeds all generators, data are loaded in the training process, and one thread
computes; then nothing may differ. The same comparison without these seeds is reported beside it.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.run.run_training import maybe_load_checkpoint
from worlds import CONFIGURATION, NAME, make_trainer, world

from attack.children import run
from attack.faults import Fault, Trap
from attack.starting_points import use
from nnunetv2_conemos import methods

TRAINERS = ("ConditionalFiLMTrainer", "LabelSetFiLMTrainer", "MultiTalentTrainer", "HermesTrainer", "UniMOSTrainer")
EPOCHS, STEPS = 6, 4
LABELS = {"background": 0, "square": 1, "disc": 2, "third": 3}
SAVED = {"num_epochs": EPOCHS, "num_iterations_per_epoch": STEPS, "num_val_iterations_per_epoch": 2, "save_every": 1}


def trainer_class(name: str, seeded: bool, kill_at: int | None) -> type:
    """Return a trainer that seeds each epoch, if it shall, and kills its process at the n-th step of this run."""
    base = getattr(methods, name)

    class Interrupted(base):
        steps = 0

        def on_train_epoch_start(self) -> None:
            if seeded:
                seed_everything(self.current_epoch)
            super().on_train_epoch_start()

        def on_validation_epoch_start(self) -> None:
            if seeded:
                seed_everything(1000 + self.current_epoch)
            super().on_validation_epoch_start()

        def train_step(self, batch: dict) -> dict:
            self._count()
            return super().train_step(batch)

        def validation_step(self, batch: dict) -> dict:
            self._count()
            return super().validation_step(batch)

        def _count(self) -> None:
            self.steps += 1
            if self.steps == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    Interrupted.__name__ = Interrupted.__qualname__ = name
    return Interrupted


def seed_everything(seed: int) -> None:
    """Seed all generators that nnU-Net draws from."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def train(base: Path, name: str, seeded: bool, kill_at: int | None, operation: int | None) -> int:
    """Train or resume, as `nnUNetv2_train --c` does; be killed at a step, or at an operation on a file."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    seed_everything(0)
    trainer = make_trainer(base, trainer_class(name, seeded, kill_at), **SAVED)
    maybe_load_checkpoint(trainer, True, False)
    if operation is not None:
        Trap(base, Fault("KILL", operation)).arm()
    trainer.run_training()
    return 0


def write(base: Path) -> None:
    """Write a tiny preprocessed dataset with two sources and unlabelled cases."""
    use(base)
    os.environ |= {"nnUNet_n_proc_DA": "0"}
    world(base, LABELS, 2, "plain", unlabelled=True)


def compare(name: str, folder: Path, seed: int) -> list[dict[str, Any]]:
    """Compare uninterrupted and resumed training of one trainer; return a record with seeds, and one without."""
    records = []
    for seeded in (True, False):
        rng = random.Random(f"{seed} {name}")
        bases = [folder / f"resume_{name}_{kind}" for kind in ("through", "killed")]
        for base in bases:
            shutil.rmtree(base, ignore_errors=True)
            write(base)
        use(bases[0])
        through = run(lambda bases=bases, s=seeded: train(bases[0], name, s, None, None), limit=600)
        kills, statuses = 0, []
        late = range(STEPS + 3, 2 * STEPS + 5)  # in the second epoch of a run, so that each run leaves a checkpoint
        points = [(rng.choice(late), None), (None, rng.randint(2, 60)), (rng.choice(late), None)]
        for step, operation in [*points, (None, None)]:
            use(bases[1])
            words = (bases[1], name, seeded, step, operation)
            ended = run(lambda words=words: train(*words), limit=600)
            statuses.append(ended.status)
            kills += ended.status == -signal.SIGKILL
        record = {"trainer": name, "seeded": seeded, "kills": kills, "statuses": [through.status, *statuses]}
        if through.status or statuses[-1]:
            problem, printed = "training failed", (through.printed if through.status else ended.printed)[-800:]
            records.append(record | {"problem": problem, "printed": printed})
            continue
        differing = differences(*(final_checkpoint(base, name) for base in bases))
        problem = f"differ: {', '.join(differing[:5])}" if differing and seeded else ""
        records.append(record | {"differing": len(differing), "problem": problem})
        for base in bases:
            shutil.rmtree(base)
    return records


def final_checkpoint(base: Path, name: str) -> dict[str, Any]:
    """Read the final checkpoint of a training."""
    folder = base / "nnUNet_results" / NAME / f"{name}__nnUNetPlans__{CONFIGURATION}" / "fold_0"
    return torch.load(folder / "checkpoint_final.pth", map_location="cpu", weights_only=False)


def differences(one: Any, other: Any, where: str = "") -> list[str]:
    """Return the places where two checkpoints differ, but for the times of epochs."""
    if isinstance(one, dict) and isinstance(other, dict):
        keys = sorted({*one, *other}, key=str)
        parts = [(one.get(key), other.get(key), f"{where}.{key}".strip(".")) for key in keys]
    elif isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)) and len(one) == len(other):
        parts = [(a, b, f"{where}.{i}") for i, (a, b) in enumerate(zip(one, other, strict=True))]
    elif isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return [] if torch.equal(one, other) else [where]
    else:
        both_nan = one != one and other != other
        return [] if both_nan or np.array_equal(one, other) else [where]
    return [] if "timestamps" in where else [place for part in parts for place in differences(*part)]


def attempt(job: tuple[str, Path, int]) -> list[dict[str, Any]]:
    """Compare one trainer."""
    return compare(*job)
