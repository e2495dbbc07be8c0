"""Problems that more than one notebook trains, by the paper they come from."""

from hgcore.experiments import peers, peers_buffer, peers_forward, peers_gpu, peers_implicit
from hgcore.experiments.alphabets import Letters, alphabets_and_turned, deal, evenly, losses_by_task, mixed, shared, sharing, sharings, turned
from hgcore.experiments.atlas import Counting, Dialled, area, chart, contrasts, dialled, regression, spent, weighed, whitened, with_momentum
from hgcore.experiments.cleaning import corrupted, f1, weighted_examples
from hgcore.experiments.drmad2016 import BigIntegers, as_in_2015, dealt, retrained_error, scaled, slices, unit_penalties, units
from hgcore.experiments.franceschi2017 import Trial, allowed, random_search, running, studied, study, trial, tuned
from hgcore.experiments.inverses import (
    WEIGHED,
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
from hgcore.experiments.maclaurin2015 import LOGISTIC, constant, learned_data, loss, penalised, scheduled, schedules, slides, sliding, valley
