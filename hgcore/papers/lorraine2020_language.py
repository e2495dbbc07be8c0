"""An LSTM language model and its regularizers (Lorraine et al. 2020, Figure 8 and Table 4).

Needs torch, so `hgcore.papers` does not import it.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch.nn.functional import embedding

from hgcore.layout import Layout
from hgcore.modules.draws import drawn_from
from hgcore.modules.functional import ModuleFunction
from hgcore.nets import cross_entropy, functional, log_softmax
from hgcore.problem import Problem

TEMPERATURE = 0.1  # of the relaxed masks, as in Gal, Hron and Kendall 2017


class LanguageModel(torch.nn.Module):
    """Embeddings (words, units), two LSTM layers, and a softmax with the same embeddings (tied).

    13,280,400 weights with 10,000 words and 650 units. Embeddings start uniform in -0.1..0.1, the
    bias (words,) of the output at zero.
    """

    def __init__(self, words: int, units: int):
        super().__init__()
        self.embeddings = torch.nn.Parameter(torch.empty(words, units).uniform_(-0.1, 0.1))
        self.first, self.second = torch.nn.LSTM(units, units), torch.nn.LSTM(units, units)
        self.bias = torch.nn.Parameter(torch.zeros(words))

    def forward(self, words, logits: dict | None = None, states=(None, None)) -> tuple:
        """Return (log-probabilities (T * batch, words), signals, states) of words (T, batch).

        logits: logits of the dropout rates, named as in `regularizers`; None for no dropout.
        signals: the outputs (T, batch, units) of the second LSTM before and after dropout. states:
        (h, c), each (1, batch, units), of each LSTM; None for zeros.
        """
        logits, one = logits or {}, (1, words.shape[1], self.embeddings.shape[1])
        matrix = dropped(self.embeddings, logits.get("embedding"), (len(self.bias), 1))
        signal, after = dropped(embedding(words, matrix), logits.get("input"), one), []
        layers = (self.first, states[0], "hidden"), (self.second, states[1], "output")
        for lstm, state, place in layers:
            matrix = lstm.weight_hh_l0
            given = {"weight_hh_l0": dropped(matrix, logits.get("connections"), matrix.shape)}
            output, state = torch.func.functional_call(lstm, given, (signal, state))
            signal = dropped(output, logits.get(place), one)
            after.append(state)
        scores = signal.flatten(0, 1) @ self.embeddings.T + self.bias
        return log_softmax(scores), (output, signal), after


def dropped(values, logit, shape: Sequence[int]):
    """Return values * mask / (1 - rate) with a random mask, differentiable in the rate.

    logit: logit of the rate; None for no dropout. shape: shape of the mask, which is broadcast
    along axes of length 1. Implements: Gal, Hron and Kendall 2017, equation 5 (concrete dropout).
    """
    if logit is None:
        return values
    noise = torch.logit(torch.rand(shape, dtype=values.dtype, device=values.device))
    return values * torch.sigmoid(-(logit + noise) / TEMPERATURE) / torch.sigmoid(-logit)


def language_model(words: int, units: int, seed: Sequence[int]) -> tuple:
    """Return (weights (n,), function) of a LanguageModel with weights drawn from `seed`."""
    with drawn_from(seed):
        return functional(LanguageModel(words, units))


def regularizers(units: int, many: bool = False) -> Layout:
    """Return the layout of hyper: logits of five dropout rates, and logs of two penalties.

    Dropout of units, with one mask for all T words of a sequence ("input", "hidden", "output"), of
    whole words ("embedding"), and of recurrent weights ("connections"). Penalties "activation" and
    "temporal": see `training_loss`. many: a rate for each unit and each recurrent weight, the same
    in both LSTMs, one for "embedding", and no penalties: 1,691,951 numbers with 650 units.
    """
    if not many:
        rates = ("input", "hidden", "output", "embedding", "connections")
        return Layout({name: () for name in (*rates, "activation", "temporal")})
    shapes = {name: (units,) for name in ("input", "hidden", "output")}
    return Layout(shapes | {"embedding": (), "connections": (4 * units, units)})


def training_loss(net: ModuleFunction, layout: Layout, weights, hyper, batch, seed):
    """Return the mean negative log-likelihood of a batch, with dropout drawn from `seed`.

    With the penalties of Merity et al. 2017: exp(activation) times the mean square of the last
    output after dropout; exp(temporal) times that of its change from word to word before dropout.
    """
    blocks, (words, targets) = layout.split(hyper), batch
    log_probabilities, (output, signal), _ = net(weights, words, blocks, seed=seed)
    loss = cross_entropy(log_probabilities, targets)
    if "activation" not in blocks:
        return loss
    change = torch.mean((output[1:] - output[:-1]) ** 2)
    penalties = torch.exp(blocks["activation"]), torch.exp(blocks["temporal"])
    return loss + penalties[0] * torch.mean(signal**2) + penalties[1] * change


def language_problem(
    backend, net, start, layout: Layout, train: Callable, valid: Callable, *, optimizer, seed
) -> Callable:
    """Return k -> Problem of Table 4: the regularizers `layout` of a language model.

    net, start: of `language_model`. train, valid: t -> batch, see `windows`. Step t trains on batch
    t with masks drawn from (seed, t). Hypergradient k takes the training batch and masks of t = k
    in both inner derivatives, and batch k of `valid` without dropout. Each batch starts from zero
    states.
    """

    def at(k: int) -> Problem:
        def inner_loss(weights, hyper, t):
            t = k if t is None else t
            return training_loss(net, layout, weights, hyper, train(t), (seed, t))

        def outer_loss(weights, hyper):
            words, targets = valid(k)
            return cross_entropy(net(weights, words)[0], targets)

        return Problem(backend, inner_loss, outer_loss, optimizer, start, steps=1)

    return at


def generated_text(words: int, sizes: Sequence[int], seed: Sequence[int]) -> list[np.ndarray]:
    """Return consecutive texts (size,) of one Markov chain of `words` words, without download.

    After each word, a few words have most of the probability.
    """
    rng = np.random.default_rng(seed)
    odds = np.cumsum(rng.dirichlet(np.full(words, 0.3), size=words), axis=1)
    text = [0]
    for draw in rng.random(sum(sizes)):
        text.append(min(int(np.searchsorted(odds[text[-1]], draw)), words - 1))
    return np.split(np.array(text[1:]), np.cumsum(sizes)[:-1])


def windows(backend, text: np.ndarray, batch: int, length: int) -> Callable:
    """Return t -> (words (length, batch), the words after them (length * batch,)).

    The text (N,) is cut into `batch` consecutive columns, and these into windows. The function's
    attribute `count` is the number of windows; t counts modulo it. Raises ValueError for none.
    """
    columns = text[: len(text) // batch * batch].reshape(batch, -1).T
    rows = backend.xp.asarray(columns, device=backend.device)
    count = (len(rows) - 1) // length
    if not count:
        raise ValueError(f"{len(text)} words have no window of {batch} x {length}")

    def window(t: int) -> tuple:
        first = t % count * length
        after = rows[first + 1 : first + 1 + length]
        return rows[first : first + length], after.flatten()

    window.count = count
    return window


def perplexity(net: ModuleFunction, weights, window: Callable) -> float:
    """Return exp(mean negative log-likelihood) over all windows, without dropout.

    Each window starts from the final states of the one before.
    """
    states, total = (None, None), 0.0
    with torch.no_grad():
        for t in range(window.count):
            words, targets = window(t)
            log_probabilities, _, states = net(weights, words, states=states)
            total += float(cross_entropy(log_probabilities, targets))
    return float(np.exp(total / window.count))
