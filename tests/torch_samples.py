"""Small samples of what torch differentiates: modules, functionals, functions used in losses.

Inputs: a tuple is the shape of numbers to differentiate by, a tensor is given as it is. The first
word of a name is that of the class or function.
"""

from math import inf, prod

import torch
import torch.nn.functional as F
from torch import distributions, linalg, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

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
MODULES = {  # arguments of the constructor, inputs
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
    "TransformerEncoderLayer": ((4, 2, 5, 0.0), (BATCH,)),
    "Unflatten": ((1, (2, 2)), (X,)),
    "Unfold": (((2, 2),), (SPACE[2],)),
    "UpsamplingNearest2d": ((None, 2), (SPACE[2],)),
}
# made of others, a sample elsewhere, for several devices; helpers, other names, without float64
WITHOUT_SAMPLE = """Container DataParallel MaxUnpool1d MaxUnpool2d MaxUnpool3d Module ModuleDict
ModuleList NLLLoss2d ParameterDict ParameterList RNNBase RNNCellBase Sequential SyncBatchNorm
Transformer TransformerDecoder TransformerDecoderLayer TransformerEncoder assert_int_or_pair
boolean_dispatch grouped_mm handle_torch_function has_torch_function has_torch_function_unary
has_torch_function_variadic native_channel_shuffle one_hot scaled_grouped_mm scaled_mm
upsample_bilinear upsample_nearest"""
PREPARED = {  # inputs that a module takes
    "BCELoss": lambda x, y: (share(x), share(y)),
    "CTCLoss": lambda x, *spoken: (x.log_softmax(-1), *spoken),
    "GaussianNLLLoss": lambda x, y, variance: (x, y, positive(variance)),
    "KLDivLoss": lambda x, y: (x, share(y)),
    **{f"LPPool{d}d": lambda x: (positive(x),) for d in SPACE},
}


def each(names: str, inputs=(X,), inner=None, where=torch, more=()) -> dict:
    """Samples of functions by name: of `inner` of each of the same inputs, and of what is more."""

    def sample(f):
        return lambda *x: f(*(map(inner, x) if inner else x), *more)

    return {name: (sample(getattr(where, name)), inputs) for name in names.split()}


def options(name: str, f, inputs, option: str, values, **fixed) -> dict:
    """Samples of one function for several values of an option."""

    def sample(value):
        return lambda *x: f(*x, **{option: value}, **fixed)

    rest = "".join(f" {k}={v}" for k, v in fixed.items())
    return {f"{name} {option}={v}{rest}": (sample(v), inputs) for v in values}


def attention(x, w, b, out):
    rest = None, None, False, 0.0, out, b[:4]
    return F.multi_head_attention_forward(x, x, x, 4, 2, w, b, *rest, need_weights=False)[0]


def unpooled(d: int):
    pool, back = getattr(F, f"max_pool{d}d"), getattr(F, f"max_unpool{d}d")
    return lambda x: back(*pool(x, 2, return_indices=True), 2)


def drawn(family):
    return lambda *x: family(*map(positive, x)).rsample()


def scattered(x, y, reduce):
    return torch.scatter_reduce(x, 0, PLACES, y, reduce)


