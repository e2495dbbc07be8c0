"""Small samples of what torch differentiates: modules, functionals, functions used in losses.

A sample has inputs: a tuple is the shape of numbers to differentiate by, a tensor is given as it
is. The first word of its name is that of the class or function.
"""

from math import inf, prod

import torch
import torch.nn.functional as F
from torch import distributions, linalg, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

X, SQUARE, TALL, BATCH = (3, 4), (3, 3), (4, 3), (2, 3, 4)
PAIR, POINTS, HEADS = (X, X), (X, (5, 4)), ((2, 2, 3, 4),) * 3
SPACE = {1: (2, 2, 6), 2: (2, 2, 6, 4), 3: (2, 2, 6, 4, 4)}  # batch, channels, ...
LABELS, TOKENS = torch.tensor([0, 3, 1]), torch.tensor([[0, 1, 1], [2, 2, 0]])
SIGNS, ROWS = torch.tensor([1.0, -1.0, 1.0]), torch.tensor([0, 1, 1])
SEVERAL = torch.tensor([[1, 0, 3, -1], [2, 0, -1, -1], [0, 1, 2, 3]])
PLACES = torch.tensor([[0, 1, 1, 0], [2, 0, 0, 1], [1, 2, 2, 2]])  # once each in a column
SPOKEN = torch.tensor([[1, 2], [3, 1]]), torch.tensor([5, 5]), torch.tensor([2, 2])

share = torch.sigmoid


def positive(x):
    return 0.1 + x * x


def definite(x):
    return x @ x.mT + torch.eye(len(x)).to(x)


# ---- modules: arguments of the constructor, inputs

