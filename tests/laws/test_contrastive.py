"""Laws of losses over whole batches in one process: closed forms, tiles, pieces, positives, what is refused.

Several ranks are test_ranks.py's.
"""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mmtrain.backbone.clip import CLIP
from mmtrain.batch import Batch
from mmtrain.errors import UserError
from mmtrain.objective.contrastive import Contrastive, symmetric
from mmtrain.objective.tiles import Names, infonce, sigmoid
from mmtrain.objective.whole import _geometry, limited
from mmtrain.rng import Rng, drops_out
from tests.laws.pairs import objective, pairs, taken, towers

BOTH = pytest.mark.parametrize("name", ["contrastive", "siglip"])


def sides(count: int, width: int = 8) -> list[Tensor]:
    draw = torch.Generator().manual_seed(count)
    first, second = torch.randn(2, count, width, dtype=torch.float64, generator=draw)
    return [first.requires_grad_(), second.requires_grad_()]


def scalars() -> list[Tensor]:
    return [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (2.5, -3.0)]


def names(count: int, few: int) -> Names:
    draw = torch.Generator().manual_seed(few)
    return Names(*(torch.randint(0, few, (count,), generator=draw) for _ in range(2)))


def spelt_out(name: str, first: Tensor, second: Tensor, t: Tensor, b: Tensor, who: Names) -> Tensor:
    """The losses per pair from the whole matrix, by autograd."""
    cosines = F.normalize(first) @ F.normalize(second).T
    positive = (who.shown[:, None] == who.shown) | (who.said[:, None] == who.said)
    if name == "siglip":
        return -F.logsigmoid(torch.where(positive, 1.0, -1.0) * (t.exp() * cosines + b)).sum(1)
    own = torch.eye(len(first), dtype=torch.bool)
    logits = (t.exp() * cosines).masked_fill(positive & ~own, -torch.inf)
    pairs = torch.arange(len(first))
    return (F.cross_entropy(logits, pairs, reduction="none") + F.cross_entropy(logits.T, pairs, reduction="none")) / 2


