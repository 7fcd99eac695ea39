"""Loaders: the order follows from seed and epoch alone; testing sees every image once."""

import pytest
import torch
from torch.utils.data import Dataset, TensorDataset

from qkformer.data.datasets import DataConfig, DataError
from qkformer.data.loaders import EpochSampler, evaluation_loader, training_loader

CPU = torch.device("cpu")


class NoisyImages(Dataset):
    """Images that are augmented by the worker that loads them."""

    def __len__(self):
        return 20

    def __getitem__(self, index):
        return index + torch.rand(1), index


def config(**changes):
    return DataConfig(**{"name": "digits", "image_size": 8, "batch_size": 4, **changes})


def order(seed, epoch, **place):
    sampler = EpochSampler(30, seed=seed, **place)
    sampler.set_epoch(epoch)
    return list(sampler)


def test_an_epochs_order_follows_from_seed_and_epoch_alone():
    sampler = EpochSampler(30, seed=3)
    for epoch in (0, 1, 2):
        sampler.set_epoch(epoch)
        in_sequence = list(sampler)
        assert in_sequence == order(3, epoch)
        assert sorted(in_sequence) == list(range(30))


def test_orders_of_other_seeds_and_epochs_differ():
    orders = {tuple(order(seed, epoch)) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_processes_share_the_order_in_equal_parts(world_size):
    parts = [order(0, 5, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert {len(part) for part in parts} == {30 // world_size}
    together = [index for part in parts for index in part]
    assert len(set(together)) == len(together)


def test_training_batches_are_full():
    dataset = TensorDataset(torch.arange(10), torch.arange(10))
    loader = training_loader(dataset, config(), CPU, seed=0)
    assert [len(images) for images, _ in loader] == [4, 4]


@pytest.mark.parametrize("workers", [0, 2])
def test_epochs_are_the_same_after_a_restart(workers):
    def epochs(first):
        torch.manual_seed(0)
        loader = training_loader(NoisyImages(), config(workers=workers), CPU, seed=1)
        result = []
        for epoch in range(first, 3):
            loader.sampler.set_epoch(epoch)
            # without workers, images draw from the global numbers, which a checkpoint restores
            torch.manual_seed(epoch)
            result.append(torch.cat([images for images, _ in loader]))
        return result

    assert torch.equal(torch.stack(epochs(0)[1:]), torch.stack(epochs(1)))


def test_workers_noise_changes_from_epoch_to_epoch():
    loader = training_loader(NoisyImages(), config(workers=1), CPU, seed=1)
    noise = []
    for epoch in (0, 1):
        loader.sampler.set_epoch(epoch)
        noise.append({image % 1 for images, _ in loader for image in images.flatten().tolist()})
    assert not noise[0] & noise[1]


def test_testing_sees_every_image_once_and_leaves_the_global_random_numbers():
    dataset = TensorDataset(torch.arange(10), torch.arange(10))
    before = torch.get_rng_state()
    seen = torch.cat([images for images, _ in evaluation_loader(dataset, config(), CPU)])
    assert torch.equal(seen, torch.arange(10))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_batch_larger_than_the_data_is_refused():
    dataset = TensorDataset(torch.arange(10), torch.arange(10))
    with pytest.raises(DataError, match=r"data\.batch_size"):
        training_loader(dataset, config(batch_size=11), CPU, seed=0)
