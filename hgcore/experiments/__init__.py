"""What the notebooks train, measure and draw, by the paper that it comes from."""

from hgcore.experiments import peers, peers_buffer, peers_forward, peers_gpu, peers_implicit
from hgcore.experiments.alphabets import (
    alphabets_and_turned,
    deal,
    evenly,
    losses_by_task,
    mixed,
    shared,
    sharing,
    turned,
)
from hgcore.experiments.atlas import (
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
from hgcore.experiments.cleaning import corrupted, f1, weighted_examples
from hgcore.experiments.drmad2016 import (
    BigIntegers,
    as_in_2015,
    as_released,
    dealt,
    retrained_error,
    scaled,
    slices,
    unit_penalties,
    units,
)
from hgcore.experiments.franceschi2017 import (
    allowed,
    random_search,
    running,
    studied,
    study,
    trial,
    tuned,
)
from hgcore.experiments.inverses import (
    Misprinted,
    OuterProducts,
    ReleasedConjugateGradient,
    Unscaled,
    exactly,
    exchanged,
    hessian,
    houses,
    linear_houses,
    minimum,
    nearness,
    weigh,
)
from hgcore.experiments.lorraine2020 import first_weights, joined, weight_decays
from hgcore.experiments.maclaurin2015 import (
    LOGISTIC,
    constant,
    learned_data,
    loss,
    penalised,
    scheduled,
    schedules,
    slides,
    sliding,
    valley,
)
