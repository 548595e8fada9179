"""bench.paper's runs: schedules, learning rates that are read, batches, what a run leaves."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from paper_data import TINY, sentences

from bench.paper import classification, tokens, translation
from bench.paper.catalogues import Pair
from bench.paper.classification import augmented, endless_rows
from bench.paper.contenders import Contender, adamod, inverse_root, one_drop
from bench.paper.curves import Curve
from bench.paper.fashion import Images
from bench.paper.files import write_json
from bench.paper.plan import ADAM, EXPERIMENTS, SGDM, WARMED, Group, groups, runs
from bench.paper.rates import BINS, edges, snapshot
from bench.paper.settings import GPU

SETTINGS = TINY.tasks["transformer"]
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> translation.TranslationData:
    pairs = [Pair(*items) for items in sentences(0).items()]
    path = tmp_path_factory.mktemp("tokens") / "tokens.json"
    learnt = tokens.tokenizer(pairs, SETTINGS.vocabulary, path)
    splits = dict.fromkeys(("training", "validation", "test"), pairs)
    return translation.TranslationData.of(splits, learnt, SETTINGS)


def train(data: translation.TranslationData, contender: Contender, **changes: object) -> dict:
    settings = dataclasses.replace(SETTINGS, **changes)
    return translation.train(settings, contender, 1, data, "cpu")


def test_schedules() -> None:
    rising = [inverse_root(step, 4, rises=True) for step in range(8)]
    flat = [inverse_root(step, 4, rises=False) for step in range(8)]
    assert rising[:4] == [0.25, 0.5, 0.75, 1.0]
    assert flat[:4] == [1.0] * 4
    assert rising[4:] == flat[4:]
    assert flat[4:] == pytest.approx([(4 / step) ** 0.5 for step in range(5, 9)])
    assert [one_drop(step, 8) for step in range(8)] == [1.0] * 6 + [0.1] * 2


def test_what_is_used_is_counted(data: translation.TranslationData) -> None:
    training, test = len(data.training), len(data.test)
    counts = {"training": training, "validation": training, "test": test}
    assert 0 < test < training
    assert data.facts() == {**counts, "known": test}
    unseen = [pair for pair in data.training if pair.target != data.test[0].target]
    assert dataclasses.replace(data, training=unseen).facts()["known"] == test - 1


def test_batches_hold_every_pair_once(data: translation.TranslationData) -> None:
    generator = torch.Generator().manual_seed(1)
    found = tokens.endless_batches(data.training, 4, generator)
    epoch = [next(found) for _ in range(5)]
    rows = [row[row != tokens.PAD].tolist() for _, target in epoch for row in target]
    assert sorted(rows) == sorted(pair.target for pair in data.training)
    assert all(row[0] == tokens.BOS and row[-1] == tokens.EOS for row in rows)


def test_a_transformer_learns(data: translation.TranslationData) -> None:
    contender = dataclasses.replace(ADAM, lr=0.02)
    found = train(data, contender, steps=60, evaluate_every=20)
    losses = found["curve"]["validation_loss"]
    assert found["curve"]["step"] == [20, 40, 60]
    assert losses[-1] < 0.6 * math.log(SETTINGS.vocabulary)
    assert found["final"]["validation_loss"] == pytest.approx(losses[-1], rel=1e-4)
    assert not found["diverged"]


def test_without_a_bound_adamod_is_adam(data: translation.TranslationData) -> None:
    ours, adam = train(data, adamod(1e-3, 0.0)), train(data, ADAM)
    assert ours["curve"]["training_loss"] == pytest.approx(adam["curve"]["training_loss"], rel=1e-4)
    bounded = train(data, adamod(1e-3, 0.9999))
    assert bounded["curve"]["training_loss"][-1] > adam["curve"]["training_loss"][-1]


def test_seeds_and_warm_up_matter(data: translation.TranslationData) -> None:
    first = train(data, ADAM)
    assert train(data, ADAM) == first
    assert translation.train(SETTINGS, ADAM, 2, data, "cpu")["final"] != first["final"]
    assert train(data, WARMED)["final"] != first["final"]


def test_a_run_that_diverges_says_so(data: translation.TranslationData) -> None:
    found = train(data, dataclasses.replace(SGDM, lr=1e30))
    assert found["diverged"]
    assert found["final"] == {"validation_loss": math.log(SETTINGS.vocabulary), "bleu": 0.0}
    assert found["rates"] == []


@pytest.mark.parametrize("contender", [ADAM, adamod(1e-3, 0.9)], ids=["Adam", "AdaMod"])
def test_gradients_may_turn_nan(
    data: translation.TranslationData,
    contender: Contender,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Between two marks, so that learning rates are read of what has diverged already."""
    loss_of, losses = translation.loss_of, []

    def nan_from_the_third(*given: object) -> torch.Tensor:
        losses.append(loss_of(*given))
        return losses[-1] * (1.0 if len(losses) < 3 else math.nan)

    monkeypatch.setattr(translation, "loss_of", nan_from_the_third)
    found = train(data, contender, evaluate_every=10)
    assert found["diverged"]
    assert [snapshot["step"] for snapshot in found["rates"]] == [1, 2]
    write_json(found, tmp_path / "run.json")
    assert json.loads((tmp_path / "run.json").read_text()) == found


