"""Real kernels: what is done stays done, what is killed is run again, what fails spoils nothing."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import DEFAULT, Mock

import papermill
import psutil
import pytest

from hgcore.suite import cli, notebooks, results, runner, session

SLOW = """import pathlib, time
pathlib.Path("started").touch()
time.sleep(0 if pathlib.Path("fast").exists() else 60)
value = 0.25"""
# reads a file whose SHA-256 is known after its download only
BY_MD5 = """from hgcore.data.files import note
note("timit-nltk/timit.zip", 64 * "a")
value = 0.25"""
kills = pytest.mark.skipif(sys.platform != "linux", reason="kills processes")


def begin(toy, *arguments):
    """Start `python -m hgcore run` in a process of its own, in the middle of the slow cell."""
    command = [sys.executable, "-m", "hgcore", "run", *arguments]
    env = os.environ | {"PYTHONPATH": str(Path(cli.__file__).parents[2])}
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen(command, cwd=toy.root, env=env, **output)
    end = time.monotonic() + 60
    while not (toy.root / "started").exists():
        assert time.monotonic() < end, "the cell did not start"
        time.sleep(0.1)
    return process


def test_done_once(toy, run):
    """What failed is run again, and only that; a copy fails until its name is its own."""
    toy.add("good", compute=BY_MD5)
    toy.add("wrong", compute="value = 1 / 0")
    good, copied = (notebooks.path(f"toy/{name}", toy.root) for name in ("good", "copied"))
    copied.write_bytes(good.read_bytes())
    status, text = run("run")
    assert status == 1 and "done" in text and "must be given its name, 'toy/copied'" in text
    assert "FAILED" in text and "ZeroDivisionError: division by zero" in text
    assert [file.name for file in results.files(toy.root, "quick")] == ["good.json"]
    assert "1 / 0" in (toy.root / "runs/quick/toy/wrong.log").read_text()
    copied.unlink()
    toy.add("wrong")
    assert run("run", "--update")[0] == 0
    nb = json.loads(good.read_text())
    assert "HOLDS        good.small" in nb["cells"][-1]["outputs"][0]["text"][0]
    status, text = run("run")
    assert status == 0 and "2 of 2 have a record" in text


def test_settings_of_the_command_line(toy, run):
    toy.add("one")
    assert run("run", "--set", "steps=7", "--set", "sizes=[3, 4]")[0] == 0
    record = results.load(toy.root / "runs/overrides/quick/toy/one.json")
    assert record["overrides"] == {"steps": 7, "sizes": [3, 4]}
    assert not (toy.root / "figures").exists()
    for refused in ("nothing",), ("",), ("--update", "--seed", "1"), ("--jobs", "0"):
        assert run("run", *refused)[0] == 2
    with pytest.raises(SystemExit):
        run("run", "--set", "steps")
    toy.add("two", compute="value = {5: 0.25}[run.scale.steps]")
    status, text = run("run", "two", "--set", "steps=6")
    assert status == 1 and "cell In [4]: KeyError: 6; check the settings steps=6" in text
    texts = "a=[1, 2.5]", "a=(True, None)", "a=none", "a={1}", "a="
    values = [cli._setting(text)[1] for text in texts]
    assert values == [[1, 2.5], [True, None], "none", "{1}", ""]


def test_all_that_have_a_reduced_scale_run(toy, run):
    toy.add("one")
    toy.add(
        "two",
        setup=toy.cells["setup"].replace("paper=", "reduced=dict(steps=9, sizes=[1]), paper="),
    )
    status, text = run("run", "--profile", "reduced")
    assert status == 0 and "toy/two" in text and "toy/one" not in text
    assert run("run", "toy/one", "--profile", "reduced")[0] == 1


def test_verify_of_a_check_that_failed(toy, run):
    """Its record says so, and comes out again."""
    toy.add("one", claims='suite.check(run, {"one.small": 7.0})')
    kind = toy.ledger.read_text().replace("kind: paper", "kind: suite")
    toy.ledger.write_text(re.sub("  paper: .*\n", "", kind))
    assert run("run", "--profile", "paper")[0] == 1
    status, text = run("verify", "--profile", "paper")
    assert status == 0 and "same" in text


def test_verify(toy, run):
    toy.add("one")
    verify = "verify", "one", "--profile", "paper"
    assert run("run", "--profile", "paper")[0] == 0
    file = toy.root / "figures/toy/one.json"
    before = file.read_bytes()
    status, text = run(*verify)
    assert status == 0 and "same" in text and file.read_bytes() == before
    toy.add("two")
    assert run("verify", "--profile", "paper")[1].count("same") == 1  # those that have a record
    assert run("verify", "--profile", "quick")[0] == 2
    record = json.loads(before)
    record["figures"]["one"]["series"]["axes 1: line"]["y"][0] = 3.01
    file.write_text(session.signed(record))
    status, text = run(*verify)
    assert status == 1 and "line differs by 0.0033" in text
    file.write_text(file.read_text().replace("3.01", "3.02"))
    assert run(*verify)[0] == 1
    status, text = run("verify", "one")
    assert status == 2 and "toy/one has no record at quick" in text


@kills
def test_killed_runner_kernel_and_job(toy, run):
    """kill -9 in mid-run leaves no record; the next run completes it."""
    toy.add("one", compute=SLOW)
    words = {"runner": "", "kernel": "ipykernel_launcher", "job": "hgcore.suite.runner"}
    for victim, word in words.items():
        (toy.root / "started").unlink(missing_ok=True)
        process = begin(toy)
        children = psutil.Process(process.pid).children(recursive=True)
        pids = [child.pid for child in children if word in " ".join(child.cmdline())]
        os.kill(pids[0] if word else process.pid, signal.SIGKILL)
        out, _ = process.communicate(timeout=60)
        assert process.returncode == (1 if word else -9)
        assert ("DeadKernelError" in out) == (victim == "kernel")
        assert ("killed by SIGKILL" in out) == (victim == "job")
        assert not (toy.root / "figures").exists()
        assert not psutil.wait_procs(children, timeout=60)[1]
    (toy.root / "fast").touch()
    assert run("run")[0] == 0 and (toy.root / "figures/quick/toy/one.json").exists()


def test_two_runners_at_once(toy, run):
    """The second waits for the first and then has only its outputs to write."""
    toy.add("one", compute=SLOW.replace("60", "5"))
    first = begin(toy)
    (toy.root / "started").unlink()
    assert run("run", "--update")[0] == 0
    assert "HOLDS" in notebooks.path("toy/one", toy.root).read_text()
    assert "done" in first.communicate(timeout=60)[0] and first.returncode == 0
    assert not (toy.root / "started").exists()


def test_port_of_a_kernel_taken(toy, monkeypatch):
    """Another process took the port that jupyter_client had chosen: the kernel starts again."""
    died = RuntimeError("Kernel died before replying to kernel_info")
    unlucky = Mock(wraps=papermill.execute_notebook, side_effect=[died, died, DEFAULT])
    monkeypatch.setattr(papermill, "execute_notebook", unlucky)
    toy.add("one")
    job = session.Job("toy/one")
    runner.execute(job, toy.root, toy.root)
    assert results.state(job, toy.root) == "done"


@kills
def test_lost_dask_worker(toy):
    """A worker dies in mid-run; its job is done again on another."""
    from distributed import LocalCluster

    toy.add("one", compute=SLOW)
    with LocalCluster(2, threads_per_worker=1, dashboard_address=None) as cluster:
        process = begin(toy, "--dask", cluster.scheduler_address)
        workers = [psutil.Process(worker.process.pid) for worker in cluster.workers.values()]
        busy = next(worker for worker in workers if worker.children(recursive=True))
        (toy.root / "fast").touch()
        for victim in [*busy.children(recursive=True), busy]:
            victim.kill()
        out, _ = process.communicate(timeout=120)
    assert process.returncode == 0, out
    assert (toy.root / "figures/quick/toy/one.json").exists()
