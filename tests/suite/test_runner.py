"""Real kernels: what is done stays done, what is killed is run again, what fails spoils nothing."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from hgcore.suite import cli, results

SLOW = """import pathlib, time
pathlib.Path("started").touch()
time.sleep(0 if pathlib.Path("fast").exists() else 60)
value = 0.25"""


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.1)


def begin(toy, *arguments):
    """Start `python -m hgcore run` in a process of its own, in the middle of the slow cell."""
    package = str(Path(cli.__file__).parents[2])
    process = subprocess.Popen(
        [sys.executable, "-m", "hgcore", "run", *arguments],
        cwd=toy.root,
        env=os.environ | {"PYTHONPATH": package},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    wait_for((toy.root / "started").exists)
    return process


def kernels():
    for process in psutil.process_iter(["cmdline", "cwd"]):
        if "ipykernel_launcher" in " ".join(process.info["cmdline"] or ()):
            yield process


def test_done_once(toy, capsys):
    """Two notebooks, one of which fails: the other is done, and only the failed one is repeated."""
    toy.add("good")
    toy.add("wrong", compute="value = 1 / 0")
    assert cli.main(["run"]) == 1
    out = capsys.readouterr().out
    assert "done" in out and "FAILED" in out and "ZeroDivisionError: division by zero" in out
    assert [file.name for file in results.files(toy.root, "quick")] == ["good.json"]
    assert "1 / 0" in (toy.root / "runs/quick/toy/wrong.log").read_text()
    toy.add("wrong")
    assert cli.main(["run", "--update"]) == 0
    nb = json.loads((toy.root / "notebooks/toy/good.ipynb").read_text())
    assert "HOLDS        good.small" in nb["cells"][-1]["outputs"][0]["text"][0]
    capsys.readouterr()
    assert cli.main(["run"]) == 0 and "2 of 2 have a record" in capsys.readouterr().out


def test_settings_of_the_command_line(toy, capsys):
    toy.add("one")
    assert cli.main(["run", "--set", "steps=7", "--set", "sizes=[3, 4]"]) == 0
    record = results.load(toy.root / "runs/overrides/quick/toy/one.json")
    assert record["overrides"] == {"steps": 7, "sizes": [3, 4]}
    assert not (toy.root / "figures").exists()
    assert cli.main(["run", "--set", "stepz=7"]) == 1 and "meant steps" in capsys.readouterr().out
    for wrong in (["nothing"], ["--update", "--seed", "1"]):
        assert cli.main(["run", *wrong]) == 2
    with pytest.raises(SystemExit):
        cli.main(["run", "--set", "steps"])


def test_verify(toy, capsys):
    toy.add("one")
    assert cli.main(["run", "--profile", "paper"]) == 0
    file = toy.root / "figures/toy/one.json"
    before = file.read_bytes()
    assert cli.main(["verify", "one", "--profile", "paper"]) == 0
    assert "same" in capsys.readouterr().out and file.read_bytes() == before
    record = json.loads(before)
    record["figures"]["one"]["series"]["axes 1: line"]["y"][0] = 3.01
    toy.write(file, record)
    assert cli.main(["verify", "one", "--profile", "paper"]) == 1
    assert "line differs by 0.0033" in capsys.readouterr().out
    assert cli.main(["verify", "one"]) == 2  # there is no record of profile quick


@pytest.mark.skipif(sys.platform != "linux", reason="kills processes")
def test_killed_runner_kernel_and_job(toy):
    """kill -9 in mid-run leaves no record; the next run completes it."""
    toy.add("one", compute=SLOW)
    for victim in ("runner", "kernel", "job"):
        (toy.root / "started").unlink(missing_ok=True)
        process = begin(toy)
        children = psutil.Process(process.pid).children(recursive=True)
        ours = {child.pid: " ".join(child.cmdline()) for child in children}
        word = {"runner": "", "kernel": "ipykernel_launcher", "job": "hgcore.suite.runner"}[victim]
        pid = process.pid if not word else next(p for p, line in ours.items() if word in line)
        os.kill(pid, signal.SIGKILL)
        out, _ = process.communicate(timeout=60)
        assert process.returncode == (-9 if victim == "runner" else 1)
        if victim == "kernel":
            assert "DeadKernelError" in out
        for child in children if victim == "runner" else ():
            child.kill()
        assert not (toy.root / "figures").exists()
        wait_for(lambda pids=tuple(ours): not any(map(psutil.pid_exists, pids)))
    (toy.root / "fast").touch()
    assert cli.main(["run"]) == 0 and (toy.root / "figures/quick/toy/one.json").exists()


def test_two_runners_at_once(toy):
    """The second waits for the first and then has nothing to do."""
    toy.add("one", compute=SLOW.replace("60", "5"))
    first = begin(toy)
    (toy.root / "started").unlink()
    assert cli.main(["run"]) == 0
    assert "done" in first.communicate(timeout=60)[0] and first.returncode == 0
    assert not (toy.root / "started").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="kills processes")
def test_lost_dask_worker(toy):
    """A worker dies in mid-run; its job is done again on another."""
    from distributed import LocalCluster

    toy.add("one", compute=SLOW)
    with LocalCluster(2, threads_per_worker=1, dashboard_address=None) as cluster:
        process = begin(toy, "--dask", cluster.scheduler_address)
        workers = [worker.process.pid for worker in cluster.workers.values()]
        busy = next(pid for pid in workers if psutil.Process(pid).children(recursive=True))
        (toy.root / "fast").touch()
        for victim in [*psutil.Process(busy).children(recursive=True), psutil.Process(busy)]:
            victim.kill()
        out, _ = process.communicate(timeout=120)
    assert process.returncode == 0, out
    assert (toy.root / "figures/quick/toy/one.json").exists()
