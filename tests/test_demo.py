"""The command line: ``demo`` trains, compares, draws, records; ``doctor`` names every backend."""

import json
import os
import subprocess
import sys

import pytest
import torch

from adamod_fused import AdaMod, __main__, backends, extras
from adamod_fused.console import PlainConsole
from adamod_fused.demo import rates, text
from adamod_fused.demo.compare import difference
from adamod_fused.demo.settings import Settings

TINY = ("--steps=12", "--width=32", "--layers=1", "--context=16", "--batch=4", "--device=cpu")

needs_matplotlib = pytest.mark.skipif(
    not extras.installed("matplotlib"), reason=f"the demo draws with matplotlib: {extras.INSTALL}"
)


def run(*arguments, code=None):
    """``python -m adamod_fused``, or ``code`` and then its main(), in a process of its own."""
    start = ["-m", "adamod_fused"]
    if code is not None:
        start = ["-c", f"{code}\nfrom adamod_fused.__main__ import main\nraise SystemExit(main())"]
    # One thread: these runs are tiny, and threads that wait for each other on a busy machine slow.
    return subprocess.run(
        [sys.executable, *start, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A finished tiny demo: its process, its folder and its record."""
    if not extras.installed("matplotlib"):
        pytest.skip(f"the demo draws with matplotlib: {extras.INSTALL}")
    folder = tmp_path_factory.mktemp("demo") / "new" / "folder"
    process = run("demo", *TINY, "--out", folder)
    assert process.returncode == 0, process.stderr
    return process, folder, json.loads((folder / "results.json").read_text())


def test_demo_tells_what_it_found(tiny):
    process, folder, _ = tiny
    for word in ("AdaMod", "reference", "Adam", "train loss", "identical", "yes"):
        assert word in process.stdout
    assert process.stdout.rstrip().splitlines()[-1] == f"figure: {folder / 'demo.png'}"


def test_demo_records_the_run(tiny):
    _, _, record = tiny
    assert record["identical"] is True
    assert record["difference"] is None
    assert record["settings"]["steps"] == 12
    assert record["settings"]["beta3"] == Settings.beta3
    assert {"python", "torch", "triton", "CUDA"} <= record["versions"].keys()
    assert [run["optimizer"] for run in record["runs"]] == ["AdaMod", "AdaMod", "Adam"]
    assert record["runs"][1]["backend"] == "reference"
    for run_ in record["runs"]:
        assert len(run_["losses"]) == 12
        assert run_["validation_loss"] < run_["validation"][0][1] - 1e-3
        assert run_["optimizer_step_ms"] > 0
    assert [rate["step"] for rate in record["rates"]] == [1, 10, 12]


def test_demo_backend_and_reference_have_equal_losses(tiny):
    backend, reference, adam = (run_["losses"] for run_ in tiny[2]["runs"])
    assert backend == reference
    assert adam != reference


def test_demo_is_deterministic_and_works_without_rich(tiny, tmp_path):
    block_rich = "import sys; sys.modules['rich'] = None"
    process = run("demo", *TINY, "--out", tmp_path, code=block_rich)
    assert process.returncode == 0, process.stderr
    assert "optimizer  backend" in process.stdout
    again = json.loads((tmp_path / "results.json").read_text())
    for key in ("losses", "validation"):
        assert [r[key] for r in again["runs"]] == [r[key] for r in tiny[2]["runs"]]
    assert again["rates"] == tiny[2]["rates"]


def test_demo_draws_both_optimizers(tiny):
    from matplotlib.colors import to_rgb
    from matplotlib.image import imread

    from adamod_fused.demo import plot

    image = torch.from_numpy(imread(tiny[1] / "demo.png"))[..., :3]
    height, width, _ = image.shape
    assert height > 600
    assert width > 1500
    for half in (image[:, : width // 2], image[:, width // 2 :]):
        # On the left AdaMod's curve is translucent over white; the markers are not.
        for color in (plot.ADAMOD, plot.ADAM):
            close = (half - torch.tensor(to_rgb(color))).abs().amax(-1) < 0.02
            assert close.sum() > 50, f"{color} is missing"


@needs_matplotlib
def test_demo_fails_where_a_bit_differs(tmp_path):
    process = run(
        "demo",
        *TINY,
        "--out",
        tmp_path,
        code="""
from adamod_fused.demo import cli
contestants = cli._contestants
def unequal(settings, device):
    backend, reference, adam = contestants(settings, device)
    build = lambda parameters: cli.AdaMod(parameters, lr=settings.lr, eps=1.001e-8)
    return backend, cli.Contestant("AdaMod", "reference", build), adam
cli._contestants = unequal
""",
    )
    assert process.returncode == 1, process.stderr
    assert "elements differ, by up to" in process.stdout
    assert json.loads((tmp_path / "results.json").read_text())["identical"] is False


@needs_matplotlib
def test_the_reference_repeats_the_first_steps_only(tmp_path):
    code = "from adamod_fused.demo import cli; cli.REFERENCE_STEPS = 5"
    process = run("demo", *TINY, "--out", tmp_path, code=code)
    assert process.returncode == 0, process.stderr
    assert "after 5" in process.stdout
    record = json.loads((tmp_path / "results.json").read_text())
    assert [len(run_["losses"]) for run_ in record["runs"]] == [12, 5, 12]
    assert record["runs"][0]["losses"][:5] == record["runs"][1]["losses"]


@needs_matplotlib
def test_demo_that_diverges_still_ends_well(tmp_path):
    process = run("demo", *TINY, "--lr", "1e30", "--out", tmp_path)
    assert process.returncode == 0, process.stderr
    assert "nan" in process.stdout
    record = json.loads((tmp_path / "results.json").read_text(), parse_constant=pytest.fail)
    assert record["identical"] is True
    assert record["runs"][0]["train_loss"] is None


def test_demo_without_matplotlib_says_what_to_install(tmp_path):
    out = tmp_path / "out"
    process = run("demo", *TINY, "--out", out, code="import sys; sys.modules['matplotlib'] = None")
    assert process.returncode == 2
    assert "pip install 'adamod_fused[demo]'" in process.stderr
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "COMMAND"),
        ("demos", "invalid choice: 'demos'"),
        ("demo --steps 1", "must be a whole number >= 2, got 1"),
        ("demo --steps many", "must be a whole number >= 2, got many"),
        ("demo --width 100", "must be a multiple of 32, got 100"),
        ("demo --width 0", "must be a whole number >= 32, got 0"),
        (f"demo --seed {2**63}", "must be at most 9223372036854775807"),
        ("demo --lr 0", "must be positive and finite, got 0"),
        ("demo --lr nan", "must be positive and finite, got nan"),
        ("demo --lr high", "must be a number, got high"),
        ("demo --beta3 1", "must lie in [0, 1), got 1"),
        ("demo --beta3 -0.1", "must lie in [0, 1), got -0.1"),
        ("demo --backend opencl", "invalid choice: 'opencl'"),
        ("demo --device cpu --backend cuda", "'cuda'"),
        ("demo --context 1000000", "context must be at most"),
        ("demo --out {file}", "must be a folder"),
        ("demo --out {file}/below", "Not a directory"),
        ("doctor --fast", "unrecognized arguments: --fast"),
    ],
)
def test_bad_arguments_exit_2_before_any_training(
    arguments, message, monkeypatch, capsys, tmp_path
):
    if "context" in arguments or "device" in arguments or "below" in arguments:
        pytest.importorskip("matplotlib", reason="without it the demo stops earlier")
    (tmp_path / "file").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["adamod_fused", *arguments.format(file="file").split()])
    with pytest.raises(SystemExit) as stopped:
        __main__.main()
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("command", ["", "demo", "doctor"])
def test_help(command, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["adamod_fused", *command.split(), "--help"])
    with pytest.raises(SystemExit) as stopped:
        __main__.main()
    assert stopped.value.code == 0
    assert "usage: python -m adamod_fused" in capsys.readouterr().out


@pytest.mark.parametrize("blocked", [None, "rich"])
def test_doctor_names_every_backend(blocked):
    process = run(
        "doctor", code=f"import sys; sys.modules[{blocked!r}] = None" if blocked else None
    )
    assert process.returncode == 0, process.stderr
    for name in (*backends.NAMES, torch.__version__, "CPU instruction set"):
        assert name in process.stdout


def test_doctor_gives_the_remedy(monkeypatch, capsys):
    broken = backends.Status(False, "no such thing here", "get one")
    monkeypatch.setattr(backends, "available", lambda: {"cuda": broken})
    monkeypatch.setattr("sys.argv", ["adamod_fused", "doctor"])
    assert __main__.main() == 0
    shown = capsys.readouterr().out
    assert "no such thing here" in shown
    assert "get one" in shown


def test_text_split_shares_nothing():
    corpus = text.load()
    assert not corpus.train_topics.keys() & corpus.validation_topics.keys()

    def wordings(topics):
        return {" ".join(piece.split()) for t in topics.values() for piece in text.paragraphs(t)}

    train, validation = wordings(corpus.train_topics), wordings(corpus.validation_topics)
    assert validation
    assert not train & validation
    assert 0.05 < len(corpus.validation) / len(corpus.train) < 0.2
    assert bytes(corpus.validation.tolist()).decode() == "\n\n".join(
        corpus.validation_topics.values()
    )


def test_text_drops_quotations():
    topics = {
        "long": "One.\n\nTwo\nwords.\n\n   Three.",
        "short": "  Two words.\n \nFour.",
        "in": "One.",
    }
    assert text._drop_repeated_paragraphs(topics) == {
        "long": "One.\n\nTwo\nwords.\n\n   Three.",
        "short": "Four.",
    }


def test_rates_are_those_of_the_step():
    parameter = torch.nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))
    optimizer = AdaMod([parameter], lr=0.5, betas=(0.8, 0.7), beta3=0.75, backend="reference")
    parameter.grad = torch.tensor([0.5, -2.0, 0.0])
    optimizer.step()
    measured = rates.measure(optimizer, 1)
    assert measured.adam.median == pytest.approx(0.5 / 0.5, rel=1e-6)  # lr / |grad|
    assert measured.adam.largest == pytest.approx(0.5 / 1e-8, rel=1e-6)  # lr / eps: grad is 0
    assert measured.bounded.median == pytest.approx(0.25 * 0.5 / 0.5, rel=1e-6)
    assert measured.share_bounded == 1
    assert sum(measured.adam.histogram) == pytest.approx(1)
    assert len(rates.bin_edges()) == len(measured.adam.histogram) + 1


def test_rates_without_a_bound_are_adams():
    parameter = torch.nn.Parameter(torch.linspace(-1, 1, 7))
    optimizer = AdaMod([parameter], lr=0.5, beta3=0.0, backend="reference")
    parameter.grad = torch.linspace(0.1, 0.7, 7)
    optimizer.step()
    measured = rates.measure(optimizer, 1)
    assert measured.bounded.largest == pytest.approx(measured.adam.largest, rel=1e-6)


def test_difference_sees_every_bit():
    nan = torch.tensor([0.0, float("nan"), 1.0])
    assert difference({"a": nan}, {"a": nan.clone()}) is None

    zero = difference({"a": torch.tensor([0.0])}, {"a": torch.tensor([-0.0])})
    assert (zero.elements, zero.largest) == (1, 0.0)

    ones, other = torch.ones(3), torch.tensor([1.0, 1.5, 1.25])
    found = difference({"a": ones, "b": ones}, {"a": ones, "b": other})
    assert (found.tensor, found.elements, found.largest) == ("b", 2, 0.5)

    lost = difference({"a": ones}, {"a": torch.tensor([1.0, 1.0, float("nan")])})
    assert lost.largest == float("inf")

    with pytest.raises(ValueError, match="not the same tensors"):
        difference({"a": ones}, {"b": ones})


def test_plain_progress_is_a_few_lines(capsys):
    with PlainConsole().progress("train", 100) as advance:
        for step in range(1, 101):
            advance(step, "fine")
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"train  {step}/100  fine" for step in (25, 50, 75, 100)]


def test_plain_progress_is_never_silent_for_long(capsys, monkeypatch):
    now = iter(range(100))
    monkeypatch.setattr("time.monotonic", lambda: next(now))
    with PlainConsole().progress("train", 100) as advance:
        for step in range(1, 11):
            advance(step, "slow")
    shown = [int(line.split()[1].split("/")[0]) for line in capsys.readouterr().out.splitlines()]
    assert shown
    assert max(b - a for a, b in zip([0, *shown], shown, strict=False)) <= 5