def test_bleu_of_a_perfect_model(data: translation.TranslationData) -> None:
    class Perfect(torch.nn.Module):
        def translate(self, source: torch.Tensor, max_tokens: int) -> list[list[int]]:
            by_source = {tuple(p.source): p.target[1:-1] for p in data.test}
            return [by_source[tuple(row[row != tokens.PAD].tolist())] for row in source]

    assert translation.bleu_of(Perfect(), data, SETTINGS, "cpu") == pytest.approx(100)


@pytest.mark.parametrize("contender", [ADAM, adamod(1e-3, 0.9)], ids=["Adam", "AdaMod"])
def test_rates_are_those_of_the_step(contender: Contender) -> None:
    param = torch.nn.Parameter(torch.zeros(4))
    optimizer = contender.optimizer([param])
    grads = torch.tensor([0.0, 1.0, 0.01, 1e-4])
    for _ in range(2):
        param.grad = grads.clone()
        optimizer.step()
    found = snapshot(optimizer, step=2)
    assert found["step"] == 2
    assert found["silent"] == 0.25
    assert found["eta"]["max"] == pytest.approx(1e-3 / (1e-4 + 1e-8), rel=1e-4)
    assert found["eta"]["median"] == pytest.approx(0.1, rel=1e-4)
    histogram = found["eta"]["histogram"]
    assert len(histogram) == len(edges()) - 1 == BINS
    assert sum(histogram) == pytest.approx(1, abs=1e-5)
    if contender is not ADAM:
        share = 1 - 0.9**2  # of a constant rate, after two steps
        assert found["bounded"]["median"] == pytest.approx(0.1 * share, rel=1e-4)
    else:
        assert "bounded" not in found


@pytest.mark.parametrize("contender", [ADAM, adamod(1e-3, 0.9)], ids=["Adam", "AdaMod"])
@pytest.mark.parametrize("grads", [[1.0, math.nan], [math.inf, 1.0], [0.0, 0.0]])
def test_rates_that_say_nothing_are_not_told(contender: Contender, grads: list[float]) -> None:
    param = torch.nn.Parameter(torch.zeros(2))
    param.grad = torch.tensor(grads)
    optimizer = contender.optimizer([param])
    optimizer.step()
    found = snapshot(optimizer, 1)
    assert found is None or math.isfinite(found["eta"]["max"])
    assert (found is None) == (grads != [math.inf, 1.0])  # v = inf is a rate of 0


