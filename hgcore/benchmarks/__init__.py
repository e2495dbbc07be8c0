"""Races with other libraries, and one problem on which every method is measured (the atlas)."""

from hgcore.benchmarks import peers, peers_buffer, peers_forward, peers_gpu, peers_implicit
from hgcore.benchmarks.atlas import (
    Dialled,
    area,
    chart,
    contrasts,
    dialled,
    regression,
    spent,
    weighed,
    whitened,
    with_momentum,
)
