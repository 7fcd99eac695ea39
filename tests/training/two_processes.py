"""What one of several processes does in test_distributed.py: train.py's parts, results to files.

torchrun --nproc_per_node=N two_processes.py FOLDER
"""

import sys
import warnings
from functools import partialmethod
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.utils.data import TensorDataset

import qkformer
from qkformer.data.loaders import evaluation_loader, training_loader
from qkformer.data.samples import Samples
from qkformer.data.source import DataConfig
from qkformer.training.checkpointing import RunState
from qkformer.training.config import ComputeConfig, Config, OptimizerConfig
from qkformer.training.distributed import announced, joined
from qkformer.training.evaluate import evaluate
from qkformer.training.learner import Learner
from qkformer.training.metrics import FiringRates
from qkformer.training.schedule import ScheduleConfig
from qkformer.training.train import Run, train_one_epoch

sys.path.insert(0, str(Path(__file__).parents[1]))
from training.few import SMALL, register

CPU = torch.device("cpu")
CLASSES = 3


class Unportable(Exception):
    """Cannot be rebuilt from its message alone, as pickle does it."""

    def __init__(self, what, how):
        super().__init__(f"{what} {how}")


def raising(error):
    raise error


def data(size):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (size, 1, 8, 8), dtype=torch.uint8, generator=generator)
    return Samples(TensorDataset(images, torch.randint(0, CLASSES, (size,), generator=generator)))


def prepare(images):
    return images.double() / 64 - 2


def model(frozen, seed=0, **options):
    torch.manual_seed(seed)
    size = {"T": 2, "neuron": "eager", **SMALL} | options
    made = qkformer.create_model("qkformer_4_384", num_classes=CLASSES, in_chans=1, **size).double()
    for module in made.modules():
        if frozen and isinstance(module, nn.BatchNorm2d):
            # statistics that do not depend on who has which part of the batch, nor on the data
            nn.init.constant_(module.bias, 0.15)
            module.eval()
            module.train = lambda mode=True, module=module: module
    return made


def trained(
    world,
    *,
    batch_size,
    accumulation=1,
    frozen=False,
    epochs=2,
    compiled=False,
    ema=None,
    **model_,
):
    """Weights after training on 24 images; SGD, so that gradients show as they are."""
    section = DataConfig(name="digits", image_size=8, batch_size=batch_size)
    config = Config(
        epochs=epochs,
        model={"name": "qkformer_4_384"},
        data=section,
        optimizer=OptimizerConfig(lr=0.1, accumulation_steps=accumulation, ema_decay=ema),
        schedule=ScheduleConfig("one_cycle"),
        compute=ComputeConfig(compile=compiled),
    )
    bare = model(frozen, **model_)
    bare.register_buffer("place", torch.tensor(-1), persistent=False)
    learner = Learner(bare, config, CPU, world)
    learner.model.place.fill_(world.rank)
    learner.optimizer = torch.optim.SGD(learner.model.parameters(), lr=0)
    exchanges = []
    if world.size > 1:

        def counted(group, bucket):
            exchanges.append(bucket.index())
            return allreduce_hook(group, bucket)

        learner.network.register_comm_hook(None, counted)
        learner.network.bucket_bytes_cap = 20_000  # that of compiling, which splits the graph by it
    place = {"rank": world.rank, "world_size": world.size, "accumulation": accumulation}
    loader = training_loader(data(24), section, CPU, seed=0, **place)
    augmented = SimpleNamespace(augment=lambda images, labels, _: (prepare(images), labels))
    run = Run(config, world, augmented, loader, {}, learner, lambda _: 0.1, RunState())
    for epoch in range(epochs):
        run.state.progress = None
        train_one_epoch(run, epoch)
    metrics = run.state.progress.total(world)
    rates = FiringRates(learner.model)
    with torch.no_grad():
        rates.measure(learner.model, prepare(data(24).source.tensors[0]))
    return {
        "parameters": {k: v.detach().clone() for k, v in learner.model.named_parameters()},
        "buffers": {k: v.clone() for k, v in learner.model.named_buffers()},
        "averaged": {whose: m.state_dict() for whose, m in learner.tested_models(world).items()},
        "exchanges": exchanges.count(0),
        "metrics": {k: metrics[k] for k in ("train_loss", "train_acc1", "gradient_norm")},
        "dead": [name for name, rate in rates.rates(world).items() if rate in (0, 1)],
    }


def tested(world, size, ssa):
    torch.manual_seed(0)
    made = model(frozen=True).eval()
    for module in made.modules():
        if hasattr(module, "ssa"):
            module.ssa = ssa
    section = DataConfig(name="digits", image_size=8, batch_size=4)
    loader = evaluation_loader(data(size), section, CPU, rank=world.rank, world_size=world.size)
    return evaluate(made, loader, prepare=prepare, device=CPU, world=world)


def results(world):
    """What is compared between two processes and one."""
    w = world.size  # one process does in several batches, or a larger one, what two do at once
    return {
        "per replica": trained(world, batch_size=4, accumulation=2 // w),
        "accumulated": trained(world, batch_size=2, accumulation=4 // w),
        "joint batch": trained(world, batch_size=8 // w, frozen=True),
        "averaged": trained(world, batch_size=4, accumulation=2 // w, ema=0.5, seed=world.rank),
        "testing": {size: tested(world, size, "fixed") for size in (3, 8, 9, 15)},
        "testing original": {size: tested(world, size, "original") for size in (9, 15)},
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.filterwarnings("error", ".*buffers", FutureWarning)  # of DistributedDataParallel
    register()
    with joined(announced(), CPU) as world:
        found = results(world)
        # Inductor takes a minute; what matters is how compiling and exchanging go together
        nn.Module.compile = partialmethod(nn.Module.compile, backend="aot_eager")
        dist._DEFAULT_FIRST_BUCKET_BYTES = 4000
        small = {"batch_size": 2, "accumulation": 2, "epochs": 1, "T": 1, "depths": (0, 0, 1)}
        found["plain"] = trained(world, **small)
        found["compiled"] = trained(world, **small, compiled=True)
        found["compiled parts"] = torch._dynamo.utils.counters["frames"]["ok"]
        found["largest"] = world.largest(world.rank, -world.rank)()
        found["gathered"] = world.gather(f"process {world.rank}")
        found["first"] = []
        for error in (ZeroDivisionError("division by zero"), Unportable("lost", "twice")):
            try:
                world.first(lambda error=error: raising(error))
            except Exception as caught:
                found["first"].append(f"{type(caught).__name__}: {caught}")
        torch.save(found, Path(sys.argv[1]) / f"{world.rank}.pth")