@pytest.mark.parametrize("contender", [SGDM, adamod(1e-3, variant="released")])
def test_other_rules_have_no_such_rates(contender: Contender) -> None:
    param = torch.nn.Parameter(torch.ones(2))
    param.grad = torch.ones(2)
    optimizer = contender.optimizer([param])
    optimizer.step()
    assert snapshot(optimizer, 1) is None


def test_a_curve_holds_means_since_the_last_mark() -> None:
    curve = Curve("accuracy")
    for loss in (1.0, 3.0):
        curve.add(torch.tensor(loss))
    curve.mark(2, 50.0)
    curve.add(torch.tensor(5.0))
    curve.mark(3, 60.0)
    curve.add(torch.tensor(math.inf))
    curve.mark(4, 70.0)
    assert curve.facts() == {
        "diverged": True,
        "curve": {"step": [2, 3], "training_loss": [2.0, 5.0], "accuracy": [50.0, 60.0]},
    }


def images(count: int) -> Images:
    labels = torch.arange(count) % 10
    return Images((labels.float() / 5 - 1).view(-1, 1, 1, 1).expand(-1, 1, 28, 28), labels)


def test_images_are_learnt() -> None:
    settings = dataclasses.replace(TINY.tasks["resnet"], images=200, epochs=8)
    both = {"training": images(200), "test": images(50)}
    contender = dataclasses.replace(ADAM, lr=0.02)
    found = classification.train(settings, contender, 1, both, "cpu")
    assert found["curve"]["step"] == [10 * epoch for epoch in range(1, 9)]
    assert found["final"]["accuracy"] == pytest.approx(found["curve"]["accuracy"][-1])
    assert found["final"]["accuracy"] > 20
    assert classification.train(settings, contender, 1, both, "cpu") == found


def test_images_may_diverge() -> None:
    both = {"training": images(60), "test": images(20)}
    contender = dataclasses.replace(SGDM, lr=1e38)
    found = classification.train(TINY.tasks["resnet"], contender, 1, both, "cpu")
    assert found["diverged"]
    assert found["final"] == {"accuracy": 10.0}


def test_an_epoch_has_every_image_once() -> None:
    settings = dataclasses.replace(TINY.tasks["resnet"], images=50)  # of which 10 are too many
    rows = endless_rows(settings, torch.Generator().manual_seed(1))
    epoch = torch.cat([next(rows) for _ in range(2)])
    assert len(epoch.unique()) == 40
    assert not torch.equal(torch.cat([next(rows) for _ in range(2)]), epoch)


def test_augmentation_shifts_and_mirrors() -> None:
    image = torch.zeros(1, 28, 28)
    image[0, 12, 14] = 1.0
    image[0, 12, 15] = 0.5
    found = augmented(image.expand(400, 1, 28, 28), torch.Generator().manual_seed(1))
    assert found.shape == (400, 1, 28, 28)
    assert torch.equal(found.amax((1, 2, 3)), torch.ones(400))
    places = {(divmod(int(one.argmax()), 28)) for one in found}
    assert {row for row, _ in places} == set(range(8, 17))
    assert {column for _, column in places} == set(range(9, 19))  # 13 or 14, and 4 to each side


def test_shared_runs_are_run_once() -> None:
    every = runs(EXPERIMENTS, TINY)
    assert len(set(every)) == len(every)
    assert len({run.key(TINY) for run in every}) == len(every)
    apart = sum(len(groups(experiment, TINY)) for experiment in EXPERIMENTS)
    assert len(every) < 3 * apart
    assert [run.seed for run in every] == sorted(run.seed for run in every)
    assert Group("transformer", adamod(1e-3)).runs(TINY)[0] in every
    assert "transformer-base" in {run.task for run in runs(["warmup"], GPU)}


def test_other_settings_are_another_run() -> None:
    run = Group("transformer", ADAM).runs(TINY)[0]
    changed = dataclasses.replace(
        TINY, tasks=TINY.tasks | {"transformer": dataclasses.replace(SETTINGS, steps=11)}
    )
    assert run.key(TINY) != run.key(changed)
