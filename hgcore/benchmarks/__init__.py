"""The races against other libraries and the atlas of methods."""

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