ELEMENTWISE = """CELU ELU GELU GLU Hardshrink Hardsigmoid Hardswish Hardtanh Identity LeakyReLU
LogSigmoid Mish PReLU RReLU ReLU ReLU6 SELU SiLU Sigmoid Softplus Softshrink Softsign Tanh
Tanhshrink AlphaDropout Dropout FeatureAlphaDropout Flatten"""
OF_TWO = """CosineSimilarity PairwiseDistance BCELoss BCEWithLogitsLoss HuberLoss KLDivLoss L1Loss
MSELoss MultiLabelSoftMarginLoss PoissonNLLLoss SmoothL1Loss"""
OF_LABELS = "CrossEntropyLoss MultiMarginLoss NLLLoss"
OF_DIMENSIONS = {
    **dict.fromkeys("AdaptiveAvgPool AdaptiveMaxPool AvgPool MaxPool BatchNorm".split(), (2,)),
    **dict.fromkeys("CircularPad ReflectionPad ReplicationPad ZeroPad".split(), (1,)),
    **dict.fromkeys("Conv ConvTranspose".split(), (2, 3, 2)),
    "ConstantPad": (1, 2.0),
    "Dropout": (),
    "InstanceNorm": (2, 1e-5, 0.1, True, True),
    "LPPool": (3.0, 2),
}
MODULES = {
    **dict.fromkeys(ELEMENTWISE.split(), ((), (X,))),
    **dict.fromkeys("Softmax Softmin LogSoftmax".split(), ((1,), (X,))),
    **dict.fromkeys("LayerNorm RMSNorm".split(), ((4,), (X,))),
    **dict.fromkeys("RNN GRU LSTM".split(), ((4, 3, 2), (BATCH,))),
    **dict.fromkeys("RNNCell GRUCell LSTMCell".split(), ((4, 3), (X,))),
    **dict.fromkeys("ChannelShuffle PixelShuffle".split(), ((2,), ((1, 4, 2, 2),))),
    **dict.fromkeys("Upsample UpsamplingBilinear2d".split(), ((None, 2), (SPACE[2],))),
    **dict.fromkeys("Embedding EmbeddingBag".split(), ((3, 4), (TOKENS,))),
    **dict.fromkeys("HingeEmbeddingLoss SoftMarginLoss".split(), ((), ((3,), SIGNS))),
    **dict.fromkeys("TripletMarginLoss TripletMarginWithDistanceLoss".split(), ((), (X,) * 3)),
    **dict.fromkeys(OF_TWO.split(), ((), PAIR)),
    **dict.fromkeys(OF_LABELS.split(), ((), (X, LABELS))),
    **{f"{name}{d}d": (args, (SPACE[d],)) for name, args in OF_DIMENSIONS.items() for d in SPACE},
    "AdaptiveLogSoftmaxWithLoss": ((4, 6, (2, 4), 2.0), (X, LABELS)),
    "Bilinear": ((4, 4, 2), PAIR),
    "CTCLoss": ((), ((5, 2, 4), *SPOKEN)),
    "CosineEmbeddingLoss": ((0.1,), (X, X, SIGNS)),
    "CrossMapLRN2d": ((3,), (SPACE[2],)),
    "Fold": (((4, 5), (2, 2)), ((1, 8, 12),)),
    "FractionalMaxPool2d": ((2, 2), (SPACE[2],)),
    "FractionalMaxPool3d": ((2, 2), (SPACE[3],)),
    "GaussianNLLLoss": ((), (X, X, X)),
    "GroupNorm": ((1, 2), (SPACE[1],)),
    "Linear": ((4, 3), (X,)),
    "LinearCrossEntropyLoss": ((4, 5), (X, LABELS)),
    "LocalResponseNorm": ((2,), (SPACE[1],)),
    "MarginRankingLoss": ((0.1,), ((3,), (3,), SIGNS)),
    "MultiLabelMarginLoss": ((), (X, SEVERAL)),
    "MultiheadAttention": ((4, 2), (BATCH,) * 3),
    "PixelUnshuffle": ((2,), ((1, 1, 4, 4),)),
    "Softmax2d": ((), (SPACE[2],)),
    "Threshold": ((0.1, 2.0), (X,)),
    "Transformer": ((4, 2, 1, 1, 5, 0.0), (BATCH,) * 2),
    "TransformerDecoderLayer": ((4, 2, 5, 0.0), (BATCH,) * 2),
    "TransformerEncoderLayer": ((4, 2, 5, 0.0), (BATCH,)),
    "Unflatten": ((1, (2, 2)), (X,)),
    "Unfold": (((2, 2),), (SPACE[2],)),
    "UpsamplingNearest2d": ((None, 2), (SPACE[2],)),
}
# classes that others are made of, that are a sample elsewhere, or that need several devices; and
# functionals: helpers, other names, and what takes no float64
WITHOUT_SAMPLE = """Container DataParallel MaxUnpool1d MaxUnpool2d MaxUnpool3d Module ModuleDict
ModuleList NLLLoss2d ParameterDict ParameterList RNNBase RNNCellBase Sequential SyncBatchNorm
TransformerDecoder TransformerEncoder
assert_int_or_pair boolean_dispatch grouped_mm handle_torch_function
has_torch_function has_torch_function_unary has_torch_function_variadic native_channel_shuffle
one_hot scaled_grouped_mm scaled_mm upsample_bilinear upsample_nearest"""
PREPARED = {  # inputs that a module takes
    "BCELoss": lambda x, y: (share(x), share(y)),
    "CTCLoss": lambda x, *spoken: (x.log_softmax(-1), *spoken),
    "GaussianNLLLoss": lambda x, y, variance: (x, y, positive(variance)),
    "KLDivLoss": lambda x, y: (x, share(y)),
    **{f"LPPool{d}d": lambda x: (positive(x),) for d in SPACE},
}
UTILITIES = {
    "WeightNorm": nn.utils.parametrizations.weight_norm,
    "WeightNorm of old": nn.utils.weight_norm,
    "spectral_norm eval": lambda m: nn.utils.parametrizations.spectral_norm(m).eval(),
    "orthogonal": nn.utils.parametrizations.orthogonal,
}


# ---- functions: function, inputs


