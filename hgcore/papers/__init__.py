"""What the notebooks train, measure and draw, by the paper that it comes from."""

from hgcore.papers.clarke2022 import (
    digits,
    house_prices,
    random_update,
    update_constraints,
    update_problems,
)
from hgcore.papers.drmad2016 import (
    as_in_2015,
    as_released,
    retrained_error,
    scaled,
    shuffled_splits,
    unit_layout,
    unit_penalties,
)
from hgcore.papers.franceschi2017 import cost_problem, run_cost_problem
from hgcore.papers.franceschi2017_cleaning import (
    corrupt_labels,
    f1_score,
    regressions,
    row_by_row,
    weighted_examples,
)
from hgcore.papers.franceschi2017_tasks import (
    as_matrix,
    binary,
    chosen,
    deal,
    edge_precision,
    generated,
    interaction_constraints,
    interaction_layout,
    interactions,
    linear_scores,
    multinomial,
    news,
    one_against_rest,
    photographs,
    tuning_and_final,
)
from hgcore.papers.lorraine2020 import (
    concatenate,
    initial_weights,
    train_in_parts,
    weight_decays,
)
from hgcore.papers.lorraine2020_inverses import (
    ReleasedConjugateGradient,
    boston_regression,
    boston_split,
    cosine,
    hessian,
    newton_minimum,
    peak_memory,
    relative_error,
)
from hgcore.papers.maclaurin2015 import (
    LOGISTIC,
    cached_splits,
    constant_schedule,
    learned_data,
    loss,
    penalty_problem,
    rosenbrock_layout,
    rosenbrock_loss,
    rosenbrock_problem,
    schedule_layout,
    schedule_problem,
    tied_problem,
    training_path,
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
