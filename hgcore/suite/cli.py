"""The command line: python -m hgcore run | list | report."""

import argparse
import os
import sys
from functools import partial
from pathlib import Path

import yaml

from hgcore.suite import jobs, notebook, runner

EXAMPLES = """examples:
  python -m hgcore run                                every notebook, profile quick
  python -m hgcore run maclaurin2015 --profile paper --jobs 1
  python -m hgcore run fig04_initial --set seeds=100  your own experiment, kept in runs/overrides/
  python -m hgcore list                               what there is and what is done
  python -m hgcore report                             figures/index.html and the README's table
"""
NAMES = (
    "notebooks or figures: a name, the beginning of one, "
    "or a pattern such as '*fig1*' (default: all)"
)


def parser():
    """The command line: run, list, report."""
    top = argparse.ArgumentParser(
        prog="python -m hgcore",
        description="Regenerate the figures of the suite and see which claims hold.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="{run,list,report}")
    add_run(commands.add_parser, "run notebooks that are not done")
    add_list(commands.add_parser, "list notebooks, their state in each profile, and their figures")
    add_report(
        commands.add_parser, "build figures/index.html and the README's table from the records"
    )
    return top


def add_run(add, what):
    """`run` and its options."""
    run = add(
        "run",
        help=what,
        description=f"{what.capitalize()}; what is done is known by content, "
        "so a run that was cut short goes on.",
        epilog="exit status: 0 all done, 1 a notebook failed, 2 refused before starting, "
        "130 interrupted",
    )
    option, default = run.add_argument, "(default: %(default)s)"
    option("names", nargs="*", metavar="NAME", help=NAMES)
    option(
        "--profile",
        choices=("quick", "paper"),
        default="quick",
        help=f"seconds and no download, or the paper's own setting {default}",
    )
    option("--backend", choices=("autograd", "torch"), default="torch", help=default)
    option("--device", choices=("cpu", "cuda"), default="cpu", help=default)
    option("--seed", type=whole, default=0, metavar="N", help=f"base random seed {default}")
    option(
        "--set",
        dest="overrides",
        type=override,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override a name of the notebook's scale table; VALUE is read as YAML; repeatable",
    )
    option(
        "--jobs",
        type=partial(whole, least=1),
        default=min(4, runner.cores()),
        metavar="N",
        help=f"notebooks at a time; they share the cores {default}",
    )
    option("--force", action="store_true", help="run what is done, too")
    option(
        "--update",
        action="store_true",
        help="write the outputs into notebooks/ (quick profile and default parameters only)",
    )
    run.set_defaults(act=act_run)


def add_list(add, what):
    """`list` and its options."""
    listing = add("list", help=what, description=f"{what.capitalize()}.")
    listing.add_argument("names", nargs="*", metavar="NAME", help=NAMES)
    listing.set_defaults(act=act_list)


def add_report(add, what):
    """`report` and its options."""
    report = add("report", help=what, description=f"{what.capitalize()}.")
    report.add_argument(
        "--check",
        action="store_true",
        help="write nothing; exit 1 if the README's table is not what the records say",
    )
    report.set_defaults(act=act_report)


def override(text):
    """(key, value) of KEY=VALUE; a number may be written 1e-3, which YAML alone reads as text."""
    key, equals, value = text.partition("=")
    if not equals or not key.isidentifier():
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE, for example steps=20")
    try:
        value = yaml.safe_load(value)
    except yaml.YAMLError:
        raise argparse.ArgumentTypeError(f"{text!r}: the value is not YAML") from None
    return key, _numbers(value)


def _numbers(value):
    if isinstance(value, list):
        return [_numbers(part) for part in value]
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def whole(text, least=0):
    """A whole number from `least` up, for argparse."""
    if not text.isdigit() or int(text) < least:
        raise argparse.ArgumentTypeError(
            f"must be a whole number of at least {least}, got {text!r}"
        )
    return int(text)


def act_run(asked, root):
    """Run what is not done; print what became of each notebook and where to look."""
    given = {name: getattr(asked, name) for name in ("profile", "backend", "device", "seed")} | {
        "overrides": dict(asked.overrides)
    }
    if asked.update and jobs.Job("", **given) != jobs.Job(""):
        raise jobs.Refused(
            "--update writes into notebooks/, which hold the quick profile with default "
            "parameters; leave out the other options"
        )
    planned = jobs.plan(jobs.select(asked.names, root), root, **given)
    todo = [
        job
        for job in planned
        if asked.force
        or not job.done(root)
        or (asked.update and jobs.executed(job.name, "quick", root) is None)
    ]
    ran = (
        {
            outcome.job.name: outcome
            for outcome in runner.run(todo, root, workers=min(asked.jobs, len(todo)))
        }
        if todo
        else {}
    )
    outcomes = [ran.get(job.name, runner.Outcome(job, "unchanged")) for job in planned]
    changed = [
        o.job.name
        for o in outcomes
        if asked.update and o.status in ("done", "unchanged") and jobs.update(o.job.name, root)
    ]
    for line in summary(outcomes, changed, asked.profile):
        print(line)
    states = {outcome.status for outcome in outcomes}
    if not asked.overrides and "interrupted" not in states:
        try:
            print(f"Look at {shown(page(root, fresh=not todo))}")
        except (ValueError, OSError) as error:  # of another notebook, perhaps: what ran has run
            print(f"figures/index.html could not be written: {error}", file=sys.stderr)
    return 130 if "interrupted" in states else 1 if "FAILED" in states else 0


def page(root, fresh):
    """The page of figures, built unless it is there and nothing ran."""
    from hgcore.suite import report

    index = root / "figures" / "index.html"
    return index if fresh and index.exists() else report.build(root)


def summary(outcomes, changed, profile):
    """The lines printed after a run: one a notebook, more where it failed, then the count."""
    yield ""
    for outcome in outcomes:
        seconds = f"{outcome.seconds:8.1f} s" if outcome.status != "unchanged" else " " * 10
        yield f"  {outcome.status:<11} {seconds}  {outcome.job.name}" + (
            "  (notebook updated)" if outcome.job.name in changed else ""
        )
        if outcome.error:
            yield f"{' ' * 26}{outcome.cell + ': ' if outcome.cell else ''}{outcome.error}"
            yield (
                f"{' ' * 26}{shown(outcome.file)}, "
                f"traceback in {outcome.file.with_suffix('.log').name}"
            )
        elif outcome.job.overrides and outcome.file:
            yield f"{' ' * 26}{shown(outcome.file)}"
    counts = {
        state: sum(outcome.status == state for outcome in outcomes)
        for state in ("done", "unchanged", "FAILED", "interrupted")
    }
    yield (
        f"Profile {profile}: "
        + ", ".join(f"{count} {state}" for state, count in counts.items() if count)
        + "."
    )


def act_list(asked, root):
    """Print one line for each notebook: its state in both profiles and its figures."""
    from hgcore.suite import report

    rows, records = [("notebook", "quick", "paper", "figures")], report.latest(root)
    for name in jobs.select(asked.names, root):
        rows.append(
            (
                name,
                *report.states(name, records, root),
                ", ".join(report.figures_of(name, records, root)),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for row in rows:
        print(
            "  ".join(
                [*(cell.ljust(width) for cell, width in zip(row[:3], widths, strict=True)), row[3]]
            ).rstrip()
        )


def act_report(asked, root):
    """Build the page and the README's table, or check the table."""
    from hgcore.suite import readme, report

    if wrong := list(report.doubts(root)):
        print(
            "records changed by hand or damaged; restore them, "
            "or delete them and run their notebooks:",
            *wrong,
            sep="\n  ",
            file=sys.stderr,
        )
        return 1
    if asked.check:
        before, after = readme.revised(root)
        if before != after:
            print(
                "the table in README.md is out of date; `python -m hgcore report` writes it",
                file=sys.stderr,
            )
            return 1
        return 0
    readme.write(root)
    print(f"Look at {shown(report.build(root))}")
    print(report.tally(report.verdicts(root, "paper")))


def shown(path):
    """The path as a person would type it here: relative if it lies below the working directory."""
    path = Path(path)
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


def main(arguments=None):
    """Run one command; its exit status."""
    asked = parser().parse_args(arguments)
    try:
        return asked.act(asked, notebook.find_root()) or 0
    except (ValueError, OSError) as error:
        print(f"hgcore {asked.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
