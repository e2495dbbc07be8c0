"""What the records say: RESULTS.md, the README's table, and whether a record can be trusted."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from hgcore import __version__
from hgcore.data import FILES
from hgcore.suite import notebooks
from hgcore.suite.claims import ERRATUM, FAILS, HOLDS, NOT_DECIDED, decide, invalid, ledger
from hgcore.suite.session import Job, digest

PAPERS = {
    "maclaurin2015": "Maclaurin, Duvenaud, Adams 2015, reversible learning",
    "drmad2016": "Fu et al. 2016, DrMAD",
    "franceschi2017": "Franceschi et al. 2017, forward and reverse",
    "lorraine2020": "Lorraine, Vicol, Duvenaud 2020, implicit differentiation",
}
START, END = "<!-- results -->\n", "<!-- end of results -->\n"


def load(file: Path) -> dict:
    """Return the record in `file`; raise ValueError unless it and its pictures are whole."""
    try:
        if file.exists() and not file.is_file():
            raise ValueError("it is not a file")
        record = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: not JSON: {error}") from None
    if problem := invalid("record", record):
        raise ValueError(f"{file}: {problem}")
    if digest(record) != record["digest"]:
        raise ValueError(f"{file} was changed after its run: the digest does not fit")
    for name, figure in record["figures"].items():
        for suffix in ("png", "pdf"):
            picture = file.with_name(f"{name}.{suffix}")
            found = picture.read_bytes() if picture.is_file() else b""
            if hashlib.sha256(found).hexdigest() != figure[suffix]:
                raise ValueError(f"{picture} is not the picture of the run in {file}")
    return record


def state(job: Job, root: Path, out: Path | None = None) -> str:
    """Return "done" if a whole record of today's code and data exists; "older" or "-" if not."""
    file = job.record(out or root)
    try:
        record = load(file)
        today = {k: file.sha256 for k, file in FILES.items() if file.sha256}
        data = {k: today.get(k, sha) for k, sha in record["data"].items()}
        if record["key"] == notebooks.key(job.name, job.parameters, data, root):
            return "done"
    except (OSError, ValueError):
        pass
    return "older" if file.exists() else "-"


def _job(record: dict) -> Job:
    return Job(record["notebook"], *(record[name] for name in Job("").parameters))


def files(root: Path, *profiles: str) -> list[Path]:
    """Return the files of all records in figures/: by notebook, then by profile, as given."""
    jobs = [Job(name, profile) for name in notebooks.discover(root) for profile in profiles]
    return [file for job in jobs if not job.own and (file := job.record(root)).exists()]


def problems(root: Path) -> Iterator[str]:
    """Yield what is wrong with the records: damage, a verdict that the ledger does not give."""
    entries, names = ledger(root), notebooks.discover(root)
    known = {Path(root, "figures/beyond/gpu.json")}  # of `make gpu`
    for file in files(root, "reduced", "paper"):
        known.add(file)
        try:
            record = load(file)
        except (OSError, ValueError) as error:
            yield str(error)
            continue
        known |= {file.with_name(f"{n}.{s}") for n in record["figures"] for s in ("png", "pdf")}
        for problem in _unlike_ledger(record, entries.get(record["notebook"], [])):
            yield f"{file}: {problem}"
        job = _job(record)
        if file != job.record(root) or job.name not in names:
            yield f"{file}: it belongs to another run: {job}"
    for file in sorted(Path(root, "figures").rglob("*.*")):
        quick = file.is_relative_to(Path(root, "figures/quick"))  # not committed
        if file.suffix in (".json", ".png", ".pdf") and not quick and file not in known:
            yield f"{file} belongs to no record"


def _unlike_ledger(record: dict, entries: list[dict]) -> Iterator[str]:
    measured = {claim["id"]: claim for claim in record["claims"]}
    if odd := sorted(set(measured) ^ {entry["id"] for entry in entries}):
        yield f"the record and claims.yml have different claims: {odd}; run the notebook"
    for entry in entries:
        if entry["figure"] not in record["figures"]:
            yield f"claim {entry['id']}: the run has no figure {entry['figure']}"
        if claim := measured.get(entry["id"]):
            verdict = decide(entry, record["profile"], claim["measured"])
            if claim.get("verdict") != verdict:
                yield f"claim {entry['id']} has {claim.get('verdict')}, the ledger gives {verdict}"