MODES, GRID = ("nearest", "bilinear", "bicubic"), (SPACE[2], (2, 3, 3, 2))
NORMS = (0.5, 1, 2, 3, inf)
FUNCTIONS = {  # function, inputs
    **each("abs asinh atan cos cosh cov diff erf exp expm1 median msort relu sigmoid sin sinc"),
    **each("sinh std tan tanh var aminmax nanmean corrcoef"),
    **each("acos asin atanh erfinv logit", inner=share),
    **each("digamma lgamma log log1p log2 reciprocal rsqrt sqrt", inner=positive),
    **each("add atan2 div fmod hypot logaddexp maximum minimum mul remainder", PAIR),
    **each("pow xlogy", PAIR, positive),
    **each("addcmul clamp lerp", (X, X, X)),
    **each("cummax cumprod cumsum log_softmax logcumsumexp logsumexp softmax", more=(1,)),
    **each("topk", more=(2,)),
    "where": (lambda x, y: torch.where(x > y, x, y * y), PAIR),
    "abs of complex": (lambda x, y: torch.complex(x, y).abs(), PAIR),
    "angle of complex": (lambda x, y: torch.complex(x, y).angle(), PAIR),
    **options("scatter_reduce", scattered, PAIR, "reduce", ("sum", "prod", "mean", "amax")),
    "segment_reduce": (lambda x: torch.segment_reduce(x, "mean", lengths=ROWS[:2] + 1), (X,)),
    **options("cdist", torch.cdist, POINTS, "p", (1.5, 2, inf)),
    **options("pdist", F.pdist, (X,), "p", (1.5, 2, inf)),
    **options("norm", torch.norm, (X,), "p", NORMS, dim=1),
    **options("matrix_norm", linalg.matrix_norm, (TALL,), "ord", ("fro", "nuc", 1, 2, -2, inf)),
    **options("normalize", F.normalize, (X,), "p", NORMS),
    **options("euclidean", torch.cdist, POINTS, "compute_mode", ("use_mm_for_euclid_dist",)),
    **each("cond det eigvals inv lu matrix_exp slogdet", (SQUARE,), where=linalg),
    **each("cholesky eigvalsh pinv", (SQUARE,), definite, linalg),
    **each("qr svdvals", (TALL,), where=linalg),
    **each("householder_product", (TALL, (3,)), where=linalg),
    "eigh": (lambda x: linalg.eigh(x + x.mT)[1] ** 2, (SQUARE,)),
    "svd": (lambda x: linalg.svd(x, full_matrices=False)[0] ** 2, (TALL,)),
    "sparse.softmax": (lambda x: torch.sparse.softmax(x.to_sparse(), 1).to_dense(), (X,)),
    **each("fft fft2 fftn ihfft rfft", where=torch.fft),
    "irfft": (lambda x, y: torch.fft.irfft(torch.complex(x, y)), PAIR),
    "WeightNorm": (torch._weight_norm, (X, (3, 1))),
    "affine_grid": (lambda x: F.affine_grid(x, (2, 2, 3, 3), False), ((2, 2, 3),)),
    "batch_norm": (lambda x: F.batch_norm(x, None, None, training=True), (SPACE[2],)),
    "binary_cross_entropy": (lambda x, y: F.binary_cross_entropy(share(x), share(y)), PAIR),
    "binary_cross_entropy_with_logits": (F.binary_cross_entropy_with_logits, PAIR),
    "conv_tbc": (F.conv_tbc, ((5, 2, 3), (2, 3, 4), (4,))),
    "instance_norm": (F.instance_norm, (SPACE[2],)),
    "embedding_bag": (lambda w: F.embedding_bag(TOKENS, w), (X,)),
    "gumbel_softmax": (F.gumbel_softmax, (X,)),
    **{f"max_unpool{d}d": (unpooled(d), (SPACE[d],)) for d in SPACE},
    "multi_head_attention_forward": (attention, ((3, 2, 4), (12, 4), (12,), (4, 4))),
    "scaled_dot_product_attention": (F.scaled_dot_product_attention, HEADS),
    **options("pad", F.pad, (SPACE[1],), "mode", ("reflect", "circular"), pad=(1, 1)),
    **options("interpolate", F.interpolate, (SPACE[2],), "mode", MODES, scale_factor=1.6),
    **options("grid_sample", F.grid_sample, GRID, "mode", MODES, align_corners=False),
    "torch.cond": (lambda x: torch.cond(x.sum() > 0, torch.sin, torch.tanh, (x,)), (X,)),
    **{name: (drawn(getattr(distributions, name)), PAIR) for name in ("Beta", "Gamma", "Normal")},
    "Dirichlet": (drawn(distributions.Dirichlet), (X,)),
}


def loss_of(name: str, dtype) -> tuple:
    """Return (a loss of one vector, the vector) of a sample; the squares couple all numbers."""
    torch.manual_seed(0)
    f, inputs = FUNCTIONS.get(name) or _module(name, dtype)
    shapes, draw = [x for x in inputs if type(x) is tuple], torch.Generator().manual_seed(1)
    sizes, numbers = list(map(prod, shapes)), []
    for count in sizes:  # from 0.3 to 3 in size: pieces and tails
        size = torch.linspace(0.3, 3, count).double()[torch.randperm(count, generator=draw)]
        numbers.append(size * torch.randn(count, generator=draw, dtype=torch.float64))

    def given(x, parts):
        if type(x) is tuple:
            return next(parts).reshape(x)
        return x.to(dtype if x.is_floating_point() else x.dtype)

    def loss(vector, hyper=None):
        torch.manual_seed(2)  # of dropout and other draws
        parts = iter(vector.split(sizes))
        y = torch.cat(_numbers(f(*(given(x, parts) for x in inputs))))
        mixed = (torch.cos(torch.arange(len(y))) * y).mean()
        return mixed + mixed**2 + (y * y).mean()

    return loss, torch.cat(numbers).to(dtype)


def _numbers(outputs) -> list:
    if isinstance(outputs, (tuple, list)):
        return [x for part in outputs for x in _numbers(part)]
    if outputs.is_complex():
        outputs = torch.view_as_real(outputs.resolve_conj())
    return [outputs.reshape(-1)] if outputs.is_floating_point() else []


def _module(name: str, dtype) -> tuple:
    """Return (function, inputs) of a module, first its parameters; attention as in hg.nets."""
    kind = name.split()[0]
    arguments, inputs = MODULES[kind]
    module = getattr(nn, kind)(*arguments).to(dtype).train(not name.endswith(" eval"))
    names = [name for name, _ in module.named_parameters()]
    prepare = PREPARED.get(kind, lambda *inputs: inputs)

    def function(*given):
        parameters = dict(zip(names, given, strict=False))
        with sdpa_kernel(SDPBackend.MATH):
            inputs = prepare(*given[len(names) :])
            return torch.func.functional_call(module, parameters, inputs)

    return function, (*(tuple(p.shape) for p in module.parameters()), *inputs)


TRAINING_MATTERS = ("Batch", "Instance", "Dropout", "RReLU")
NAMES = [*FUNCTIONS, *(name for name in MODULES if hasattr(nn, name))]  # torch may be older
NAMES += [f"{name} eval" for name in MODULES if any(x in name for x in TRAINING_MATTERS)]
