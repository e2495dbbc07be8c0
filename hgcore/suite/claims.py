"""The ledger: what is claimed, what a run measured, and the verdict.

One claims.yml beside the notebooks of each paper. A `paper` claim is a sentence or number that a
reader can look up; a `suite` check is ours and guards a notebook.
"""

import functools
import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import yaml

from hgcore.suite import resume

HOLDS, FAILS, NOT_DECIDED, ERRATUM = "HOLDS", "FAILS", "NOT DECIDED", "ERRATUM"
SEEDS = 5  # the fewest random outcomes from which an interval is taken


@dataclass(frozen=True)
class Undecided:
    """In place of a measured value: why this machine or scale cannot measure it."""

    why: str


def ledger(root: Path) -> dict[str, list[dict]]:
    """Return {notebook: its claims} of all claims.yml, each checked."""
    found: dict[str, list[dict]] = {}
    for file in sorted(Path(root, "notebooks").rglob("claims.yml")):
        for entry in load(file):
            found.setdefault(entry["notebook"], []).append(entry)
    return found


def load(file: Path) -> list[dict]:
    """Return the claims of a claims.yml; raise ValueError that names the file and the claim."""
    try:
        entries = _parsed(file.read_text(encoding="utf-8")) or []
    except (yaml.YAMLError, UnicodeDecodeError, TypeError, RecursionError) as error:
        raise ValueError(f"{file}: not YAML: {error}") from None
    if problem := invalid("claims", entries):
        raise ValueError(f"{file}: {problem}")
    for entry in entries:
        if problem := _problem(entry, file, entries):
            raise ValueError(f"{file}: claim {entry['id']}: {problem}")
    return entries


def _problem(entry: dict, file: Path, entries: list[dict]) -> str | None:
    if [other["id"] for other in entries].count(entry["id"]) > 1:
        return "this id is used twice in the file"
    name = file.parent / f"{entry['notebook'].split('/')[-1]}.ipynb"
    if not name.exists() or not name.as_posix().endswith(f"notebooks/{entry['notebook']}.ipynb"):
        return f"there is no notebook {entry['notebook']} beside the file"
    for rule in filter(None, entry["accept"].values()):
        ends = [rule[end] for end in ("min", "max") if end in rule]
        if ends != sorted(ends) or not all(abs(end) < math.inf for end in ends):
            return f"min and max must be finite, and min not above max: {rule}"
    return None


class _Strict(yaml.SafeLoader):
    """YAML whose dates are text and whose fields are given once; a second would win in silence."""

    def construct_mapping(self, node, deep=False):
        names = [key.value for key, _ in node.value]
        if len(set(names)) < len(names):
            message = f"field {max(names, key=names.count)!r} is given twice"
            message += "; is a '- ' missing before it?"
            raise yaml.constructor.ConstructorError(None, None, message, node.start_mark)
        return super().construct_mapping(node, deep)


_Strict.add_constructor("tag:yaml.org,2002:timestamp", _Strict.construct_yaml_str)


@functools.cache
def _parsed(text: str):
    return yaml.load(text, _Strict)


def invalid(schema: str, value) -> str | None:
    """Return how `value` breaks the schema "claims" or "record", None if it does not."""
    from jsonschema.exceptions import best_match

    error = best_match(_validator(schema).iter_errors(value))
    if error is None:
        return None
    path = list(error.absolute_path)
    if path and isinstance(value, list) and isinstance(value[path[0]], dict):
        path[0] = f"claim {value[path[0]].get('id', path[0] + 1)}"
    return f"{': '.join(map(str, path)) or schema}: {error.message[:300]}"


@functools.cache
def _validator(name: str):
    import jsonschema

    text = Path(__file__).with_name(f"{name}.schema.yml").read_text(encoding="utf-8")
    return jsonschema.Draft202012Validator(yaml.safe_load(text))