def each(names: str, inputs=(X,), inner=None, where=torch, suffix="") -> dict:
    """Samples of functions by name, of the same inputs, all of them through `inner`."""

    def sample(f):
        return lambda *x: f(*(map(inner, x) if inner else x))

    return {name + suffix: (sample(getattr(where, name)), inputs) for name in names.split()}


def options(name: str, f, inputs, option: str, values, **fixed) -> dict:
    """Samples of one function for several values of an option."""

    def sample(value):
        return lambda *x: f(*x, **{option: value}, **fixed)

    rest = "".join(f" {k}={v}" for k, v in fixed.items())
    return {f"{name} {option}={v}{rest}": (sample(v), inputs) for v in values}


def complexes(names: str, where) -> dict:
    return {
        f"{name} complex": (lambda x, y, name=name: getattr(where, name)(torch.complex(x, y)), PAIR)
        for name in names.split()
    }


def distances(x, y):
    return ((x[:, None] - y) ** 2).sum(-1).sqrt()


def attention(x, w, b, out):
    rest = None, None, False, 0.0, out, b[:4]
    return F.multi_head_attention_forward(x, x, x, 4, 2, w, b, *rest, need_weights=False)[0]


def weighted_bags(w, shares):
    return F.embedding_bag(TOKENS, w, mode="sum", per_sample_weights=shares)


def math_attention(*heads):
    with sdpa_kernel(SDPBackend.MATH):
        return F.scaled_dot_product_attention(*heads)


def unpooled(d: int):
    pool, back = getattr(F, f"max_pool{d}d"), getattr(F, f"max_unpool{d}d")
    return lambda x: back(*pool(x, 2, return_indices=True), 2)


def drawn(family):
    return lambda *x: family(*map(positive, x)).rsample()


def small(x, mode):
    return F.interpolate(x, scale_factor=0.6, mode=mode, antialias=True)


def scattered(x, y, reduce):
    return torch.scatter_reduce(x, 0, PLACES, y, reduce)


def sampled(x, grid, mode, d=2):
    return F.grid_sample(x, grid, mode, "zeros" if d == 2 else "border", False)


