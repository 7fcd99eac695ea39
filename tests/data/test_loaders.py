"""Loaders: what a batch holds follows from seed, epoch and position; testing sees all once."""

from itertools import chain

import pytest
import timm.data.distributed_sampler as timms
import torch
from data.numbered import CPU, Numbers, config, values

from qkformer.data.loaders import (
    EvaluationBatches,
    TrainingBatches,
    evaluation_loader,
    read,
    training_loader,
)
from qkformer.data.samples import Samples
from qkformer.data.source import DataError


def noisy(sample):
    """An augmentation: what is added differs for every sample and epoch."""
    return sample + torch.rand(1)


def order(size=30, batch_size=2, *, seed=0, epoch=0, done=0, **place):
    batches = TrainingBatches(size, batch_size, seed=seed, **place)
    batches.set_position(epoch, done)
    return list(batches)


def indices(batches):
    return [index for batch in batches for index, _ in batch]


def test_an_epochs_order_follows_from_seed_and_epoch_alone():
    batches = TrainingBatches(30, 2, seed=3)
    for epoch in (0, 1, 2):
        batches.set_position(epoch)
        assert list(batches) == list(batches) == order(seed=3, epoch=epoch)
        assert sorted(indices(batches)) == list(range(30))


def test_orders_and_sample_seeds_of_other_seeds_and_epochs_differ():
    orders = [order(seed=seed, epoch=epoch) for seed in range(4) for epoch in range(4)]
    assert len({tuple(indices(batches)) for batches in orders}) == 16
    assert len({key for batches in orders for batch in batches for key in batch}) == 16 * 30


@pytest.mark.parametrize("repeats", [1, 3])
@pytest.mark.parametrize("world_size", [2, 3, 7])
def test_processes_see_together_what_one_sees_that_accumulates(world_size, repeats):
    shares = [
        order(rank=rank, world_size=world_size, repeats=repeats) for rank in range(world_size)
    ]
    together = [batch for step in zip(*shares, strict=True) for batch in step]
    assert together == order(accumulation=world_size, repeats=repeats)


