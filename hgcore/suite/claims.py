"""The claims ledger: what a paper says, what a run measured, and the verdict.

One claims.yml beside the notebooks of each paper.
"""

import functools
import json
import re
import time
from dataclasses import dataclass
from pathlib import Path

import yaml

from hgcore.suite import figures
from hgcore.suite.acceptance import broken, checked, is_number, leaves, must, plain, satisfied

VERDICTS = ("HOLDS", "FAILS", "REFUTED", "NOT DECIDED")
KNOWN = (
    "read in the paper",
    "read off a plot",
    "authors' code or logs",
    "remembered, unverified",
    "not in the paper",
)
REQUIRED = {"id", "notebook", "figure", "statement", "place", "paper", "accept"}
OPTIONAL = {"refutes", "note"}


class ClaimFailed(AssertionError):
    """At least one claim of a notebook does not hold; its record has been written."""


def ledger(name: str, root: Path) -> Path:
    """Where the claims of the notebook `name` stand."""
    return (Path(root) / "notebooks" / name).parent / "claims.yml"


def entries(name: str, root: Path) -> list[dict]:
    """The claims of the notebook `name`."""
    return [entry for entry in load(ledger(name, root)) if entry["notebook"] == name]


def load(file: Path) -> list[dict]:
    """All entries of a claims.yml, each checked; none where there is no file.

    ValueError names the file and the claim.
    """
    found = _parsed(file) if file.exists() else []
    loaded, seen = [], set()
    for number, entry in enumerate(found, 1):
        label = entry.get("id") if isinstance(entry, dict) else None
        try:
            loaded.append(_entry(entry, file))
            must(label not in seen, "this id is used twice; ids are unique in a file")
        except ValueError as error:
            raise ValueError(f"{file}: claim {label or f'number {number}'}: {error}") from None
        seen.add(label)
    return loaded


@dataclass(frozen=True)
class Undecided:
    """In place of a measured value: what this machine lacks to measure it.

    Not for what was not tried.
    """

    why: str


def decide(entry: dict, profile: str, value) -> str:
    """The verdict of `entry` on a measured `value`.

    Not finite, missing or of the wrong kind: FAILS, never a pass.
    """
    rule = entry["accept"].get(profile)
    if rule is None or isinstance(value, Undecided):
        return "NOT DECIDED"
    if not satisfied(checked(rule), plain(value)):
        return "FAILS"
    return "REFUTED" if entry.get("refutes") else "HOLDS"


def breaks(entry: dict, profile: str):
    """A measured value for which `entry` gives FAILS at `profile`: proves that the check can fail.

    ValueError if it decides nothing.
    """
    rule = entry["accept"].get(profile)
    must(
        rule is not None,
        f"claim {entry['id']} is not decided at profile {profile}: nothing can break it",
    )
    return broken(checked(rule))


def check(run, measured: dict) -> None:
    """Decide every claim of this notebook, print one line each, write the records of its figures;
    ClaimFailed if one FAILS.

    With overrides (the user's own experiment) a FAILS is printed and recorded, not raised.
    """
    must(
        run.figures,
        f"{run.name} has saved no figure: call figures.save before claims.check, "
        "the claims stand in the figure's record",
    )
    found = entries(run.name, run.root)
    _complete(run, {entry["id"] for entry in found}, set(measured))
    decided = [
        (entry, plain(measured[entry["id"]]), decide(entry, run.profile, measured[entry["id"]]))
        for entry in found
    ]
    width = max((len(entry["id"]) for entry in found), default=0)
    for entry, _, verdict in decided:
        print(f"{verdict:<13}{entry['id']:<{width}}  {' '.join(entry['statement'].split())}")
    _record(run, decided)
    failed = [
        f"{entry['id']}: measured {_json(value)}, accepted {entry['accept'][run.profile]}"
        for entry, value, verdict in decided
        if verdict == "FAILS"
    ]
    if failed and not run.overrides:
        raise ClaimFailed(
            f"{len(failed)} of {len(decided)} claims of {run.name} fail at profile "
            f"{run.profile}:\n  " + "\n  ".join(failed)
        )


