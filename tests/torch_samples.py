"""Small samples of what torch differentiates: modules, functionals, functions used in losses.

Inputs: a tuple is the shape of numbers to differentiate by, a tensor is given as it is. What is
done with them is code without spaces: the call of a function, or of the constructor of a module.
"""

import re
from functools import partial
from math import prod

import torch
from torch import distributions, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

X, SQUARE, TALL, BATCH = (3, 4), (3, 3), (4, 3), (2, 3, 4)
PAIR = X, X
SPACE = {1: (2, 2, 6), 2: (2, 2, 6, 4), 3: (2, 2, 6, 4, 4)}  # batch, channels, ...
LABELS, TOKENS = torch.tensor([0, 3, 1]), torch.tensor([[0, 1, 1], [2, 2, 0]])
SIGNS, LENGTHS = torch.tensor([1.0, -1.0, 1.0]), torch.tensor([1, 2])
SEVERAL = torch.tensor([[1, 0, 3, -1], [2, 0, -1, -1], [0, 1, 2, 3]])
PLACES = torch.tensor([[0, 1, 1, 0], [2, 0, 0, 1], [1, 2, 2, 2]])  # once each in a column
SPOKEN = torch.tensor([[1, 2], [3, 1]]), torch.tensor([5, 5]), torch.tensor([2, 2])

share = torch.sigmoid


def plus(x):
    """Numbers above zero."""
    return 0.1 + x * x


def definite(x):
    return x @ x.mT + torch.eye(len(x)).to(x)


OF_DIMENSIONS = """AdaptiveAvgPool#d(2) AdaptiveMaxPool#d(2) AvgPool#d(2) BatchNorm#d(2)
CircularPad#d(1) ConstantPad#d(1,2.0) Conv#d(2,3,2) ConvTranspose#d(2,3,2) Dropout#d()
InstanceNorm#d(2,1e-5,0.1,True,True) LPPool#d(3.0,2) MaxPool#d(2) ReflectionPad#d(1)
ReplicationPad#d(1) ZeroPad#d(1)"""
MODULES = {  # inputs: modules that take them
    (X,): """AlphaDropout() CELU() Dropout() ELU() FeatureAlphaDropout() Flatten() GELU() GLU()
    GRUCell(4,3) Hardshrink() Hardsigmoid() Hardswish() Hardtanh() Identity() LSTMCell(4,3)
    LayerNorm(4) LeakyReLU() Linear(4,3) LogSigmoid() LogSoftmax(1) Mish() PReLU() RMSNorm(4)
    RNNCell(4,3) RReLU() ReLU() ReLU6() SELU() SiLU() Sigmoid() Softmax(1) Softmin(1) Softplus()
    Softshrink() Softsign() Tanh() Tanhshrink() Threshold(0.1,2.0) Unflatten(1,(2,2))""",
    PAIR: """BCELoss() BCEWithLogitsLoss() Bilinear(4,4,2) CosineSimilarity() HuberLoss()
    KLDivLoss() L1Loss() MSELoss() MultiLabelSoftMarginLoss() PairwiseDistance() PoissonNLLLoss()
    SmoothL1Loss()""",
    (X, X, X): "GaussianNLLLoss() TripletMarginLoss() TripletMarginWithDistanceLoss()",
    (X, LABELS): """AdaptiveLogSoftmaxWithLoss(4,6,(2,4),2.0) CrossEntropyLoss()
    LinearCrossEntropyLoss(4,5) MultiMarginLoss() NLLLoss()""",
    (X, SEVERAL): "MultiLabelMarginLoss()",
    (X, X, SIGNS): "CosineEmbeddingLoss(0.1)",
    ((3,), SIGNS): "HingeEmbeddingLoss() SoftMarginLoss()",
    ((3,), (3,), SIGNS): "MarginRankingLoss(0.1)",
    ((5, 2, 4), *SPOKEN): "CTCLoss()",
    (TOKENS,): "Embedding(3,4) EmbeddingBag(3,4)",
    (BATCH,): "GRU(4,3,2) LSTM(4,3,2) RNN(4,3,2) TransformerEncoderLayer(4,2,5,0.0)",
    (BATCH, BATCH, BATCH): "MultiheadAttention(4,2)",
    ((1, 8, 12),): "Fold((4,5),(2,2))",
    ((1, 4, 2, 2),): "ChannelShuffle(2) PixelShuffle(2)",
    ((1, 1, 4, 4),): "PixelUnshuffle(2)",
    (SPACE[1],): OF_DIMENSIONS.replace("#", "1") + " GroupNorm(1,2) LocalResponseNorm(2)",
    (SPACE[2],): OF_DIMENSIONS.replace("#", "2")
    + """ CrossMapLRN2d(3) FractionalMaxPool2d(2,2) Softmax2d() Unfold((2,2)) Upsample(None,2)
    UpsamplingBilinear2d(None,2) UpsamplingNearest2d(None,2)""",
    (SPACE[3],): OF_DIMENSIONS.replace("#", "3") + " FractionalMaxPool3d(2,2)",
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
    "GaussianNLLLoss": lambda x, y, variance: (x, y, plus(variance)),
    "KLDivLoss": lambda x, y: (x, share(y)),
    **{f"LPPool{d}d": lambda x: (plus(x),) for d in SPACE},
}


