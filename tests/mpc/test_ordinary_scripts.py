"""What ordinary scripts write, with its gradients, is what PyTorch computes in the clear; what is not is an error."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from hansa.core.errors import SecretError
from hansa.mpc.session import Session, local
from hansa.runtimes.mesh import LocalMesh


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + len(shape)))


LOGITS, CLASSES = drawn(4, 3), torch.tensor([0, 2, 1, 2])
WEIGHTS, ANSWERS = torch.tensor([1.0, 2.0, 0.5]), torch.tensor([0.0, 1, 1, 0])
PIXELS = torch.tensor([[[0, 1], [2, 1]], [[1, 1], [0, 2]]])
LATER = torch.ones(4, 6).triu(2).bool()
ROWS = torch.tensor([[0, 3, 1], [2, 2, 4]])

Case = tuple[Callable[..., Any], tuple[torch.Tensor, ...]]
LOSSES: dict[str, Case] = {
    "weighted classes": (lambda x, y: F.cross_entropy(x, y, weight=WEIGHTS), (LOGITS, CLASSES)),
    "weighted, summed": (lambda x, y: F.cross_entropy(x, y, weight=WEIGHTS, reduction="sum"), (LOGITS, CLASSES)),
    "weighted, each": (lambda x, y: F.cross_entropy(x, y, weight=WEIGHTS, reduction="none"), (LOGITS, CLASSES)),
    "a class ignored": (lambda x, y: F.cross_entropy(x, y, ignore_index=2), (LOGITS, CLASSES)),
    "public classes, weighted": (
        lambda x: F.cross_entropy(x, CLASSES, weight=WEIGHTS, label_smoothing=0.1), (LOGITS,),
    ),
    "public classes, of which one is left out": (
        lambda x: F.cross_entropy(x, torch.tensor([0, -100, 1, 2])), (LOGITS,),
    ),
    "one example": (lambda x, y: F.cross_entropy(x, y), (LOGITS[0], CLASSES[1])),
    "each pixel": (lambda x, y: F.cross_entropy(x, y), (drawn(2, 3, 2, 2), PIXELS)),
    "each pixel, weighted": (lambda x, y: F.cross_entropy(x, y, weight=WEIGHTS), (drawn(2, 3, 2, 2), PIXELS)),
    "one target of two numbers of classes": (
        lambda x, z, y: F.cross_entropy(x, y) + F.cross_entropy(z, y), (LOGITS, drawn(4, 5), CLASSES),
    ),
    "heavier positives": (
        lambda x, y: F.binary_cross_entropy_with_logits(x, y, pos_weight=torch.tensor([3.0])), (drawn(4), ANSWERS),
    ),
    "heavier positives, weighted": (
        lambda x, y: F.binary_cross_entropy_with_logits(x, y, torch.tensor([1.0, 2, 3, 1]), pos_weight=WEIGHTS[1]),
        (drawn(4), ANSWERS),
    ),
    "a row of padding": (lambda w, i: F.embedding(i, w, padding_idx=2), (drawn(5, 3), ROWS)),
    "a row of padding, public index": (lambda w: F.embedding(ROWS, w, padding_idx=2), (drawn(5, 3),)),
    "one index of two tables": (
        lambda v, w, i: F.embedding(i, v) + F.embedding(i, w), (drawn(5, 3), drawn(7, 3), ROWS),
    ),
}  # fmt: skip

BOXES, PLACES = drawn(2, 4, 6, 6), torch.tensor([[0, 1], [2, 3], [5, 0], [3, 2]])
LAYERS: dict[str, Case] = {
    "attention": (
        F.scaled_dot_product_attention, (drawn(2, 2, 4, 3), drawn(2, 2, 4, 3, seed=1), drawn(2, 2, 4, 3, seed=2)),
    ),
    "causal attention": (
        lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True), (drawn(2, 2, 4, 3),),
    ),
    "a mask of infinities": (
        lambda x: [
            (x + torch.zeros(4, 6).masked_fill(LATER, -torch.inf)).softmax(1),
            x.masked_fill(LATER, -torch.inf).softmax(1),
        ],
        (drawn(4, 6),),
    ),
    "a mask of the least floats": (
        lambda x: x.masked_fill(LATER, torch.finfo(torch.float32).min).softmax(1), (drawn(4, 6),),
    ),
    "group norm": (lambda x, w, b: F.group_norm(x, 2, w, b), (BOXES, drawn(4), drawn(4, seed=1))),
    "uneven means": (lambda x: F.adaptive_avg_pool2d(x, (4, 7)), (BOXES,)),
    "largest of each quarter": (lambda x: F.adaptive_max_pool2d(x, 2), (BOXES,)),
    "stretched by copies": (lambda x: F.interpolate(x, scale_factor=2), (BOXES[:, :1],)),
    "stretched by lines": (lambda x: F.interpolate(x, size=(9, 8), mode="bilinear"), (BOXES[:, :1],)),
    "bilinear": (F.bilinear, (drawn(4, 3), drawn(4, 2), drawn(5, 3, 2), drawn(5))),
    "taken at public places": (lambda x: [x.gather(1, PLACES), x.take(PLACES)], (drawn(4, 6),)),
    "taken at secret places": (lambda x, i: x.gather(1, i), (drawn(4, 6), PLACES)),
    "taken at few secret places": (lambda x, i: x.gather(0, i), (drawn(4, 6), PLACES[:3] % 4)),
    "put at public places": (
        lambda x, y: [x.scatter(1, PLACES, y), x.scatter_add(1, PLACES % 2, y), x.scatter(1, PLACES, 2.0)],
        (drawn(4, 6), drawn(4, 2)),
    ),
    "put at secret places": (
        lambda x, y, i: [x.scatter(1, i, y), x.scatter_add(1, i, y)], (drawn(4, 6), drawn(4, 2), PLACES),
    ),
    "one number at secret places, twice the same": (
        lambda x, i: x.scatter(1, i, 1.5), (drawn(4, 6), torch.tensor([[1, 1], [2, 3], [0, 0], [5, 4]])),
    ),
    "orders": (lambda x: [x.sort(1)[0], x.topk(2, 0)[0], x.max(1)[0], x.min(0)[0], x.median(1)[0]], (drawn(4, 6),)),
    "a diagonal": (lambda x: [x.diag(), torch.diag_embed(x), x.trace()], (drawn(4, 4),)),
    "products": (lambda x: [x.prod(), x.prod(1), x.cumprod(0), x.prod(0, keepdim=True)], (drawn(3, 3),)),
    "powers": (lambda x: [x**-2, x**1.5, x**-1.5, x**0.5, 2**x, x.exp2()], (drawn(3, 3).abs() + 0.5,)),
    "logarithms, the error function": (lambda x: [x.log10(), x.erf(), torch.xlogy(x, x)], (drawn(3, 3).abs() + 0.5,)),
    "a Kullback-Leibler divergence": (
        lambda x, y: F.kl_div(x.log_softmax(1), y.softmax(1), reduction="batchmean"),
        (drawn(4, 3), drawn(4, 3, seed=9)),
    ),
    "large exponentials": (lambda x: x.exp() / 1000, (torch.tensor([-3000.0, -20, -16, -1, 0, 4, 7, 9]),)),
    "no rows": (lambda x: [x[:0] * torch.ones(0, 6), x[:0].softmax(1), x[:0].sigmoid(), x[:0].sum()], (drawn(4, 6),)),
    "one number": (lambda x: [x[0].amax(), x[0].sort()[0], x[0].max(0)[0], x[0].softmax(0), x[0] * 2], (drawn(4),)),
}  # fmt: skip


def gradients(function: Callable[..., Any], given: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    """The results, and the gradients of the floats under weights that differ from place to place."""
    leaves = [each.clone().requires_grad_(each.is_floating_point()) for each in given]
    found = function(*leaves)
    outs = list(found) if isinstance(found, list | tuple) else [found]
    steps = [out for out in outs if out.requires_grad]
    sum((out * (torch.arange(out.numel()).reshape(out.shape) % 5 - 1.5)).sum() for out in steps).backward()  # type: ignore[union-attr]
    return [*(out.detach() for out in outs), *(each.grad for each in leaves if each.grad is not None)]


def agree(case: Case, protocol: str = "plain", within: float = 5e-3) -> None:
    function, given = case

    def program(session: Session) -> Any:
        return session.reveal(gradients(function, tuple(session.share(each, session.names[0]) for each in given)))

    wanted = gradients(function, given)
    got = local(program, protocol)[0]
    assert len(got) == len(wanted)
    for ours, theirs in zip(got, wanted, strict=True):
        assert ours.shape == theirs.shape
        assert ours.dtype == theirs.dtype
        assert bool(((ours.double() - theirs.double()).abs() <= within).all())


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_and_look_ups_take_every_argument(loss: str) -> None:
    agree(LOSSES[loss])


@pytest.mark.parametrize("loss", ["weighted classes", "a class ignored", "each pixel, weighted", "heavier positives"])
def test_and_so_they_do_on_shares(loss: str) -> None:
    agree(LOSSES[loss], "aby3", within=2e-2)


def test_a_public_class_that_is_none_is_an_error() -> None:
    def program(session: Session) -> None:
        x = session.share(LOGITS, session.names[0])
        with pytest.raises(IndexError, match="a target is none of 3 classes, nor ignore_index=-100"):
            F.cross_entropy(x, torch.tensor([0, 3, 1, 2]))

    local(program, "plain")


def test_gradients_by_frequency_are_refused() -> None:
    def program(session: Session) -> None:
        table = session.share(drawn(5, 3), session.names[0]).requires_grad_()
        with pytest.raises(SecretError, match="scale_grad_by_freq=True has no protocol"):
            F.embedding(ROWS, table, scale_grad_by_freq=True).sum().backward()

    local(program, "plain")


NUMBERS, WHOLE = drawn(4, 6), torch.tensor([[1, -2, 3], [0, 5, -6]])
ON_TENSORS: dict[str, Case] = {
    "integers beside floats": (
        lambda x, i: [torch.cat([i, x]), torch.cat([x, i]), torch.stack([x, i]), torch.cat([i, torch.ones(1, 3) / 3])],
        (NUMBERS[:2, :3], WHOLE),
    ),
    "conditions beside floats": (
        lambda x: [torch.cat([x, x > 0]), torch.stack([x > 0, x]), torch.cat([x > 0, x < 1])], (NUMBERS,),
    ),
    "logic of numbers": (
        lambda x, i: [
            torch.logical_and(x, i), torch.logical_or(i, x > 0), torch.logical_xor(i, x), torch.logical_not(i),
        ],
        (NUMBERS[:2, :3], WHOLE),
    ),
    "logic of public conditions": (lambda x: [(x > 0) | True, (x > 0) & False, (x > 0) ^ True], (NUMBERS,)),
    "a place that keeps its dimensions": (lambda x: x.argmax(keepdim=True), (NUMBERS,)),
}  # fmt: skip


@pytest.mark.parametrize("operation", ON_TENSORS)
def test_tensors_of_two_kinds_meet_in_their_common_one(operation: str) -> None:
    function, given = ON_TENSORS[operation]
    agree((lambda *each: [*function(*each), sum(one.sum() for one in each)], given))


def test_kinds_meet_on_shares_too() -> None:
    function, given = ON_TENSORS["integers beside floats"]
    agree((lambda *each: [*function(*each), sum(one.sum() for one in each)], given), "aby3")


def written(program: Callable[[torch.Tensor], Any], given: torch.Tensor = NUMBERS, protocol: str = "plain") -> None:
    """What a program makes of a tensor in place is what it makes of a secret."""

    def run(session: Session) -> Any:
        return session.reveal(program(session.share(given.clone(), session.names[0])))

    wanted = program(given.clone())
    got = local(run, protocol)[0]
    for ours, theirs in zip(got, wanted, strict=True):
        assert ours.shape == theirs.shape
        assert float((ours.double() - theirs.double()).abs().max()) <= 5e-3


@pytest.mark.parametrize("protocol", ["plain", "aby3", "pond"])
def test_replaced_data_is_what_a_parameter_holds(protocol: str) -> None:
    def program(x: torch.Tensor) -> Any:
        weights = torch.nn.Parameter(x)
        weights.data = weights.data.clamp(-0.5, 0.5)
        early = weights.detach().clone()
        weights.data = torch.ones(4, 6)
        weights.data[0] = 2.0
        return early, weights.detach()

    written(program, protocol=protocol)


@pytest.mark.parametrize("protocol", ["plain", "aby3", "pond"])
def test_a_deep_copy_is_a_tensor_of_its_own(protocol: str) -> None:
    def program(x: torch.Tensor) -> Any:
        model = torch.nn.Linear(6, 4, bias=False)
        model.weight = torch.nn.Parameter(x)
        other = copy.deepcopy(model)
        assert isinstance(other.weight, torch.nn.Parameter)
        assert other.weight.requires_grad
        other.weight.data.mul_(2)
        return model.weight.detach(), other.weight.detach()

    written(program, protocol=protocol)


def test_shapes_change_in_place() -> None:
    written(lambda x: (x.clone().t_() * 2, x.clone().unsqueeze_(0) * 2, x[:1].clone().squeeze_() * 2))


def test_what_is_written_in_place_takes_the_dtype_of_its_place() -> None:
    def program(x: torch.Tensor) -> Any:
        signs = x.clone()
        signs.gt_(0)
        mixed = x[:2, :3].clone()
        mixed.copy_(torch.tensor([1, 2, 3]))
        return signs / 3, torch.sigmoid(signs), mixed / 3

    written(program)


def test_what_does_not_fit_its_place_is_an_error() -> None:
    def program(session: Session) -> None:
        whole, x = (session.share(each, session.names[0]) for each in (WHOLE, NUMBERS))
        with pytest.raises(RuntimeError, match="float32 can't be cast to the desired output type torch.int64"):
            whole.mul_(0.5)
        with pytest.raises(RuntimeError, match="doesn't match the broadcast shape"):
            x[0].add_(x)
        with pytest.raises(SecretError, match="keeps its shape and dtype at .*given data of \\(6,\\)"):
            x.data = x[0]
        with pytest.raises(SecretError, match="'bitwise_and' of the bits of secret integers has no protocol at"):
            whole & 1
        with pytest.raises(SecretError, match="'div' with these arguments .as with out= or rounding_mode=. has no"):
            torch.div(x, 2, rounding_mode="trunc")

    local(program, "plain")


def test_public_noise_is_alike_at_all_parties() -> None:
    def program(session: Session) -> Any:
        x = session.share(NUMBERS, session.names[0])
        drawn = [
            torch.rand_like(x),
            torch.randn_like(x),
            torch.nn.init.xavier_uniform_(x.clone()),
            x.clone().normal_(3),
        ]
        return session.reveal([each + x for each in drawn]), session.reveal([each * x for each in drawn])

    (sums, products), *others = local(program, "aby3")
    for other in others:  # a product with numbers that differed between the parties would be noise
        assert torch.equal(other[1][0], products[0])
    for added, times in zip(sums, products, strict=True):
        assert torch.allclose((added - NUMBERS) * NUMBERS, times, atol=1e-3)
    assert bool(((sums[0] >= NUMBERS) & (sums[0] <= NUMBERS + 1)).all())


@pytest.mark.parametrize("layer", LAYERS)
def test_layers_that_scripts_use_and_their_gradients(layer: str) -> None:
    agree(LAYERS[layer], within=2e-2)


@pytest.mark.parametrize(
    ("layer", "protocol"),
    [
        *(("attention", "pond"), ("a mask of infinities", "aby3"), ("uneven means", "aby3"), ("products", "pond")),
        *(("taken at secret places", "aby3"), ("put at secret places", "pond"), ("large exponentials", "aby3")),
    ],
)
def test_and_those_on_shares(layer: str, protocol: str) -> None:
    agree(LAYERS[layer], protocol, within=3e-2)


def test_a_transformer_runs_unchanged_in_training_and_in_evaluation() -> None:
    torch.manual_seed(0)
    model = torch.nn.TransformerEncoder(
        torch.nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0, batch_first=True), 1, enable_nested_tensor=False
    )
    mask = torch.nn.Transformer.generate_square_subsequent_mask(4)
    x = drawn(2, 4, 6)

    def program(session: Session) -> Any:
        secret, given = session.share_module(copy.deepcopy(model)), session.share(x, session.names[0])
        trained = secret(given, mask=mask, is_causal=True)
        trained.sum().backward()
        gradient = secret.layers[0].linear1.weight.grad  # type: ignore[union-attr, index]
        with torch.no_grad():
            return session.reveal([trained, secret.eval()(given), gradient])

    trained, evaluated, gradient = local(program, "plain")[0]
    wanted = model(x, mask=mask, is_causal=True)
    wanted.sum().backward()
    assert torch.allclose(trained, wanted, atol=0.02)
    assert torch.allclose(gradient, model.layers[0].linear1.weight.grad, atol=0.02)  # type: ignore[union-attr, index, arg-type]
    with torch.no_grad():
        assert torch.allclose(evaluated, model.eval()(x), atol=0.02)


def test_fused_operations_come_back_as_they_were_when_the_last_session_ends() -> None:
    torch.backends.cuda.enable_flash_sdp(False)  # a user's own choice
    try:
        with Session(LocalMesh.of(["a"])[0], "plain"):
            with Session(LocalMesh.of(["b"])[0], "plain"):
                assert not torch.backends.mkldnn.enabled
            assert not torch.backends.mkldnn.enabled
            assert not torch.backends.mha.get_fastpath_enabled()
        assert torch.backends.mkldnn.enabled
        assert torch.backends.mha.get_fastpath_enabled()
        assert not torch.backends.cuda.flash_sdp_enabled()
    finally:
        torch.backends.cuda.enable_flash_sdp(True)


@pytest.mark.parametrize("protocol", ["plain", "aby3"])
def test_quotients_and_roots_are_exact_where_numbers_are_large(protocol: str) -> None:
    def program(x: torch.Tensor) -> Any:
        return (
            *(x / x, -x / (x + 2), torch.full((4,), 300.0) / -x),
            *((x * 4).sqrt() / 100, (x * x).sum().sqrt() / 1000),
        )

    written(program, torch.tensor([30000.0, 1000.0, 17.0, 4.0]), protocol)


def test_the_logarithm_of_nothing_is_that_of_half_a_unit() -> None:
    def program(session: Session) -> Any:
        return session.reveal(session.share(torch.tensor([0.0, -3.0, 2.0**-16]), session.names[0]).log())

    nothing, negative, least = local(program, "plain")[0].tolist()
    assert nothing == negative == pytest.approx(math.log(2.0**-17), abs=1e-2)
    assert nothing < least == pytest.approx(math.log(2.0**-16), abs=1e-2)


def test_other_powers_are_refused_with_a_formula() -> None:
    def program(session: Session) -> None:
        x = session.share(NUMBERS, session.names[0])
        with pytest.raises(SecretError, match=r"pow.x, 0.3. has no protocol at .*write torch.exp.0.3 . torch.log.x.."):
            x**0.3
        with pytest.raises(SecretError, match="numbers above 0 have"):
            (-2) ** x
        with pytest.raises(SecretError, match="a stable sort has no protocol"):
            x.sort(stable=True)

    local(program, "plain")