@pytest.mark.parametrize("repeats", [1, 3])
@pytest.mark.parametrize(("world_size", "accumulation"), [(1, 1), (2, 1), (1, 3), (2, 2)])
def test_an_epoch_goes_on_from_any_step_of_it(world_size, accumulation, repeats):
    options = dict(epoch=5, rank=world_size - 1, world_size=world_size, accumulation=accumulation)
    options["repeats"] = repeats
    whole = order(**options)
    step = 2 * world_size * accumulation
    for steps in range(30 // step + 1):
        assert order(done=steps * step, **options) == whole[steps * accumulation :]


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_repeated_samples_are_dealt_out_as_by_timm(world_size, monkeypatch):
    size, batch_size = 256, 8  # of which timm leaves out none
    shuffled = torch.tensor(indices(order(size, batch_size, seed=1)))
    monkeypatch.setattr(torch, "randperm", lambda *_, **__: shuffled)
    for rank in range(world_size):
        place = dict(rank=rank, world_size=world_size)
        ours = order(size, batch_size, seed=1, repeats=3, **place)
        assert indices(ours) == list(timms.RepeatAugSampler(range(size), world_size, rank))
        assert len(ours) == size // batch_size // world_size


def test_every_repetition_is_transformed_anew():
    keys = [key for batch in order(repeats=3) for key in batch]
    assert len({index for index, _ in keys}) == 10
    assert len({seed for _, seed in keys}) == len(keys) == 30


def test_training_batches_are_full_and_steps_whole():
    assert [len(batch) for batch in order(10, 4)] == [4, 4]
    assert len(order(22, 2, accumulation=3)) == 9  # three steps of three; two batches are left out


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epochs_samples_are_the_same_after_a_restart_and_with_other_workers(workers):
    def epoch(number, done, workers):
        loader = training_loader(Samples(Numbers(), noisy), config(workers=workers), CPU, seed=1)
        torch.manual_seed(number + done)  # must not matter
        loader.batch_sampler.set_position(number, done)
        return values(loader)

    whole = epoch(2, 0, 0)
    assert epoch(2, 8, workers) == whole[2:]
    noise = [{value % 1 for value in chain(*batches)} for batches in (whole, epoch(1, 0, workers))]
    assert noise[0].isdisjoint(noise[1])


def test_an_abandoned_pass_does_not_reach_into_the_next():
    loader = training_loader(Samples(Numbers(40)), config(workers=2), CPU, seed=1)
    batches = read(loader, "error")
    next(batches)
    loader.batch_sampler.set_position(1)
    fresh = training_loader(Samples(Numbers(40)), config(), CPU, seed=1)
    fresh.batch_sampler.set_position(1)
    assert values(loader) == values(fresh)


@pytest.mark.parametrize("size", [1, 7, 8, 9, 24])
@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_testing_sees_every_sample_once_in_the_same_batches(size, world_size):
    shares = [
        EvaluationBatches(size, 4, rank=rank, world_size=world_size) for rank in range(world_size)
    ]
    assert {share.longest for share in shares} == {len(shares[0])}
    batches = sorted(batch for share in shares for batch in share)
    assert batches == list(EvaluationBatches(size, 4))
    assert indices(batches) == list(range(size))


@pytest.mark.parametrize(("asked", "size"), [(None, 4), (3, 3), (20, 10)])
def test_testing_has_batches_of_its_own_size(asked, size):
    section = config(test_batch_size=asked)
    data = Samples(Numbers(10))
    tested = values(evaluation_loader(data, section, CPU))
    assert len(tested[0]) == size == min(section.evaluation_batch_size, 10)
    assert list(chain(*tested)) == list(range(10))
    assert len(values(training_loader(data, section, CPU, seed=0))[0]) == 4


def test_testing_leaves_the_global_random_numbers():
    before = torch.get_rng_state()
    seen = values(evaluation_loader(Samples(Numbers(10), noisy), config(), CPU))
    assert [int(value) for value in chain(*seen)] == list(range(10))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("place", [{"world_size": 3}, {"accumulation": 3}])
def test_a_step_larger_than_the_data_is_refused(place):
    with pytest.raises(DataError, match=r"data\.batch_size: .* training samples"):
        training_loader(Samples(Numbers(11)), config(), CPU, seed=0, **place)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_sample_stops_the_run_and_is_named(workers):
    loader = evaluation_loader(Samples(Numbers(broken=(5, 6))), config(workers=workers), CPU)
    message = r"cannot read sample 5: image file is truncated; likewise 1 more .*data\.on_damaged"
    with pytest.raises(DataError, match=message):
        values(loader)


def test_damaged_samples_are_left_out_and_told_on_request():
    loader = evaluation_loader(Samples(Numbers(8, broken=(5, 6))), config(), CPU)
    first, second = read(loader, "skip")
    assert (len(first.samples), first.damaged) == (4, ())
    assert second.samples.flatten().tolist() == second.targets.tolist() == [4, 7]
    assert [damaged.sample for damaged in second.damaged] == ["sample 5", "sample 6"]


@pytest.mark.parametrize("workers", [0, 1])
def test_what_is_left_out_is_named_once_however_often_it_is_met(capsys, workers):
    data = Samples(Numbers(16, broken=(5, 6)))
    loader = evaluation_loader(data, config(workers=workers), CPU)
    for _ in range(2):
        values(loader, "skip")
    assert capsys.readouterr().err.splitlines() == [
        "left out: sample 5: image file is truncated",
        "left out: sample 6: image file is truncated",
    ]
    with pytest.raises(DataError):
        values(evaluation_loader(data, config(), CPU))
    assert not capsys.readouterr().err  # the error itself has the name


def test_a_batch_of_which_nothing_is_left_is_an_error_all_the_same():
    loader = evaluation_loader(Samples(Numbers(8, broken=range(4, 8))), config(), CPU)
    with pytest.raises(DataError, match="sample 4"):
        values(loader, "skip")
