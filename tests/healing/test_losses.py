"""Losses against the original: exact values and gradients, and what they leave out."""

import math

import pytest
import torch

from hf_prune.healing import divergence as module
from hf_prune.healing.divergence import divergence, likeliest
from hf_prune.healing.registries import loss
from hf_prune.healing.view import IGNORED, TeacherView, View

V = 40


def logits(seed, batch=3, length=5, scale=3.0):
    return scale * torch.randn(batch, length, V, generator=torch.Generator().manual_seed(seed))


def labels(batch=3, length=5):
    found = torch.ones(batch, length, dtype=torch.int64)
    found[0, 3:] = IGNORED  # pads
    found[2, :2] = IGNORED  # what somebody else said
    found[:, -1] = IGNORED
    return found


def stored(teacher, k, temperature=1.0):
    """The view of a teacher whose likeliest tokens alone were kept."""
    values, ids, tail = likeliest(teacher.flatten(0, 1), k, temperature)
    shape = teacher.shape[:2]
    return TeacherView(top=(values.reshape(*shape, -1), ids.reshape(*shape, -1)), tail=tail.reshape(shape))


def naive(student, teacher, counted, temperature=1.0, k=None):
    """The definition, by autograd alone, in float64."""
    p, q = ((x.double() / temperature).softmax(-1)[counted] for x in (teacher, student))
    if k is not None:
        ids = p.topk(k, -1).indices
        (p, q) = (torch.cat((x.gather(-1, ids), x.scatter(-1, ids, 0.0).sum(-1, keepdim=True)), -1) for x in (p, q))
        if k == V:
            p, q = p[..., :-1], q[..., :-1]
    return (p * (p.log() - q.log())).sum()


@pytest.fixture(params=["one chunk", "chunks"])
def chunked(request, monkeypatch):
    if request.param == "chunks":
        monkeypatch.setattr(module, "_NUMBERS", 3 * V)  # three positions at a time, the last chunk smaller


@pytest.mark.usefixtures("chunked")
@pytest.mark.parametrize("temperature", [1.0, 2.0, 0.5])
# What is kept has a number of tokens.
@pytest.mark.parametrize(
    ("k", "kept"), [(None, False), *((k, kept) for k in (1, 7, V - 1, V) for kept in (False, True))]
)
def test_value_and_gradient_are_those_of_the_definition(temperature, k, kept):
    teacher, student, counted = logits(0), logits(1).requires_grad_(), labels() != IGNORED
    view = stored(teacher, k, temperature) if kept else TeacherView(logits=teacher)
    found = divergence(student, view, counted, temperature=temperature, top_k=None if kept else k)
    (3 * found).backward()
    twin = student.detach().clone().requires_grad_()
    expected = naive(twin, teacher, counted, temperature, k)
    (3 * expected).backward()
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(student.grad, twin.grad, rtol=1e-4, atol=1e-6)


