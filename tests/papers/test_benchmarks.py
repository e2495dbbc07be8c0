"""The race: other libraries compute what hgcore computes; what needs a GPU runs without one."""

import numpy as np
import pytest

from hgcore.benchmarks import baselines, gpu, peers
from hgcore.optimizers import AdamW
from hgcore.suite import meter

pytest.importorskip("hgcore.fast", reason="the race uses losses of fast/")

TASK = baselines.Task((5, 4, 3), 6, 6)
ALL = peers.THEIRS | peers.OURS


@pytest.mark.parametrize("name", [name for name in ALL if name != "plain torch loop"])
def test_entrants_agree(name):
    """Fixed point rounds at 2**-53 a step."""
    if library := peers.LIBRARIES.get(name.split(",")[0]):
        pytest.importorskip(library)
    grad, expected = (np.asarray(ALL[entrant](TASK)()) for entrant in (name, "plain torch loop"))
    assert peers.max_error({name: grad}, expected) < 1e-11


def test_peak_memory_of_reversible_is_small():
    """Stored and the plain loop keep one state or more for each of 300 steps."""
    task = baselines.Task((50, 30, 3), 40, 300)
    meter.release(call := ALL["Reversible"](task))
    assert meter.cost(call).peak < 100 * task.state_nbytes


def test_gpu_measures_run_on_a_cpu():
    assert gpu.bandwidth("cpu", 1000) > 0 and gpu.reversible_over_stored(TASK) > 0
    assert gpu.undone(TASK) and gpu.undone(TASK, AdamW(1e-3))