FAMILIES = "Beta", "Gamma", "LogNormal", "Normal"
PADDINGS, RESAMPLINGS = ("reflect", "circular"), ("nearest", "bilinear", "bicubic", "area")
NORMS = (0.5, 1, 1.5, 2, 3, inf)
FUNCTIONS = {
    **each("abs asinh atan cos cosh cov diff erf exp expm1 median msort relu sigmoid sin sinc"),
    **each("sinh std tan tanh var aminmax nanmean corrcoef"),
    **each("acos asin atanh erfinv logit", inner=share),
    **each("digamma lgamma log log1p log2 reciprocal rsqrt sqrt", inner=positive),
    **each("entr erfcx i0 i0e i1 i1e log_ndtr ndtr", inner=share, where=torch.special),
    **each("add atan2 div fmod hypot logaddexp maximum minimum mul remainder", PAIR),
    **each("pow xlogy", PAIR, positive),
    **each("addcmul clamp lerp", (X, X, X)),
    **{
        name: (lambda x, name=name: getattr(torch, name)(x, 1), (X,))
        for name in "cummax cumprod cumsum log_softmax logcumsumexp logsumexp softmax".split()
    },
    "where": (lambda x, y: torch.where(x > y, x, y * y), PAIR),
    "einsum": (lambda x, y: torch.einsum("ij,kj->ik", x, y), PAIR),
    **complexes("abs angle exp prod", torch),
    # selections
    "topk": (lambda x: torch.topk(x, 2), (X,)),
    "quantile": (lambda x: torch.quantile(x, 0.3, 1), (X,)),
    "index": (lambda x: x[ROWS], (X,)),
    "index_add": (lambda x, y: torch.index_add(x, 0, ROWS, y), PAIR),
    "gather": (lambda x: torch.gather(x, 0, PLACES), (X,)),
    "scatter": (lambda x, y: torch.scatter(x, 0, PLACES, y), PAIR),
    **options("scatter_reduce", scattered, PAIR, "reduce", ("sum", "prod", "mean", "amax")),
    "segment_reduce": (lambda x: torch.segment_reduce(x, "mean", lengths=ROWS[:2] + 1), (X,)),
    # distances and norms
    **options("cdist", torch.cdist, POINTS, "p", (1.5, 2, 3, inf)),
    **options("pdist", F.pdist, (X,), "p", (1, 1.5, 2, 3, inf)),
    **options("norm", torch.norm, (X,), "p", (*NORMS, "fro", "nuc"), dim=(0, 1)),
    **options("norm", torch.norm, (X,), "p", NORMS, dim=1),
    **options("matrix_norm", linalg.matrix_norm, (TALL,), "ord", ("fro", "nuc", 1, 2, -2, inf)),
    **options("dist", torch.dist, PAIR, "p", NORMS),
    **options("normalize", F.normalize, (X,), "p", NORMS),
    **options("pairwise_distance", F.pairwise_distance, PAIR, "p", NORMS),
    **options("euclidean", torch.cdist, POINTS, "compute_mode", ("use_mm_for_euclid_dist",)),
    "differences": (distances, POINTS),
    # linear algebra and Fourier transforms
    **each("cond det eigvals inv lu matrix_exp slogdet", (SQUARE,), where=linalg),
    **each("cholesky eigvalsh pinv", (SQUARE,), definite, linalg),
    **each("pinv qr svdvals", (TALL,), where=linalg, suffix=" tall"),
    **each("solve", (SQUARE, SQUARE), where=linalg),
    **each("kron matmul", (X, TALL)),
    "eigh": (lambda x: linalg.eigh(x + x.mT)[1] ** 2, (SQUARE,)),
    "svd": (lambda x: linalg.svd(x, full_matrices=False)[0] ** 2, (TALL,)),
    "lstsq": (lambda x, y: linalg.lstsq(x, y).solution, (TALL, (4, 2))),
    "cholesky_inverse": (lambda x: torch.cholesky_inverse(linalg.cholesky(definite(x))), (SQUARE,)),
    "sparse.mm": (lambda x, y: torch.sparse.mm(x.to_sparse(), y), (X, TALL)),
    "sparse.softmax": (lambda x: torch.sparse.softmax(x.to_sparse(), 1).to_dense(), (X,)),
    **each("fft fft2 fftn ihfft rfft", where=torch.fft),
    **complexes("hfft ifft irfft", torch.fft),
    "stft": (lambda x: torch.stft(x, 4, window=torch.ones(4).to(x), return_complex=True), ((9,),)),
    # functionals that are not those of a module above
    "affine_grid": (lambda x: F.affine_grid(x, (2, 2, 3, 3), False), ((2, 2, 3),)),
    "batch_norm": (lambda x: F.batch_norm(x, None, None, training=True), (SPACE[2],)),
    "binary_cross_entropy": (lambda x, y: F.binary_cross_entropy(share(x), share(y)), PAIR),
    "binary_cross_entropy_with_logits": (F.binary_cross_entropy_with_logits, PAIR),
    "conv_tbc": (F.conv_tbc, ((5, 2, 3), (2, 3, 4), (4,))),
    "conv2d strided": (lambda x, w: F.conv2d(x, w, None, 2, 1, 2, 2), ((2, 4, 7, 6), (4, 2, 2, 2))),
    "instance_norm": (F.instance_norm, (SPACE[2],)),
    "cross_entropy of shares": (F.cross_entropy, PAIR),
    "cross_entropy smoothed": (lambda x: F.cross_entropy(x, LABELS, label_smoothing=0.1), (X,)),
    "embedding_bag": (weighted_bags, (X, (2, 3))),
    "gelu": (lambda x: F.gelu(x, approximate="tanh"), (X,)),
    "gumbel_softmax": (F.gumbel_softmax, (X,)),
    "kl_div": (lambda x, y: F.kl_div(x, y, log_target=True), PAIR),
    **{f"max_unpool{d}d": (unpooled(d), (SPACE[d],)) for d in SPACE},
    "multi_head_attention_forward": (attention, ((3, 2, 4), (12, 4), (12,), (4, 4))),
    "scaled_dot_product_attention": (F.scaled_dot_product_attention, HEADS),
    "attention by the math kernel": (math_attention, HEADS),
    **options("pad", lambda x, mode: F.pad(x, (1, 1), mode), (SPACE[1],), "mode", PADDINGS),
    **options("interpolate", F.interpolate, (SPACE[2],), "mode", RESAMPLINGS, scale_factor=1.6),
    **options("interpolate", small, (SPACE[2],), "mode", ("bilinear", "bicubic")),
    "interpolate trilinear": (lambda x: F.interpolate(x, (5, 6, 7), mode="trilinear"), (SPACE[3],)),
    **options("grid_sample", sampled, (SPACE[2], (2, 3, 3, 2)), "mode", RESAMPLINGS[:3]),
    **options("grid_sample", sampled, (SPACE[3], (2, 2, 2, 2, 3)), "mode", RESAMPLINGS[:2], d=3),
    # control flow, draws, wrappers
    "torch.cond": (lambda x: torch.cond(x.sum() > 0, torch.sin, torch.tanh, (x,)), (X,)),
    **{name: (drawn(getattr(distributions, name)), PAIR) for name in FAMILIES},
    "Dirichlet": (drawn(distributions.Dirichlet), (X,)),
    "checkpoint": (lambda x: checkpoint(torch.tanh, x, use_reentrant=False), (X,)),
}