FUNCTIONS = {  # inputs x, y, z: functions of them
    (X,): """abs(x) aminmax(x) asinh(x) atan(x) corrcoef(x) cos(x) cosh(x) cov(x) diff(x) erf(x)
    exp(x) expm1(x) median(x) msort(x) nanmean(x) relu(x) sigmoid(x) sin(x) sinc(x) sinh(x) std(x)
    tan(x) tanh(x) var(x) acos(share(x)) asin(share(x)) atanh(share(x)) erfinv(share(x))
    logit(share(x)) digamma(plus(x)) lgamma(plus(x)) log(plus(x)) log1p(plus(x)) log2(plus(x))
    reciprocal(plus(x)) rsqrt(plus(x)) sqrt(plus(x)) special.entr(plus(x)) special.erfcx(x)
    special.i0(x) special.i0e(x) special.i1(x) special.i1e(x) special.log_ndtr(x) special.ndtr(x)
    cummax(x,1) cumprod(x,1) cumsum(x,1) log_softmax(x,1) logcumsumexp(x,1) logsumexp(x,1)
    softmax(x,1) sparse.softmax(x.to_sparse(),1).to_dense() topk(x,2) F.gumbel_softmax(x)
    norm(x,0.5,1) norm(x,1,1) norm(x,2,1) norm(x,3,1) norm(x,inf,1) F.normalize(x,0.5)
    F.normalize(x,1) F.normalize(x,2) F.normalize(x,3) F.normalize(x,inf) F.pdist(x,1.5)
    F.pdist(x,2) F.pdist(x,inf) F.embedding_bag(TOKENS,x) segment_reduce(x,'mean',lengths=LENGTHS)
    fft.fft(x) fft.fft2(x) fft.fftn(x) fft.ihfft(x) fft.rfft(x)
    torch.cond(x.sum()>0,torch.sin,torch.tanh,(x,)) Dirichlet(plus(x)).rsample()""",
    PAIR: """add(x,y) atan2(x,y) div(x,y) fmod(x,y) hypot(x,y) logaddexp(x,y) maximum(x,y)
    minimum(x,y) mul(x,y) remainder(x,y) pow(plus(x),y) xlogy(plus(x),plus(y)) where(x>y,x,y*y)
    complex(x,y).abs() complex(x,y).angle() complex(x,y).exp() complex(x,y).prod()
    fft.hfft(complex(x,y)) fft.ifft(complex(x,y)) fft.irfft(complex(x,y))
    scatter_reduce(x,0,PLACES,y,'sum') scatter_reduce(x,0,PLACES,y,'prod')
    scatter_reduce(x,0,PLACES,y,'mean') scatter_reduce(x,0,PLACES,y,'amax')
    F.binary_cross_entropy(share(x),share(y)) F.binary_cross_entropy_with_logits(x,y)
    Beta(plus(x),plus(y)).rsample() Gamma(plus(x),plus(y)).rsample() Normal(x,plus(y)).rsample()""",
    (X, X, X): "addcmul(x,y,z) clamp(x,y,z) lerp(x,y,z)",
    (X, (5, 4)): "cdist(x,y,1.5) cdist(x,y,2) cdist(x,y,inf) euclidean(x,y)",
    (X, (3, 1)): "WeightNorm(x,y)",
    (SQUARE,): """linalg.cond(x) linalg.det(x) linalg.eigvals(x) linalg.inv(x) linalg.lu(x)
    linalg.matrix_exp(x) linalg.slogdet(x) linalg.cholesky(definite(x)) linalg.pinv(definite(x))
    linalg.eigvalsh(definite(x)) linalg.eigh(x+x.mT)[1]**2""",
    (TALL,): """linalg.matrix_norm(x,'fro') linalg.matrix_norm(x,'nuc') linalg.matrix_norm(x,1)
    linalg.matrix_norm(x,2) linalg.matrix_norm(x,-2) linalg.matrix_norm(x,inf) linalg.qr(x)
    linalg.svdvals(x) linalg.svd(x,full_matrices=False)[0]**2""",
    (TALL, (3,)): "linalg.householder_product(x,y)",
    (SPACE[1],): """F.pad(x,(1,1),'reflect') F.pad(x,(1,1),'circular')
    F.max_unpool1d(*F.max_pool1d(x,2,return_indices=True),2)""",
    (SPACE[2],): """F.batch_norm(x,None,None,training=True) F.instance_norm(x)
    F.interpolate(x,None,1.6,'nearest') F.interpolate(x,None,1.6,'bilinear')
    F.interpolate(x,None,1.6,'bicubic') F.max_unpool2d(*F.max_pool2d(x,2,return_indices=True),2)""",
    (SPACE[3],): "F.max_unpool3d(*F.max_pool3d(x,2,return_indices=True),2)",
    (SPACE[2], (2, 3, 3, 2)): """F.grid_sample(x,y,'nearest',align_corners=False)
    F.grid_sample(x,y,'bilinear',align_corners=False)
    F.grid_sample(x,y,'bicubic',align_corners=False)""",
    ((2, 2, 3),): "F.affine_grid(x,(2,2,3,3),False)",
    ((5, 2, 3), (2, 3, 4), (4,)): "F.conv_tbc(x,y,z)",
    ((2, 2, 3, 4),) * 3: "F.scaled_dot_product_attention(x,y,z)",
    ((3, 2, 4), (12, 4), (4, 4)): """
    F.multi_head_attention_forward(x,x,x,4,2,y,None,None,None,False,0,z,None,need_weights=False)[0]
    """,
}
SCOPE = {
    **vars(torch),
    **vars(distributions),
    **globals(),
    "F": nn.functional,
    "euclidean": partial(torch.cdist, compute_mode="use_mm_for_euclid_dist"),
    "WeightNorm": torch._weight_norm,
}
TRAINING_MATTERS = ("Batch", "Instance", "Dropout", "RReLU")
FUNCTIONS = {call: inputs for inputs, calls in FUNCTIONS.items() for call in calls.split()}
CALLS = {call: inputs for inputs, calls in MODULES.items() for call in calls.split()}
MODULES = {call.split("(")[0]: (call, inputs) for call, inputs in CALLS.items()}
NAMES = [*FUNCTIONS, *(name for name in MODULES if hasattr(nn, name))]  # torch may be older
NAMES += [f"{name} eval" for name in MODULES if any(x in name for x in TRAINING_MATTERS)]


def kind_of(name: str) -> str:
    """Return the class or function of a sample."""
    return re.split("[( ]", name)[0].removeprefix("F.")


def loss_of(name: str, dtype) -> tuple:
    """Return (a loss of one vector, the vector) of a sample; the squares couple all numbers."""
    torch.manual_seed(0)
    if name in FUNCTIONS:
        f, inputs = eval(f"lambda x, y=None, z=None: {name}", SCOPE), FUNCTIONS[name]
    else:
        f, inputs = _module(name, dtype)
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
    kind = kind_of(name)
    constructor, inputs = MODULES[kind]
    module = eval(constructor, vars(nn)).to(dtype).train(not name.endswith(" eval"))
    names = [name for name, _ in module.named_parameters()]
    prepare = PREPARED.get(kind, lambda *inputs: inputs)

    def function(*given):
        parameters = dict(zip(names, given, strict=False))
        with sdpa_kernel(SDPBackend.MATH):
            inputs = prepare(*given[len(names) :])
            return torch.func.functional_call(module, parameters, inputs)

    return function, (*(tuple(p.shape) for p in module.parameters()), *inputs)