@BOTH
@pytest.mark.parametrize("few", [5, 1000])
@pytest.mark.parametrize("tile", [1, 7, 29, 64])
def test_tiles_give_the_loss_and_the_gradients_of_the_whole_matrix(name: str, few: int, tile: int):
    (first, second), (t, b), who = sides(29), scalars(), names(29, few)
    weight = torch.rand(29, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    wanted = spelt_out(name, first, second, t, b, who)
    ins = [first, second, t, b] if name == "siglip" else [first, second, t]
    wanted_grads = torch.autograd.grad((wanted * weight).sum(), ins)
    more = [F.normalize(first), F.normalize(second), t]
    found = sigmoid(*more, b, who, tile) if name == "siglip" else infonce(*more, who, tile)
    grads = torch.autograd.grad((found.loss * weight).sum(), ins)
    for got, right in zip([found.loss, *grads], [wanted, *wanted_grads], strict=True):
        torch.testing.assert_close(got, right, rtol=0, atol=1e-10)


def test_duplicates_are_all_pulled_and_never_pushed():
    """Two pictures of one caption: the loss is the mean over positives of −log p(positive | it and the negatives)."""
    first, _ = sides(6)
    said = torch.tensor([0, 1, 2, 0, 3, 1])
    second = sides(7)[1].detach()[said].requires_grad_()  # one caption, one embedding
    t = torch.tensor(1.5, dtype=torch.float64)
    got = infonce(F.normalize(first), F.normalize(second), t, Names(torch.arange(6), said), 4)
    logits = t.exp() * F.normalize(first) @ F.normalize(second).T
    positive = said[:, None] == said
    losses = []
    for side in (logits, logits.T):
        negative = side.masked_fill(positive, -torch.inf).logsumexp(1)
        each = F.softplus(negative[:, None] - side)
        losses.append((each * positive).sum(1) / positive.sum(1))
    torch.testing.assert_close(got.loss.mean(), (losses[0] + losses[1]).mean() / 2, rtol=0, atol=1e-12)
    (pull,) = torch.autograd.grad(got.loss[0], second)  # of pair 0 alone, whose caption pair 3 has too
    assert float(pull[3].abs().max()) == 0
    assert float(pull[1].abs().max()) > 1e-3
    assert got.negatives.tolist() == [4, 4, 5, 4, 5, 4]


@BOTH
@pytest.mark.parametrize("pieces", [1, 2, 3, 4, 8])
def test_pieces_give_the_gradients_of_the_whole_with_dropout_at_work(name: str, pieces: int, tiny_clip: Path):
    model, adapters = towers(tiny_clip, name)
    rng = Rng(3, 5, pairs().positions)
    whole = objective(name)(model, pairs(), rng)
    whole.per_sample.mean().backward()
    wanted = taken(adapters)
    torch.manual_seed(99)  # nothing reads the global generator
    found = objective(name, tile=3)(model, pairs(), rng, pieces)
    torch.rand(7)  # nor does the second forward pass
    found.per_sample.mean().backward()
    got = taken(adapters)
    torch.testing.assert_close(found.per_sample, whole.per_sample, rtol=0, atol=1e-10)
    assert float(wanted["temperature/log_scale"].abs()) > 1e-3
    for key, grad in wanted.items():
        torch.testing.assert_close(got[key], grad, rtol=0, atol=1e-10, msg=key)


def test_dropout_is_at_work_in_these_laws(tiny_clip: Path):
    model, _ = towers(tiny_clip, "contrastive")
    assert drops_out(model)
    losses = [Contrastive()(model, pairs(), Rng(0, step, pairs().positions)).per_sample for step in (0, 0, 1)]
    assert torch.equal(losses[0], losses[1])
    assert not torch.allclose(losses[0], losses[2])
    still, _ = towers(tiny_clip, "contrastive", dropout=0.0)
    assert not drops_out(still)


def test_a_samples_dropout_does_not_depend_on_its_company():
    layer, x = torch.nn.Dropout(0.4), torch.ones(12, 5)
    with Rng(1, 2, [7, 8, 9, 10]).dropout():  # twelve rows: three of each sample
        whole, again = layer(x), layer(x)
    with Rng(1, 2, [9]).dropout():
        torch.testing.assert_close(layer(x[:3]), whole[6:9])
        torch.testing.assert_close(layer(x[:3]), again[6:9])
    assert not torch.equal(whole, again)
    kept = whole[whole > 0]
    torch.testing.assert_close(kept, torch.full_like(kept, 1 / 0.6))
    with pytest.raises(UserError, match="first axis"), Rng(1, 2, [0, 1]).dropout():
        layer(x[:3])


def test_dropout_inside_an_attention_is_keyed_too():
    x = torch.randn(4, 2, 6, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    made = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        with Rng(1, 2, range(4)).dropout():
            made.append(F.scaled_dot_product_attention(x, x, x, dropout_p=0.5))
    assert torch.equal(*made)
    assert not torch.allclose(made[0], F.scaled_dot_product_attention(x, x, x))


def test_the_temperature_is_limited_and_finds_its_way_back():
    t = torch.tensor([2.0, 5.0, 5.0], dtype=torch.float64, requires_grad=True)
    value = limited(t)
    assert value.tolist() == [2.0, math.log(100.0), math.log(100.0)]
    (grad,) = torch.autograd.grad(value, t, torch.tensor([-1.0, -1.0, 1.0], dtype=torch.float64))
    assert grad.tolist() == [-1.0, 0.0, 1.0]  # a positive one makes it smaller


@BOTH
def test_all_captions_equal_is_no_contest(name: str, tiny_clip: Path):
    """Defined: every pair is positive. InfoNCE has nothing to learn, SigLIP pulls all together; the log says so."""
    model, adapters = towers(tiny_clip, name, dropout=0.0)
    batch = pairs()
    batch.captions = ["a red circle"] * 8
    found = objective(name)(model, batch, Rng(0, 0, batch.positions))
    assert found.logs["negatives"] == 0
    found.per_sample.sum().backward()
    moved = max(float(g.abs().max()) for g in taken(adapters).values())
    if name == "contrastive":
        assert max(moved, float(found.per_sample.detach().abs().max())) < 1e-12
    else:
        assert moved > 1e-3


def refused(tiny_clip: Path, **changes: list[str]) -> pytest.ExceptionInfo[UserError]:
    model, _ = towers(tiny_clip, "contrastive")
    batch = pairs()
    for name, value in changes.items():
        setattr(batch, name, value)
    with pytest.raises(UserError) as error:
        Contrastive()(model, batch, Rng(0, 0, batch.positions))
    return error


def test_a_single_pair_is_refused(tiny_clip: Path):
    model, _ = towers(tiny_clip, "contrastive")
    one = pairs().part(slice(0, 1))
    with pytest.raises(UserError, match=r"one pair.*batch_size"):
        Contrastive()(model, one, Rng(0, 0, one.positions))


def test_an_empty_caption_is_refused_by_its_sample(tiny_clip: Path):
    assert "sample 'c'" in str(refused(tiny_clip, captions=["a", "a", " ", *["a"] * 5]).value)


def test_embeddings_that_are_not_finite_are_refused_before_the_step(tiny_clip: Path):
    model, _ = towers(tiny_clip, "contrastive")
    batch = pairs()
    batch.frames[3, 0, 0, 5, 5] = torch.nan
    with pytest.raises(UserError, match="sample 'd'.*shown is not finite"):
        Contrastive()(model, batch, Rng(0, 0, batch.positions))


def test_widths_that_differ_are_refused(tiny_clip: Path):
    model, _ = towers(tiny_clip, "contrastive")
    model.embed_text = lambda captions: torch.zeros(len(captions), 96, dtype=torch.float64)
    with pytest.raises(UserError, match=r"24 wide.*96.*projection"):
        Contrastive()(model, pairs(), Rng(0, 0, pairs().positions))


def test_siglip_without_a_bias_names_the_adapter(tiny_clip: Path):
    batch = pairs()
    batch.frames = batch.frames.float()
    with pytest.raises(UserError, match="temperature_siglip"):
        objective("siglip")(CLIP(path=str(tiny_clip)), batch, Rng(0, 0, batch.positions))


def test_what_is_logged_is_what_it_says():
    first, second = (F.normalize(side.detach()) for side in sides(12))
    logs = _geometry(first, second)
    assert float(logs["alignment"]) == pytest.approx(float((first - second).norm(dim=1).square().mean()))
    spread = [float(torch.pdist(side).square().mul(-2).exp().mean().log()) for side in (first, second)]
    assert float(logs["uniformity"]) == pytest.approx(sum(spread) / 2)


def test_symmetric_takes_sides_that_are_not_normalised():
    first, second = sides(7)
    wanted = spelt_out("contrastive", first, second, *scalars(), names(7, 10**9))
    torch.testing.assert_close(symmetric(3 * first, second / 7, 2.5), wanted, rtol=0, atol=1e-12)


def test_half_precision_is_compared_in_full(tiny_clip: Path):
    model, _ = towers(tiny_clip, "contrastive", dropout=0.0)
    model.float()
    batch = Batch(pairs().keys, pairs().positions, pairs().captions, pairs().frames.float())
    wanted = Contrastive()(model, batch, Rng(0, 0, batch.positions)).per_sample
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = Contrastive()(model, batch, Rng(0, 0, batch.positions)).per_sample
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, wanted, rtol=0.05, atol=0.05)