def _parsed(file: Path) -> list:
    try:
        found = _yaml(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: no YAML: {error}") from None
    must(
        isinstance(found, list | None),
        f"{file}: a list of claims is needed, got a {type(found).__name__}; "
        "begin each claim with '- id: ...'",
    )
    return found or []


class _Once(yaml.SafeLoader):
    """YAML in which no field of a mapping may be given twice: the later one would silently replace
    the first.
    """

    def construct_mapping(self, node, deep=False):
        names = [key.value for key, _ in node.value]
        if twice := next((name for i, name in enumerate(names) if name in names[:i]), None):
            raise yaml.constructor.ConstructorError(
                None,
                None,
                f"field {twice!r} is given twice; is a '- ' missing before it?",
                node.start_mark,
            )
        return super().construct_mapping(node, deep)


@functools.cache
def _yaml(text: str):
    """Read once by each process: YAML is slow, and a page of figures asks for the claims of every
    notebook.
    """
    return yaml.load(text, _Once)


def _entry(entry: dict, file: Path) -> dict:
    must(isinstance(entry, dict), f"an entry is a mapping of fields, got {entry!r}")
    must(REQUIRED <= set(entry), f"missing {', '.join(sorted(REQUIRED - set(entry)))}")
    must(
        set(entry) <= REQUIRED | OPTIONAL,
        f"unknown {', '.join(sorted(map(str, set(entry) - REQUIRED - OPTIONAL)))}",
    )
    for field in sorted(REQUIRED - {"paper", "accept"} | {"note"} & set(entry)):
        must(
            isinstance(entry[field], str) and entry[field].strip(),
            f"{field} must be text, got {entry[field]!r}",
        )
    place = ("notebooks", *entry["notebook"].split("/"))
    must(
        file.with_name(place[-1]).parts[-len(place) :] == place,
        f"notebook {entry['notebook']} does not lie beside this file",
    )
    must(
        isinstance(entry.get("refutes", False), bool),
        f"refutes must be true or false, got {entry.get('refutes')!r}",
    )
    _paper(entry["paper"])
    entry = {**entry, "accept": _accept(entry["accept"])}
    json.dumps(
        entry, allow_nan=False, default=str
    )  # ValueError here and not after the work, when the record is written
    return entry


def _paper(value: dict) -> None:
    must(
        isinstance(value, dict)
        and {"value", "known"} <= set(value) <= {"value", "known", "reading_error"},
        f"paper must be {{value:, known:}} and perhaps reading_error, got {value!r}",
    )
    must(
        value["known"] in KNOWN,
        f"known must be one of {', '.join(map(repr, KNOWN))}, got {value['known']!r}",
    )
    must(
        value["known"] != "not in the paper" or value["value"] is None,
        "what is not in the paper has no value there: write value: null",
    )


def _accept(accept: dict) -> dict:
    must(
        isinstance(accept, dict) and accept,
        f"accept must give an acceptance by profile, got {accept!r}; "
        "write null where a profile cannot decide",
    )
    must(
        set(accept) <= {"quick", "paper"},
        f"accept knows the profiles quick and paper, got {', '.join(map(str, accept))}",
    )
    rules = {}
    for profile, rule in accept.items():
        try:
            rules[profile] = None if rule is None else checked(rule)
        except ValueError as error:
            raise ValueError(f"accept {profile}: {error}") from None
    return rules


def _complete(run, wanted: set, measured: set) -> None:
    file = ledger(run.name, run.root).relative_to(run.root)
    must(
        wanted <= measured,
        f"{run.name} does not measure {sorted(wanted - measured)}, which {file} claims",
    )
    must(
        measured <= wanted,
        f"{run.name} measures {sorted(measured - wanted)}, "
        f"of which {file} has no entry for this notebook",
    )


def _record(run, decided: list) -> None:
    """One record a figure; a claim of no saved figure goes to the first."""
    facts, first = (
        run.facts() | {"seconds": round(time.perf_counter() - run.clock, 2)},
        next(iter(run.figures)),
    )
    for figure, saved in run.figures.items():
        own = [
            _line(run, *claim)
            for claim in decided
            if (claim[0]["figure"] if claim[0]["figure"] in run.figures else first) == figure
        ]
        record = facts | {
            "figure": run.full(figure),
            "siblings": [run.full(name) for name in run.figures],
            "products": saved.products,
            "series": saved.series,
            "claims": own,
        }
        figures.write(run.destination / f"{figure}.json", _text(record).encode())


def _text(record: dict) -> str:
    """Indented JSON with each innermost list on one line."""
    text = json.dumps(
        record, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False, default=str
    )  # str: YAML's dates
    return (
        re.sub(
            r"\[\n([^][{}]*)\n *\]",
            lambda found: "[" + re.sub(r"\n *", " ", found[1]).strip() + "]",
            text,
        )
        + "\n"
    )


def _line(run, entry: dict, value, verdict: str) -> dict:
    return {name: entry[name] for name in ("id", "statement", "place", "paper")} | {
        "measured": _json(value),
        "accept": entry["accept"].get(run.profile),
        "verdict": verdict,
        "note": entry.get("note"),
    }


def _json(value):
    """What JSON can hold of a measured value: long lists as min, max, len; NaN, infinities and
    anything else as text.
    """
    numbers = leaves(value)
    if isinstance(value, list) and len(numbers) > 50 and all(map(is_number, numbers)):
        return {"min": min(numbers), "max": max(numbers), "len": len(numbers)}
    if isinstance(value, Undecided):
        return value.why
    if isinstance(value, list):
        return [_json(item) for item in value]
    return (
        value if value is None or isinstance(value, str | bool) or is_number(value) else repr(value)
    )