def build(name: str, dtype) -> tuple:
    """Return (function, arguments to differentiate by) of a sample; the same in each call."""
    torch.manual_seed(0)
    f, inputs = FUNCTIONS.get(name) or _module(name, dtype)
    generator, arguments = torch.Generator().manual_seed(1), []
    for x in inputs:
        if isinstance(x, tuple):  # from 0.3 to 3 in size: pieces and tails
            size = torch.linspace(0.3, 3, prod(x), dtype=torch.float64)
            size = size[torch.randperm(prod(x), generator=generator)].reshape(x)
            x = size * torch.randn(x, generator=generator, dtype=torch.float64)
        arguments.append(x.to(dtype) if x.is_floating_point() else x)

    def function(*given):
        given = iter(given)
        torch.manual_seed(2)  # of dropout and other draws
        pairs = zip(arguments, inputs, strict=True)
        return f(*(next(given) if isinstance(shape, tuple) else x for x, shape in pairs))

    return function, [
        x for x, shape in zip(arguments, inputs, strict=True) if isinstance(shape, tuple)
    ]


def _module(name: str, dtype) -> tuple:
    """Return (function, inputs) of a module, first its parameters; attention as in hg.nets."""
    kind = name.split()[0]
    if name in UTILITIES:
        inputs, module = (X,), UTILITIES[name](nn.Linear(4, 3))
    else:
        arguments, inputs = MODULES[kind]
        module = getattr(nn, kind)(*arguments).train(not name.endswith(" eval"))
    module, names = module.to(dtype), [name for name, _ in module.named_parameters()]
    prepare = PREPARED.get(kind, lambda *inputs: inputs)

    def function(*given):
        parameters = dict(zip(names, given, strict=False))
        with sdpa_kernel(SDPBackend.MATH):
            inputs = prepare(*given[len(names) :])
            return torch.func.functional_call(module, parameters, inputs)

    return function, (*(tuple(p.shape) for p in module.parameters()), *inputs)


TRAINING_MATTERS = ("Batch", "Instance", "Dropout", "RReLU")
MODULE_NAMES = [name for name in (*MODULES, *UTILITIES) if name in UTILITIES or hasattr(nn, name)]
MODULE_NAMES += [f"{name} eval" for name in MODULES if any(x in name for x in TRAINING_MATTERS)]
NAMES = [*MODULE_NAMES, *FUNCTIONS]
