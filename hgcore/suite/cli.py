"""The command line: python -m hgcore run | verify | list | report | copy."""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import yaml

from hgcore.suite import notebooks, results, runner
from hgcore.suite.session import PROFILES

EXAMPLES = """examples:
  python -m hgcore run                                  every notebook, profile quick
  python -m hgcore run maclaurin2015/fig10_chaos --profile paper
  python -m hgcore run fig04 --set seeds=100            your own settings, kept in runs/overrides/
  python -m hgcore verify fig01_meta --profile paper    does the committed figure come out again?
  python -m hgcore copy maclaurin2015/fig10_chaos mine  a notebook of your own, without claims
"""


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    form = argparse.RawDescriptionHelpFormatter
    top = argparse.ArgumentParser("python -m hgcore", epilog=EXAMPLES, formatter_class=form)
    add = top.add_subparsers(required=True, metavar="{run,verify,list,report,copy}").add_parser
    _add_run(add("run", help="run the notebooks that have no record of their present code"))
    check = add("verify", help="run again into a temporary folder and compare; changes nothing")
    _add_parameters(check)
    check.set_defaults(act=verify)
    shown = add("list", help="list notebooks and the state of their records")
    shown.add_argument("names", nargs="*", metavar="NAME")
    shown.set_defaults(act=show)
    report = add("report", help="write RESULTS.md and the README's table from the records")
    report.add_argument("--check", action="store_true", help="write nothing; 1 if anything is off")
    report.set_defaults(act=write_report)
    copy = add("copy", help="copy a notebook, without its claims, to notebooks/own/")
    copy.add_argument("name")
    copy.add_argument("new")
    copy.set_defaults(act=make_copy)
    return top


def _add_parameters(command) -> None:
    option, default = command.add_argument, "(default: %(default)s)"
    option("names", nargs="*", metavar="NAME", help="names, beginnings or patterns (default: all)")
    option("--profile", choices=PROFILES, default="quick", help=default)
    option("--backend", choices=("autograd", "torch"), default="torch", help=default)
    option("--device", choices=("cpu", "cuda"), default="cpu", help=default)
    option("--seed", type=int, default=0, metavar="N", help=default)
    option("--jobs", type=int, default=2, metavar="N", help=f"notebooks at a time {default}")


def _add_run(command) -> None:
    _add_parameters(command)
    option = command.add_argument
    setting = {"dest": "overrides", "type": _override, "action": "append", "default": []}
    option("--set", **setting, metavar="KEY=VALUE", help="replace a setting; VALUE is YAML")
    option("--force", action="store_true", help="run what has a record, too")
    option("--update", action="store_true", help="run all, and write the outputs into notebooks/")
    option("--dask", metavar="ADDRESS", help="send the jobs to the dask cluster at ADDRESS")
    command.set_defaults(act=run)


def _override(text: str) -> tuple:
    key, equals, value = text.partition("=")
    if not equals or not key.isidentifier():
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE, for example steps=20")
    try:
        return key, _numbers(yaml.safe_load(value))
    except yaml.YAMLError:
        raise argparse.ArgumentTypeError(f"{text!r}: the value is not YAML") from None


def _numbers(value):
    """Read 1e-3 as a number, which YAML alone reads as text."""
    if isinstance(value, list):
        return [_numbers(part) for part in value]
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _jobs(args, root: Path) -> list[runner.Job]:
    given = {name: getattr(args, name) for name in ("profile", "backend", "device", "seed")}
    given |= {
        "overrides": dict(getattr(args, "overrides", ())),
        "update": getattr(args, "update", 0),
    }
    if given["update"] and asdict(runner.Job("")) != asdict(runner.Job("", **given)) | {
        "update": 0
    }:
        raise ValueError(
            "--update writes the profile quick with default parameters into notebooks/"
        )
    names = notebooks.select(args.names, root)
    for name in names if given["overrides"] else ():
        if unknown := set(given["overrides"]) - notebooks.scale_names(name, root):
            raise ValueError(f"{name} has no setting {', '.join(sorted(unknown))}")
    return [runner.Job(name, **given) for name in names]


def run(args, root: Path) -> int:
    """Run what has no record; print one line as each job ends."""
    jobs = _jobs(args, root)
    todo = [job for job in jobs if args.force or args.update or not job.done(root)]
    if len(todo) < len(jobs):
        print(f"{len(jobs) - len(todo)} of {len(jobs)} have a record; --force repeats their runs")
    failed = 0
    for job, status, seconds, message in runner.run(todo, root, args.jobs, args.dask):
        print(f"  {status:<8} {seconds:8.1f} s  {job.name}", flush=True)
        failed += status == "FAILED"
        if message:
            print(f"           {message}", flush=True)
    return 1 if failed else 0


def verify(args, root: Path) -> int:
    """Run into a temporary folder and compare with the committed records."""
    jobs, wrong = _jobs(args, root), 0
    for job in jobs:
        results.load(job.record(root))  # raises before anything runs
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        for job, status, seconds, message in runner.run(jobs, root, args.jobs, out=out):
            found = [message]
            if status == "done":
                found = list(results.differences(job.record(root), job.record(out)))
            wrong += bool(found)
            print(f"  {'differs' if found else 'same':<8} {seconds:8.1f} s  {job.name}")
            print(*(f"           {line}" for line in found), sep="\n", end="\n" if found else "")
    return 1 if wrong else 0


def show(args, root: Path) -> None:
    """Print one line for each notebook."""
    for name in notebooks.select(args.names, root):
        states = [f"{profile}: {_state(name, profile, root)}" for profile in PROFILES]
        print(f"{name:<52} {'  '.join(states)}")


def _state(name: str, profile: str, root: Path) -> str:
    job = runner.Job(name, profile)
    return "done" if job.done(root) else "older" if job.record(root).exists() else "-"


def write_report(args, root: Path) -> int:
    """Write RESULTS.md and the README's table, or check them and every record."""
    if wrong := list(results.problems(root)):
        print(
            "restore these files from git, or run their notebooks:",
            *wrong,
            sep="\n  ",
            file=sys.stderr,
        )
        return 1
    if not args.check:
        results.write(root)
        print(results.headline(root))
        return 0
    for name, content in (("README.md", results.readme(root)), ("RESULTS.md", results.text(root))):
        if content != (root / name).read_text(encoding="utf-8"):
            print(
                f"{name} is not what the records say; run: python -m hgcore report", file=sys.stderr
            )
            return 1
    return 0


def make_copy(args, root: Path) -> None:
    """Copy one notebook to notebooks/own/."""
    names = notebooks.select([args.name], root)
    if len(names) > 1:
        raise ValueError(f"{args.name} names {len(names)} notebooks: {', '.join(names)}")
    print(notebooks.copy(names[0], args.new, root))


def main(arguments=None) -> int:
    """Run one command; return its exit status: 1 something failed, 2 refused."""
    args = parser().parse_args(arguments)
    try:
        return args.act(args, notebooks.find_root()) or 0
    except (ValueError, OSError) as error:
        print(f"hgcore: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
