"""The command line: python -m hgcore run | verify | list | report | copy."""

import argparse
import ast
import contextlib
import json
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from hgcore.checkpoint import write_atomically
from hgcore.data import find_root
from hgcore.suite import notebooks, results
from hgcore.suite.claims import ledger
from hgcore.suite.runner import run_all
from hgcore.suite.session import PROFILES, Job

EXAMPLES = """examples:
  python -m hgcore run                                  every notebook, profile quick
  python -m hgcore run maclaurin2015/fig10_chaos --profile paper
  python -m hgcore run fig04_initial --set seeds=100    your own settings, kept in runs/overrides/
  python -m hgcore verify fig01_meta --profile paper    does the committed figure come out again?
  python -m hgcore copy maclaurin2015/fig10_chaos mine  a notebook of your own, without claims
"""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    form = argparse.RawDescriptionHelpFormatter
    top = argparse.ArgumentParser("python -m hgcore", epilog=EXAMPLES, formatter_class=form)
    commands = top.add_subparsers(required=True)
    default = "(default: %(default)s)"
    names = argparse.ArgumentParser(add_help=False)
    patterns = "names, beginnings, patterns (default: all)"
    names.add_argument("names", nargs="*", metavar="NAME", help=patterns)
    parameters = argparse.ArgumentParser(add_help=False, parents=[names])
    parameters.set_defaults(overrides=[], update=False)
    option = parameters.add_argument
    option("--profile", choices=PROFILES, default="quick", help=default)
    option("--backend", choices=("autograd", "torch"), default="torch", help=default)
    option("--device", choices=("cpu", "cuda"), default="cpu", help=default)
    option("--seed", type=int, default=0, metavar="N", help=default)
    option("--jobs", type=int, default=2, metavar="N", help=f"notebooks at a time {default}")

    def add(name: str, act, what: str, *parents):
        command = commands.add_parser(name, parents=parents, help=what, description=what)
        command.set_defaults(act=act)
        return command.add_argument

    option = add(
        "run", run, "run the notebooks without a record of their present cells", parameters
    )
    setting = {"dest": "overrides", "type": _setting, "action": "append"}
    option("--set", **setting, metavar="KEY=VALUE", help="replace a setting of the scale table")
    option("--force", action="store_true", help="also run notebooks that have a record")
    option("--update", action="store_true", help="run all, and write the outputs into notebooks/")
    option("--dask", metavar="ADDRESS", help="send the jobs to the dask cluster at ADDRESS")
    add("verify", verify, "run again elsewhere and compare; changes nothing", parameters)
    add("list", show, "list notebooks and the state of their records", names)
    option = add("report", report, "write RESULTS.md and the README's table from the records")
    option("--check", action="store_true", help="write nothing; status 1 if anything is wrong")
    option = add("copy", copy, "copy a notebook, without its claims, to notebooks/own/")
    option("name", metavar="NAME", help="the notebook")
    option("new", metavar="NEW", help="the name of the copy: letters, digits and _")
    return top


def _setting(text: str) -> tuple:
    """Return (key, value) of KEY=VALUE; VALUE is a Python literal that JSON has, or text."""
    key, equals, value = text.partition("=")
    if not equals or not key.isidentifier():
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE, for example steps=20")
    with contextlib.suppress(ValueError, SyntaxError, TypeError):
        value = json.loads(json.dumps(ast.literal_eval(value)))
    return key, value


def _jobs(args, root: Path) -> list[Job]:
    job = Job("", args.profile, args.backend, args.device, args.seed, dict(args.overrides))
    if args.update and job != Job(""):
        raise ValueError("--update writes the default parameters into notebooks/; leave others out")
    if args.jobs < 1:
        raise ValueError(f"--jobs must be at least 1, got {args.jobs}")
    names = notebooks.select(args.names, root)
    if not args.names and job.profile == "reduced":  # which not every notebook has
        names = [n for n in names if any("reduced=dict(" in c for c in notebooks.code(n, root))]
    return [replace(job, name=name, update=args.update) for name in names]


def run(args, root: Path) -> int:
    """Run what has no record; print one line as each job ends."""
    jobs = _jobs(args, root)
    todo = [job for job in jobs if args.force or args.update or results.state(job, root) != "done"]
    if len(todo) < len(jobs):
        print(f"{len(jobs) - len(todo)} of {len(jobs)} have a record; --force repeats their runs")
    failed = 0
    for outcome in run_all(todo, root, args.jobs, args.dask):
        print(outcome.lines("done", "FAILED"), flush=True)
        failed += bool(outcome.wrong)
    return min(failed, 1)


def verify(args, root: Path) -> int:
    """Run into a temporary folder and compare with the committed records."""
    jobs, failed, entries = _jobs(args, root), 0, ledger(root)
    if not args.names:
        jobs = [job for job in jobs if job.record(root).exists()]
    if not jobs:
        raise ValueError(f"no notebook has a record at {args.profile}; try another --profile")
    for job in jobs:  # before anything runs
        if not job.record(root).exists():
            found = f"{job.name} has no record at {job.profile}"
            raise ValueError(f"{found}; try another --profile, `list` shows which exist")
        try:
            results.load(job.record(root))
        except ValueError as error:
            print(f"hgcore: {error}", file=sys.stderr)
            return 1
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        for outcome in run_all(jobs, root, args.jobs, out=out):
            job, found = outcome.job, outcome.wrong[:1]  # the log is gone with the folder
            if job.record(out).exists():  # also where a check of our own failed
                records = job.record(root), job.record(out)
                found = results.differences(*records, entries.get(job.name, []))
            outcome = outcome._replace(wrong=list(found))
            print(outcome.lines("same", "differs"))
            failed += bool(outcome.wrong)
    return min(failed, 1)


def show(args, root: Path) -> None:
    """Print one line for each notebook."""
    for name in notebooks.select(args.names, root):
        jobs = [Job(name, profile) for profile in PROFILES]
        states = [f"{job.profile}: {results.state(job, root)}" for job in jobs]
        print(f"{name:<52} {'  '.join(states)}")
    print("done: a record of the present cells; older: of other cells or data; -: no record")


def report(args, root: Path) -> int:
    """Write RESULTS.md and the README's table, or check them and every record."""
    if wrong := list(results.problems(root)):
        wrong.insert(0, "restore these files from git, or `run --force` their notebooks:")
    else:
        headline, texts = results.summary(root)
        for name, text in texts.items():
            if not args.check:
                write_atomically(root / name, text.encode())
            elif not (root / name).exists() or (root / name).read_text("utf-8") != text:
                wrong.append(f"{name} does not match the records; run python -m hgcore report")
        if not args.check:
            print(headline)
    print(*wrong, sep="\n  ", end="\n" if wrong else "", file=sys.stderr)
    return 1 if wrong else 0


def copy(args, root: Path) -> None:
    """Copy one notebook to notebooks/own/."""
    names = notebooks.select([args.name], root)
    if len(names) > 1:
        raise ValueError(f"{args.name} names {len(names)} notebooks: {', '.join(names)}")
    print(notebooks.copy(names[0], args.new, root))


def main(arguments=None) -> int:
    """Run one command; return 0, 1 if something failed, 2 if it was refused, 130 if stopped."""
    args = parser().parse_args(arguments)
    try:
        return args.act(args, find_root()) or 0
    except BrokenPipeError:  # `list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError) as error:
        print(f"hgcore: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
