"""The runner: failures stay alone, what is done is known by content, what cannot run is refused before anything starts."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import toy

from hgcore.suite import jobs, live, notebook, runner
from hgcore.suite.cli import main, override

HERE = Path(__file__).resolve().parents[2]
FAST = ["--backend", "autograd"]  # no torch in the kernels


def command(root, *words):
    """(exit status, stdout, stderr) of the command line in this process."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setenv("HGCORE_ROOT", str(root))
        patch.chdir(root)
        try:
            status = main(list(words))
        except SystemExit as exit:
            status = exit.code
    return status, out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A root, in a folder with a space and braces, after one run of a good notebook, one that raises and one whose kernel dies."""
    root = toy.root(tmp_path_factory.mktemp("suite") / "a {root}")
    toy.add(root, "paper/good")
    toy.add(root, "paper/raises", "print('so far')\nraise ArithmeticError('it broke\\nhere')")
    toy.add(root, "dies", "import os\nos.kill(os.getpid(), 9)")
    return root, *command(root, "run", "--jobs", "2", *FAST)


def test_a_failure_spoils_no_other(ran):
    root, status, out, _ = ran
    assert status == 1
    assert jobs.Job("paper/good", backend="autograd").done(root)
    assert "Profile quick: 1 done, 2 FAILED." in out and "Look at figures/index.html" in out
    assert (root / "figures/index.html").exists()


def test_summary_names_notebook_cell_error_and_file(ran):
    lines = ran[2].splitlines()
    at = next(number for number, line in enumerate(lines) if "paper/raises" in line)
    assert lines[at].split() == ["FAILED", lines[at].split()[1], "s", "paper/raises"]
    assert lines[at + 1].strip() == "cell In [4] (compute): ArithmeticError: it broke here"
    assert lines[at + 2].strip() == "runs/quick/paper/raises.ipynb, traceback in raises.log"
    assert "cell In [4] (compute): DeadKernelError: Kernel died" in ran[2]


def test_partial_notebook_and_traceback_are_kept(ran):
    runs = ran[0] / "runs/quick"
    assert "so far" in (runs / "paper/raises.ipynb").read_text()
    log = (runs / "paper/raises.log").read_text()
    assert "ArithmeticError: it broke" in log and "\x1b" not in log and "papermill" not in log
    assert "Kernel died" in (runs / "dies.log").read_text()
    assert not (runs / "paper/good.log").exists()


def test_only_what_changed_runs_again(ran):
    root = ran[0]
    good = jobs.Job("paper/good", backend="autograd")
    os.utime(notebook.path("paper/good", root))
    toy.edit(root, "paper/good", "title", "# Another title")
    assert good.done(root)
    toy.edit(root, "paper/raises", "compute", "x = 2")
    status, out, _ = command(root, "run", "paper/", *FAST)
    assert status == 0 and "Profile quick: 1 done, 1 unchanged." in out
    status, out, err = command(root, "run", "paper/", *FAST)
    assert status == 0 and "Profile quick: 2 unchanged." in out and err == ""
    before = notebook.path("paper/good", root).read_text()
    toy.edit(root, "paper/good", "compute", "x = 3")
    assert not good.done(root) and jobs.Job("paper/raises", backend="autograd").done(root)
    assert jobs.executed("paper/good", "quick", root) is None
    notebook.path("paper/good", root).write_text(before)
    assert jobs.executed("paper/good", "quick", root)
    version = root / "pyproject.toml"
    version.write_text(
        version.read_text().replace('"0"', '"1"')
    )  # the outputs are of an older package
    assert jobs.executed("paper/good", "quick", root) is None
    version.write_text(version.read_text().replace('"1"', '"0"'))


def test_update_writes_outputs_into_the_notebook_and_keeps_its_prose(ran):
    root = ran[0]
    toy.edit(root, "paper/raises", "compute", "x = 2")
    command(
        root, "run", "paper/raises", *FAST
    )  # done already where the test before this one ran in the same process
    toy.edit(root, "paper/raises", "title", "# Mended")
    assert jobs.update("paper/raises", root) and not jobs.update("paper/raises", root)
    nb = notebook.read("paper/raises", root)
    assert [cell["execution_count"] for cell in nb["cells"] if cell["cell_type"] == "code"] == [
        1,
        2,
        3,
        4,
        5,
    ]
    assert nb["cells"][0]["source"] == "# Mended" and nb["metadata"] == toy.METADATA
    assert jobs.Job("paper/raises", backend="autograd").done(root)


@pytest.mark.parametrize("words, said", [
    (["fig1_fox"], "no notebook or figure is called 'fig1_fox'; did you mean fig1_dog"),
    (["one/fig1_dog", "--set", "stepz=3"], "one/fig1_dog: override must be one of rate, steps; got 'stepz'"),
    (["one/fig1_dog", "--set", "steps=many"], "override steps must be like its default 5, got 'many'"),
    (["--set", "steps"], "'steps' is not KEY=VALUE"),
    (["--jobs", "0"], "must be a whole number of at least 1, got '0'"),
    (["--backend", "autograd", "--device", "cuda"], "backend autograd runs on the cpu only"),
    (["--seed", "-1"], "must be a whole number of at least 0, got '-1'"),
    (["--update", "--seed", "1"], "--update writes into notebooks/"),
    (["--profile", "papr"], "invalid choice: 'papr'"),
    (["two"], "two/bare: its parameters cell lacks seed"),
])  # fmt: skip
def test_refused_before_starting(tmp_path, words, said):
    root = toy.root(tmp_path / "r")
    toy.add(root, "one/fig1_dog")
    toy.add(root, "two/bare")
    toy.edit(root, "two/bare", "parameters", toy.PARAMETERS.replace("seed: int = 0\n", ""))
    status, out, err = command(root, "run", *words)
    assert status == 2 and said in err and out == ""
    assert not (root / "runs").exists() and not (root / "figures").exists()


def test_names_patterns_and_figures_select(tmp_path):
    root = toy.root(tmp_path / "r")
    for name in ("00_tour", "one/fig1_dog", "one/fig10_fox", "two/fig1_owl"):
        toy.add(root, name)
    ledger = root / "notebooks/one/claims.yml"
    ledger.write_text(ledger.read_text().replace("figure: fig10_fox", "figure: foxes"))
    for words, meant in {
        "": "00_tour one/fig10_fox one/fig1_dog two/fig1_owl", "one": "one/fig10_fox one/fig1_dog", "one/fig1_dog": "one/fig1_dog",
        "fig10": "one/fig10_fox", "*fig1_*": "one/fig1_dog two/fig1_owl", "one/foxes": "one/fig10_fox", "foxes": "one/fig10_fox",
        "notebooks/two/fig1_owl.ipynb 00": "00_tour two/fig1_owl", "tour/00_tour": "00_tour",
    }.items():  # fmt: skip
        assert jobs.select(words.split(), root) == meant.split(), words


def test_list_shows_states_and_figures(ran):
    status, out, _ = command(ran[0], "list")
    assert status == 0 and out.splitlines()[0].split() == ["notebook", "quick", "paper", "figures"]
    assert next(line for line in out.splitlines() if line.startswith("dies")).split() == [
        "dies",
        "-",
        "-",
        "tour/dies",
    ]


def started(root, times):
    """Wait until the slow notebook has begun for the `times`-th time; the process id of its kernel."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        begun = (root / "begun").read_text().split() if (root / "begun").exists() else []
        if len(begun) == times:
            return int(begun[-1])
        time.sleep(0.05)
    raise TimeoutError("the slow notebook did not begin")