def decide(entry: dict, profile: str, measured) -> str:
    """Return the verdict of a claim on a `plain` measured value.

    A value that is missing, not finite or of the wrong kind FAILS. With `confidence` the value is a
    list of outcomes, one a seed: their mean's Student interval decides, if there are five.
    """
    rule = entry["accept"].get(profile)
    if rule is None or isinstance(measured, dict) and "undecided" in measured:
        return NOT_DECIDED
    if "confidence" in entry and _are_numbers(measured):
        measured = low, high = interval(measured, entry["confidence"])
        outside = high < rule.get("min", -math.inf) or low > rule.get("max", math.inf)
        if not outside and not accepts(rule, list(measured)):
            return NOT_DECIDED
    if not accepts(rule, measured):
        return FAILS
    return ERRATUM if entry.get("erratum") else HOLDS


def interval(values: list, confidence: float) -> tuple[float, float]:
    """Return the Student interval of the mean; of fewer than five values, all numbers."""
    if len(values) < SEEDS:
        return -math.inf, math.inf
    from scipy import stats

    half = stats.t.ppf((1 + confidence) / 2, len(values) - 1) * stats.sem(values)
    return float(np.mean(values) - half), float(np.mean(values) + half)


def accepts(rule: dict, value) -> bool:
    """Return whether a plain value, all its numbers or their order, meets the rule."""
    if "equals" in rule:
        same_kind = isinstance(value, bool) == isinstance(rule["equals"], bool)
        return same_kind and value == rule["equals"]
    numbers = np.ravel(np.array(value, dtype=object)).tolist()
    if not _are_numbers(numbers):
        return False
    if "order" in rule:
        sign = 1 if rule["order"] == "increasing" else -1
        gaps = [sign * (b - a) for a, b in pairwise(numbers)]
        return bool(gaps) and min(gaps) > 0 and min(gaps) >= rule.get("margin", 0)
    return all(rule.get("min", -math.inf) <= x <= rule.get("max", math.inf) for x in numbers)


def _are_numbers(values) -> bool:
    kinds = isinstance(values, list) and {type(x) for x in values}
    return bool(kinds) and kinds <= {int, float} and all(abs(x) < math.inf for x in values)


def plain(value):
    """Return a measured value as JSON has it: 10 digits, what is not finite as text."""
    if isinstance(value, Undecided):
        return {"undecided": value.why}
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if isinstance(value, float):
        return float(f"{value:.10g}") if math.isfinite(value) else str(value)
    return value if value is None or isinstance(value, bool | int | str) else repr(value)


def check(run, measured: dict) -> None:
    """Print the verdict of every claim of this notebook and write the record of the run.

    A paper's claim that FAILS is a result. A failing suite check raises AssertionError after the
    record is written. With overrides nothing is decided: the acceptances belong to the original.
    """
    entries = ledger(run.root).get(run.name, [])
    ids = {entry["id"] for entry in entries}
    if entries and ids != set(measured):
        missing, unknown = sorted(ids - set(measured)), sorted(set(measured) - ids)
        raise ValueError(f"{run.name} lacks the claims {missing}; the ledger lacks {unknown}")
    values = {name: plain(value) for name, value in measured.items()}
    lines, failed = [], []
    for entry in entries:
        name, value = entry["id"], values[entry["id"]]
        verdict = NOT_DECIDED if run.overrides else decide(entry, run.profile, value)
        lines.append({"id": name, "measured": value, "verdict": verdict})
        print(f"{verdict:<12} {name:<{max(map(len, ids))}}  {entry['statement']}")
        if verdict == FAILS and entry["kind"] == "suite":
            failed.append(f"{name}: {value} is not {entry['accept'][run.profile]}")
    if not entries:
        lines = [{"id": name, "measured": value} for name, value in values.items()]
        print(*(f"{name}: {value}" for name, value in values.items()), sep="\n")
    run.write_record(lines)
    resume.clear(run)
    if failed:
        raise AssertionError("suite checks fail:\n" + "\n".join(failed))