def test_all_tokens_and_a_bucket_are_the_full_divergence():
    teacher, student, counted = logits(0), logits(1), labels() != IGNORED
    full = divergence(student, TeacherView(logits=teacher), counted)
    for view, k in (
        (TeacherView(logits=teacher), V),
        (TeacherView(logits=teacher), V + 9),
        (stored(teacher, V), None),
    ):
        assert divergence(student, view, counted, top_k=k).item() == pytest.approx(full.item(), rel=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_fewer_tokens_never_see_more(seed):
    teacher, student, counted = logits(seed), logits(seed + 50), labels() != IGNORED
    view = TeacherView(logits=teacher)
    found = [divergence(student, view, counted, top_k=k).item() for k in (1, 2, 5, 12, 30, V)]
    # The likeliest k + 1 tokens refine the likeliest k.
    assert all(one <= two * (1 + 1e-6) for one, two in zip(found, found[1:], strict=False))
    assert found[0] < found[-1]


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("k", [None, 4, V])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_is_learned_from_equal_predictions(temperature, k, dtype):
    teacher = logits(0).to(dtype)
    for view in (TeacherView(logits=teacher), stored(teacher, k or V, temperature)):
        student = teacher.clone().requires_grad_()
        found = divergence(student, view, labels() != IGNORED, temperature=temperature, top_k=k)
        found.backward()
        assert abs(found.item()) < 1e-6
        assert student.grad.abs().max() < 1e-7
        assert student.grad.dtype == dtype
    if temperature == 1.0:
        assert divergence(teacher, TeacherView(logits=teacher), labels() != IGNORED, top_k=k).item() == 0.0


def test_a_tail_of_almost_nothing_keeps_its_digits():
    """Where the likeliest token has all but 1e-9, one minus its probability would be noise."""
    teacher, student = torch.zeros(1, 1, V), torch.zeros(1, 1, V)
    teacher[..., 0], student[..., 0] = 24.0, 26.0
    counted = torch.ones(1, 1, dtype=torch.bool)
    expected = naive(student, teacher, counted, k=1).item()
    assert expected < 1e-8
    assert divergence(student, TeacherView(logits=teacher), counted, top_k=1).item() == pytest.approx(
        expected, abs=1e-9
    )
    rest = stored(teacher, 1).tail.item()
    assert rest == pytest.approx(math.log(39) - 24.0, abs=1e-5)


def test_numbers_that_mean_nothing_are_not_hidden():
    student = logits(1)
    student[0, 0, 0] = float("nan")
    for k in (None, 3):
        assert divergence(student, TeacherView(logits=logits(0)), labels() != IGNORED, top_k=k).isnan()


def test_tokens_that_the_vocabulary_lacks_count_nothing():
    """Some models give padding of the vocabulary a logit of minus infinity."""
    teacher, student = logits(0), logits(1)
    cut = [x[..., :-5].clone() for x in (student, teacher)]
    teacher[..., -5:] = student[..., -5:] = float("-inf")
    student.requires_grad_()
    for k in (None, 3, V - 5, V):
        found = divergence(student, TeacherView(logits=teacher), labels() != IGNORED, top_k=k)
        expected = divergence(cut[0], TeacherView(logits=cut[1]), labels() != IGNORED, top_k=k)
        assert found.item() == pytest.approx(expected.item(), rel=1e-5)
        (gradient,) = torch.autograd.grad(found, student)
        assert gradient.isfinite().all()
        assert not gradient[..., -5:].any()


def views(seed, teacher_seed, positions=(1, 3)):
    def states(at):
        generator = torch.Generator().manual_seed(at)
        return {p: 10.0**p * torch.randn(3, 5, 8, generator=generator) for p in positions}

    teacher = TeacherView(logits=logits(teacher_seed), states=states(teacher_seed))
    return View(logits(seed), labels(), states(seed), teacher, seams=positions[:1])


@pytest.mark.parametrize("name", ["next_token", "kl", "seam", "hidden"])
def test_pads_and_what_is_not_learned_count_nowhere(name):
    view = views(0, 1)
    function = loss.get(name).function
    found = function(view)
    skipped = ~view.counted
    everything = [view.logits, view.teacher.logits, *view.states.values(), *view.teacher.states.values()]
    for tensor in everything:
        tensor[skipped] = 1e4
    assert function(view) == found
    for tensor in everything:
        tensor.requires_grad_()
    function(view).backward()
    for tensor in [view.logits, *view.states.values()]:
        assert tensor.grad is None or not tensor.grad[skipped].any()


@pytest.mark.parametrize("name", ["next_token", "kl", "seam", "hidden"])
def test_losses_of_parts_add_up_to_that_of_the_whole(name):
    view, function = views(0, 1), loss.get(name).function

    def part(rows):
        teacher = TeacherView(view.teacher.logits[rows], states={p: s[rows] for p, s in view.teacher.states.items()})
        states = {p: s[rows] for p, s in view.states.items()}
        return View(view.logits[rows], view.labels[rows], states, teacher, view.seams)

    parts = [function(part(slice(i, i + 1))).item() for i in range(3)]
    assert sum(parts) == pytest.approx(function(view).item(), rel=1e-5)


def test_the_temperature_keeps_gradients_of_one_size():
    view = views(0, 1)
    found = loss.get("kl").function(view, temperature=2.0).item()
    assert found == pytest.approx(4 * naive(view.logits, view.teacher.logits, view.counted, 2.0).item(), rel=1e-5)


def test_states_are_compared_relative_to_the_originals_token_by_token():
    view = views(0, 1)
    count = int(view.counted.sum())

    def expected(position):
        x, y = view.states[position][view.counted].double(), view.teacher.states[position][view.counted].double()
        return sum(float((a - b) @ (a - b) / (b @ b)) for a, b in zip(x, y, strict=True))

    assert loss.get("seam").function(view).item() == pytest.approx(expected(1), rel=1e-5)
    assert loss.get("hidden").function(view).item() == pytest.approx((expected(1) + expected(3)) / 2, rel=1e-5)
    # Another unit of the stream is the same loss, and a model that writes nothing has a loss of one a token.
    for states in (view.states, view.teacher.states):
        for position in states:
            states[position] = states[position] * 1000
    assert loss.get("seam").function(view).item() == pytest.approx(expected(1), rel=1e-5)
    view.states[1].zero_()
    assert loss.get("seam").function(view).item() == pytest.approx(count)
