"""What the notebooks train, measure and draw, by the paper that it comes from."""

from hgcore.papers.drmad2016 import (
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
from hgcore.papers.franceschi2017 import (
    allowed,
    random_search,
    running,
    studied,
    study,
    trial,
    tuned,
)
from hgcore.papers.franceschi2017_cleaning import corrupted, f1, weighted_examples
from hgcore.papers.lorraine2020 import first_weights, joined, weight_decays
from hgcore.papers.lorraine2020_inverses import (
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
from hgcore.papers.maclaurin2015 import (
    LOGISTIC,
    constant_schedule,
    learned_data,
    loss,
    penalised,
    schedule_layout,
    schedule_problem,
    slides,
    sliding,
    tied_problem,
    training_path,
    valley,
)
from hgcore.papers.maclaurin2015_sharing import (
    FIGURE_8,
    alphabet_tasks,
    losses_by_task,
    mixed_weights,
    rotated,
    sharing_problem,
    split_drawings,
    uniform_mixing,
    weight_correlations,
)