def best(root: Path) -> dict[str, dict]:
    """Return {notebook: its record} of the profile paper, else of reduced."""
    records = map(load, files(root, "reduced", "paper"))
    return {record["notebook"]: record for record in records}


def decided(root: Path, records: dict[str, dict]) -> list[dict]:
    """Return every claim of the ledger with its measured value and verdict, or "not run"."""
    rows, missing = [], {"measured": None, "verdict": "not run"}
    for name, entries in ledger(root).items():
        claims = {claim["id"]: claim for claim in records.get(name, {"claims": []})["claims"]}
        if not Job(name).own:
            rows += [entry | missing | claims.get(entry["id"], {}) for entry in entries]
    return rows


def headline(records: dict[str, dict], rows: list[dict]) -> str:
    """Return a count of the verdicts of the papers' claims, in words."""
    papers = [row for row in rows if row["kind"] == "paper"]
    checks = [row["verdict"] for row in rows if row["kind"] == "suite"]
    count = Counter(row["verdict"] for row in papers)
    changed = sum("changed" in row for row in rows)
    held = sum("changed" in row and row["verdict"] == HOLDS for row in papers)
    unread = sum(row["paper"]["known"].startswith(("remembered", "second-hand")) for row in papers)
    reduced = {name for name, record in records.items() if record["profile"] == "reduced"}
    small = sum(row["notebook"] in reduced for row in papers)
    return (
        f"Of {count.total()} claims of the papers {count[HOLDS]} hold, {count[FAILS]} fail,"
        f" {count[NOT_DECIDED]} are not decided, {count[ERRATUM]} are errata and"
        f" {count['not run']} were not run. {len(reduced)} of {len(records)} notebooks ran at a"
        f" reduced scale; {small} of the claims belong to them. {unread} of the papers' values are"
        f" remembered or second-hand. {changed} claims and checks were changed after a run,"
        f" {held} of them claims of the papers that hold. Of {len(checks)} checks of our"
        f" own {checks.count(FAILS)} fail."
    )


def summary(root: Path) -> tuple[str, dict[str, str]]:
    """Return (the headline, {"RESULTS.md": what it must hold, "README.md": what it must hold})."""
    records = best(root)
    rows = decided(root, records)
    parts = root, records, rows, headline(records, rows)
    return parts[-1], {"RESULTS.md": _results(*parts), "README.md": _readme(*parts)}


def _results(root: Path, records: dict, rows: list[dict], count: str) -> str:
    lines = ["# Results", "", f"{count} The first edition is version 0.1 of this suite.", ""]
    lines += ["| notebook | figures | paper's claims that hold | profile | minutes |"]
    lines += ["|---" * 5 + "|"]
    for name in notebooks.discover(root):
        held = _held([row for row in rows if row["notebook"] == name])
        lines += [] if Job(name).own else [_row(root, name, records.get(name), held)]
    titles = {FAILS: "What does not hold", NOT_DECIDED: "Not decided", ERRATUM: "Errata"}
    for verdict, title in titles.items():
        lines += ["", f"## {title}", ""]
        lines += [_claim(row) for row in rows if row["verdict"] == verdict]
    lines += ["", "## Changed after a run", ""]
    changes = [(row["id"], change) for row in rows for change in row.get("changed", ())]
    for name, one in changes:
        lines.append(f"- {name} ({one['what']}, {one['date']}): {' '.join(one['reason'].split())}")
    return "\n".join(lines) + "\n"


def _held(rows: list[dict]) -> str:
    verdicts = [row["verdict"] for row in rows if row["kind"] == "paper"]
    return f"{verdicts.count(HOLDS)} of {len(verdicts)}"


def _row(root: Path, name: str, record: dict | None, held: str) -> str:
    title = f"[{name}](notebooks/{name}.ipynb)"
    if record is None:
        return f"| {title} | | not run | | |"
    folder = Job(name, record["profile"]).folder(Path()).as_posix()
    shown = ", ".join(f"[{f}]({folder}/{f}.png)" for f in record["figures"])
    made_by, minutes = record["versions"]["hgcore"], record["seconds"] / 60
    profile = record["profile"]
    if made_by != __version__:
        profile += f", hgcore {made_by}"
    elif state(_job(record), root) != "done":
        profile += ", older cells or data"
    return f"| {title} | {shown} | {held} | {profile} | {minutes:.1f} |"