def gone(pid):
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
            if Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] == "Z":
                return True
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.05)
    return False


def test_interrupted_and_killed_runs_go_on_where_they_stopped(tmp_path):
    root = toy.root(tmp_path / "r")
    toy.add(root, "a_first")
    toy.add(root, "b_slow", "import os, time\nfrom pathlib import Path\nwith open('begun', 'a') as f:\n    print(os.getpid(), file=f)\n"
                            "while not Path('go').exists():\n    time.sleep(0.05)")  # fmt: skip
    call = [sys.executable, "-m", "hgcore", "run", "--jobs", "1", *FAST]
    free = {"HGCORE_ROOT": str(root), "PYTHONPATH": str(HERE)}

    def heard():  # a shell's background jobs do not hear it
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def start():
        return subprocess.Popen(
            call,
            cwd=root,
            env=os.environ | free,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=heard,
        )

    interrupted = start()
    kernel = started(root, 1)
    interrupted.send_signal(signal.SIGINT)
    out, err = interrupted.communicate(timeout=60)
    assert interrupted.returncode == 130 and gone(kernel), err
    assert "Profile quick: 1 done, 1 interrupted." in out and "Traceback" not in err

    killed = start()
    kernel = started(root, 2)
    killed.kill()
    killed.communicate()
    assert gone(kernel)

    (root / "go").touch()
    status, out, _ = command(root, "run", *FAST)
    assert status == 0 and "Profile quick: 1 done, 1 unchanged." in out
    assert [
        line.split()[0] for line in out.splitlines() if line.endswith(("a_first", "b_slow"))
    ] == ["unchanged", "done"]


