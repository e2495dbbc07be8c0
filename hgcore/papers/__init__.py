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
    cost_problem,
    random_search,
    rtho_constraints,
    rtho_layout,
    rtho_problem,
    run_cost_problem,
)
from hgcore.papers.franceschi2017_cleaning import corrupt_labels, f1_score, weighted_examples
from hgcore.papers.lorraine2020 import concatenate, initial_weights, weight_decays
from hgcore.papers.lorraine2020_inverses import (
    ReleasedConjugateGradient,
    boston_regression,
    boston_split,
    hessian,
    minimum,
    nearness,
    peak_memory,
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
