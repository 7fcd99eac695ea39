"""What one of several processes does in test_distributed.py: train.py's parts, results to files.

torchrun --nproc_per_node=N two_processes.py FOLDER
"""

import sys
from functools import partialmethod
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.utils.data import TensorDataset

import qkformer
from qkformer.data.loaders import evaluation_loader, training_loader
from qkformer.data.samples import Samples
from qkformer.data.source import DataConfig
from qkformer.training.config import ComputeConfig, Config
from qkformer.training.distributed import announced, joined
from qkformer.training.learner import Learner
from qkformer.training.loop import evaluate, train_one_epoch
from qkformer.training.optimizer import OptimizerConfig
from qkformer.training.schedule import ScheduleConfig

CPU = torch.device("cpu")
CLASSES = 3


def data(size):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (size, 1, 8, 8), dtype=torch.uint8, generator=generator)
    return Samples(TensorDataset(images, torch.randint(0, CLASSES, (size,), generator=generator)))


def prepare(images):
    return images.double() / 64 - 2


def model(frozen, **options):
    torch.manual_seed(0)
    size = {"T": 2, "embed_dim": 16, "num_heads": 2} | options
    made = qkformer.create_model("qkformer_4_384", num_classes=CLASSES, in_chans=1, **size).double()
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.bias, 0.7)  # neurons fire, so that gradients flow
            if frozen:  # statistics that do not depend on who has which part of the batch
                module.eval()
                module.train = lambda mode=True, module=module: module
    return made


def trained(world, *, batch_size, accumulation=1, frozen=False, epochs=2, compiled=False, **size):
    """Weights after training on 24 images; SGD, so that gradients show as they are."""
    section = DataConfig(name="digits", image_size=8, batch_size=batch_size)
    config = Config(
        epochs=epochs,
        model={"name": "qkformer_4_384"},
        data=section,
        optimizer=OptimizerConfig(lr=0.1, accumulation_steps=accumulation),
        schedule=ScheduleConfig("one_cycle"),
        compute=ComputeConfig(compile=compiled),
    )
    learner = Learner(model(frozen, **size), config, CPU, world)
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
    for epoch in range(epochs):
        progress = train_one_epoch(
            learner,
            loader,
            epoch=epoch,
            augment=lambda images, labels, _: (prepare(images), labels),
            learning_rate=lambda _: 0.1,
            world=world,
        )
    metrics = progress.metrics(world)
    return {
        "parameters": {k: v.detach().clone() for k, v in learner.model.named_parameters()},
        "buffers": {k: v.clone() for k, v in learner.model.named_buffers()},
        "exchanges": exchanges.count(0),
        "metrics": {k: metrics[k] for k in ("train_loss", "train_acc1", "gradient_norm")},
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
        "testing": {size: tested(world, size, "fixed") for size in (3, 8, 9, 15)},
        "testing original": {size: tested(world, size, "original") for size in (9, 15)},
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    with joined(announced(), CPU) as world:
        found = results(world)
        # Inductor takes a minute; what matters is how compiling and exchanging go together
        nn.Module.compile = partialmethod(nn.Module.compile, backend="aot_eager")
        dist._DEFAULT_FIRST_BUCKET_BYTES = 4000
        small = {"batch_size": 2, "accumulation": 2, "epochs": 1, "T": 1, "depths": (0, 0, 1)}
        found["plain"] = trained(world, **small)
        found["compiled"] = trained(world, **small, compiled=True)
        found["compiled parts"] = torch._dynamo.utils.counters["frames"]["ok"]
        found["largest"] = [world.largest(value) for value in (world.rank, -world.rank)]
        found["gathered"] = world.gather(f"process {world.rank}")
        try:
            world.first(lambda: 1 / 0)
        except ZeroDivisionError as error:
            found["first"] = str(error)
        torch.save(found, Path(sys.argv[1]) / f"{world.rank}.pth")
