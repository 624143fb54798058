"""Several processes fit one estimator."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pyro_iresnet.tables import columns, encoding
from pyro_iresnet.tables.data import RandomBatches, TableBatches

SCRIPT = Path(__file__).parent / "ddp_script.py"
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.mark.slow
@pytest.mark.parametrize("before", [[], TORCHRUN], ids=["alone", "torchrun"])
def test_all_have_the_same_flow(tmp_path, before):
    words = [sys.executable, "-W", "ignore", *before, SCRIPT, tmp_path]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert first["score"] == second["score"]
    assert first["history"] == second["history"]
    for name, value in first["weights"].items():
        assert torch.equal(second["weights"][name], value), name


@pytest.mark.parametrize(("processes", "share"), [(1, 51), (2, 26), (3, 17)])
def test_processes_share_the_rows_of_a_step(processes, share):
    values = np.arange(20.0)[:, None]
    column = encoding.FittedColumn.of("x", columns.Real(), "float64", values[:, 0])
    made = encoding.TableEncoding([column])
    batches = RandomBatches(values, None, np.arange(15), made, 51, 1)
    shared = TableBatches(batches, np.arange(15, 20))
    shared.trainer = SimpleNamespace(world_size=processes)
    shared.setup("fit")
    ((z,),) = shared.train_dataloader()
    assert z.shape == (share, 1)