def test_a_watch_knows_the_cell():
    watch = live.Watch("one", 5)
    assert watch.place == ""
    watch.enter({"id": "compute"}, 4)
    assert watch.place == "cell In [1] (compute)" and "cell 1 of 5" in watch.line()


def test_plain_lines_are_rare():
    stream = io.StringIO()
    lines, watch = live.Lines(stream, every=10.0), live.Watch("one", 5)
    lines.show([watch])
    watch.spoke -= 11
    for _ in range(3):
        lines.show([watch])
    assert stream.getvalue().count("\n") == 1 and "one" in stream.getvalue()


def test_override_values_are_yaml():
    assert [override(text)[1] for text in ("a=3", "a=1e-3", "a=true", "a=null", "a=text")] == [
        3,
        1e-3,
        True,
        None,
        "text",
    ]
    assert [override(text)[1] for text in ("a=[1, 2]", "a=[1e-3, 0.5, [1e4], b]")] == [
        [1, 2],
        [1e-3, 0.5, [1e4], "b"],
    ]
    assert json.dumps(override("a=3")) == '["a", 3]'


def test_a_device_that_is_not_there_is_refused_before_starting(tmp_path, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="sees no GPU for 'cuda'; use 'cpu'"):
        jobs.plan([], tmp_path, device="cuda")


def test_kernels_look_for_data_where_the_user_does(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HGCORE_DATA_MIRROR", "mirror")
    monkeypatch.delenv("HGCORE_DATA", raising=False)
    with runner.environment(tmp_path, 1):
        assert (
            os.environ["HGCORE_DATA_MIRROR"] == str(tmp_path / "mirror")
            and "HGCORE_DATA" not in os.environ
        )
    assert os.environ["HGCORE_DATA_MIRROR"] == "mirror"


def test_a_long_error_keeps_its_beginning_and_its_end():
    said = runner._brief(ValueError("what is wrong " + 500 * "x" + " the way out"))
    assert (
        said.startswith("ValueError: what is wrong")
        and said.endswith("the way out")
        and len(said) == 400
    )
    assert runner._brief(ValueError("short\nenough")) == "ValueError: short enough"


@pytest.mark.parametrize("broken", ["", "{}", "[1]"])
def test_a_broken_notebook_is_named_and_spoils_no_other(tmp_path, broken):
    root = toy.root(tmp_path / "r")
    toy.add(root, "fig1")
    toy.record(root, "fig1", "quick")
    (root / "notebooks/other.ipynb").write_text(broken)
    status, out, err = command(root, "run", "fig1")
    assert status == 0 and "1 unchanged" in out and "other.ipynb is no notebook" in err
    status, out, err = command(root, "run", "other")
    assert status == 2 and "other.ipynb is no notebook" in err