def _claim(row: dict) -> str:
    place = f" ({row['place']})" if row["kind"] == "paper" else " (a check of ours)"
    text = f"{row['statement']}{place} Measured: {brief(row['measured'])}. {row.get('note', '')}"
    return f"- **{row['notebook']}**: {' '.join(text.split())}"


def _readme(root: Path, records: dict, rows: list[dict], count: str) -> str:
    before, _, rest = Path(root, "README.md").read_text(encoding="utf-8").partition(START)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"README.md needs the lines {START.strip()} and {END.strip()}")
    lines = ["| paper | pictures | claims that hold |", "| --- | --- | --- |"]
    for paper, title in PAPERS.items():
        drawn = sum(len(r["figures"]) for name, r in records.items() if name.startswith(paper))
        held = _held([row for row in rows if row["notebook"].startswith(paper)])
        lines.append(f"| {title} | {drawn} | {held} |")
    lines += ["", f"{count} [Details](RESULTS.md)."]
    return before + START + "\n".join(lines) + "\n" + END + after


def brief(value) -> str:
    """Return a measured value in few characters."""
    if isinstance(value, dict):
        return f"nothing: {value.get('undecided')}"
    if isinstance(value, list):
        numbers = np.ravel(np.array(value, dtype=object)).tolist()
        if len(value) > 6 and all(isinstance(x, (int, float)) for x in numbers):
            return f"{len(numbers)} numbers from {brief(min(numbers))} to {brief(max(numbers))}"
        return ", ".join(map(brief, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def differences(file: Path, other: Path, entries: list[dict]) -> Iterator[str]:
    """Yield in what the record in `file` differs from that of another run.

    entries: the notebook's part of the ledger. What a claim measures is compared like the series of
    its figure, but below one absolutely (it may be a rounding error), and outcomes of random runs
    by their verdict only: those of another sample may decide what was not decided.
    """
    from matplotlib.image import imread

    ours, theirs = load(file), load(other)
    if set(ours["figures"]) != set(theirs["figures"]):
        yield f"figures: {sorted(ours['figures'])}, now {sorted(theirs['figures'])}"
        return
    before, after = ({c["id"]: c for c in record["claims"]} for record in (ours, theirs))
    for entry in entries:
        name, rtol = entry["id"], theirs["figures"].get(entry["figure"], {}).get("rtol")
        was, now = (claims.get(name, {}) for claims in (before, after))
        verdicts = {was.get("verdict"), now.get("verdict")}
        by_chance = "confidence" in entry and NOT_DECIDED in verdicts and None not in verdicts
        if len(verdicts) > 1 and not by_chance:
            yield f"claim {name}: {was.get('verdict')}, now {now.get('verdict')}"
        elif was and rtol is not None and "confidence" not in entry:
            gap = _gap(was["measured"], now["measured"], least=1)
            if not gap <= rtol:
                yield f"claim {name}: measured differs by {gap:.2g}, allowed {rtol:.2g}"
    for name, figure in theirs["figures"].items():
        was, now, rtol = ours["figures"][name]["series"], figure["series"], figure["rtol"]
        if odd := sorted(set(was) ^ set(now)):
            yield f"{name}: series {odd}"
        if rtol is None:
            continue
        for series in sorted(set(was) & set(now)):
            if not (gap := _gap(was[series], now[series])) <= rtol:
                yield f"{name}: {series} differs by {gap:.2g} of its magnitude, allowed {rtol:.2g}"
        a, b = (imread(place.with_name(f"{name}.png")) for place in (file, other))
        gap = abs(a - b).mean() if a.shape == b.shape else 1
        if gap > 0.01:
            yield f"{name}: the pictures differ by {gap:.2g} of full scale"


def _gap(a, b, least: float = 0) -> float:
    """Return the largest difference of two series over their largest magnitude, or `least`."""
    if isinstance(a, dict):
        same = isinstance(b, dict) and set(a) == set(b)
        return max((_gap(a[k], b[k]) for k in a), default=0.0) if same else np.inf
    try:
        x, y = (np.array(values, dtype=float) for values in (a, b))  # None becomes nan
    except (TypeError, ValueError):  # text
        return 0.0 if a == b else np.inf
    if x.shape != y.shape or (np.isnan(x) != np.isnan(y)).any():
        return np.inf
    scale = max(np.nanmax(abs(part), initial=least) for part in (x, y))
    return float(np.nanmax(abs(x - y), initial=0) / scale) if scale else 0.0
