"""Start of ActNorms under torch.distributed: alike inside a wrapper, alone elsewhere."""

from datetime import timedelta
from functools import partial

import pyro.distributions as dist
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from pyro_iresnet import actnorm, iresnet_flow, iresnet_stack
from pyro_iresnet.hosts.nflows import PatientActNorm

RANKS = 2


class Loss(nn.Module):
    """The negative log-density of a flow, summed over rows."""

    def __init__(self, build):
        super().__init__()
        self.flow = build()

    def forward(self, x):
        if hasattr(self.flow, "log_prob"):
            return -self.flow.log_prob(x).sum()
        base = dist.Normal(torch.zeros(2), torch.ones(2)).to_event(1)
        return -dist.TransformedDistribution(base, [self.flow.inv]).log_prob(x).sum()


def rows(*counts, seed=0):
    """Make the rows of each rank, each of another distribution."""
    torch.manual_seed(seed)
    return [3 * i + (1 + i) * torch.randn(count, 2) for i, count in enumerate(counts)]


def check_equal(module):
    mine = torch.cat([p.detach().flatten() for p in module.parameters()])
    all_ranks = [torch.empty_like(mine) for _ in range(RANKS)]
    distributed.all_gather(all_ranks, mine)
    assert torch.equal(*all_ranks)


def check_moments(rank):
    for make in (actnorm, PatientActNorm):
        for counts in ((64, 64), (100, 3), (0, 20), (9, 7)):
            norm, parts = make(2), rows(*counts)
            DistributedDataParallel(norm)(parts[rank])
            together = torch.cat(parts)
            torch.testing.assert_close(norm.log_scale, -together.std(0).log())
            torch.testing.assert_close(norm.shift, -together.mean(0) / together.std(0))
            check_equal(norm)
        for counts in ((8, 7), (0, 0)):
            norm = make(2)
            DistributedDataParallel(norm)(rows(*counts)[rank])
            assert not norm.has_started()


def check_alone(rank):
    """Each rank has a flow of its own, and one of them makes no call."""
    for make in (actnorm, PatientActNorm):
        norm, mine = make(2 + rank), rows(50, 50)[rank].repeat(1, 2)[:, : 2 + rank]
        if rank == 0:
            norm(mine)
            torch.testing.assert_close(norm.shift, -mine.mean(0) / mine.std(0))
    distributed.barrier()


def check_training(rank):
    builds = partial(iresnet_stack, 2, 1, [4]), partial(iresnet_flow, 2, 1, hidden_features=4)
    for build in builds:
        torch.manual_seed(0)
        loss = Loss(build)
        model = DistributedDataParallel(loss)
        optimizer = torch.optim.Adam(loss.parameters(), 1e-2)
        for step in range(3):
            optimizer.zero_grad()
            model(rows(20, 4, seed=step)[rank]).backward()
            optimizer.step()
        check_equal(loss)


def check_group_of_wrapper(rank):
    alone = [distributed.new_group([i]) for i in range(RANKS)][rank]
    norm = actnorm(2)
    if rank == 0:
        # The other rank makes no call.
        model = DistributedDataParallel(norm, process_group=alone)
        torch.testing.assert_close(model(rows(50, 50)[0]).mean(0), torch.zeros(2))
    distributed.barrier()


def work(rank, folder):
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=RANKS,
        timeout=timedelta(seconds=60),
    )
    check_moments(rank)
    check_alone(rank)
    check_training(rank)
    check_group_of_wrapper(rank)
    distributed.destroy_process_group()


def test_starts_of_ranks(tmp_path):
    # A failed assertion of a rank is raised here.
    torch.multiprocessing.spawn(work, (str(tmp_path),), nprocs=RANKS)
