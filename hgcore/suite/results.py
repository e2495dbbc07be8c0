"""What the records say: RESULTS.md, the README's table, and whether a record can be trusted."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from hgcore.checkpoint import write_atomically
from hgcore.data import FILES
from hgcore.suite import notebooks
from hgcore.suite.claims import ERRATUM, FAILS, HOLDS, NOT_DECIDED, decide, invalid, ledger
from hgcore.suite.session import PROFILES, digest, folder_of

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
        record = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
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


def data_of(record: dict) -> dict:
    """Return {name: today's SHA-256} of the data that a record used."""
    return {k: FILES[k].sha256 if k in FILES else sha for k, sha in record["data"].items()}


def files(root: Path, *profiles: str) -> Iterator[Path]:
    """Yield the files of all committed records of these profiles, paper before reduced."""
    for profile in profiles:
        for name in notebooks.discover(root):
            file = folder_of(name, profile, root) / f"{name.rpartition('/')[2]}.json"
            if file.exists():
                yield file


def problems(root: Path) -> Iterator[str]:
    """Yield what is wrong with the records: damage, a verdict that the ledger does not give."""
    entries, names = ledger(root), notebooks.discover(root)
    known = set()
    for file in files(root, *PROFILES):
        known.add(file)
        try:
            record = load(file)
        except (OSError, ValueError) as error:
            yield str(error)
            continue
        known |= {file.with_name(f"{n}.{s}") for n in record["figures"] for s in ("png", "pdf")}
        for problem in _unlike_ledger(record, entries.get(record["notebook"], [])):
            yield f"{file}: {problem}"
        if file.stem != record["notebook"].rpartition("/")[2] or record["notebook"] not in names:
            yield f"{file}: it is the record of {record['notebook']}"
    for file in sorted((Path(root) / "figures").rglob("*.*")):
        if file.suffix in (".json", ".png", ".pdf") and file not in known:
            yield f"{file} belongs to no record"


def _unlike_ledger(record: dict, entries: list[dict]) -> Iterator[str]:
    measured = {claim["id"]: claim for claim in record["claims"]}
    if set(measured) != {entry["id"] for entry in entries}:
        odd = sorted(set(measured) ^ {entry["id"] for entry in entries})
        yield f"record and ledger do not have the same claims: {odd}; run the notebook"
    for entry in entries:
        if entry["figure"] not in record["figures"]:
            yield f"claim {entry['id']}: the run has no figure {entry['figure']}"
        claim = measured.get(entry["id"], {})
        verdict = decide(entry, record["profile"], claim.get("measured"))
        if claim and claim.get("verdict") != verdict:
            yield f"claim {entry['id']} has {claim.get('verdict')}, the ledger gives {verdict}"


# ---- RESULTS.md


def best(root: Path) -> dict[str, dict]:
    """Return {notebook: its record} of the profile paper, else of reduced."""
    found: dict[str, dict] = {}
    for file in files(root, "paper", "reduced"):
        record = load(file)
        found.setdefault(record["notebook"], record)
    return found


def text(root: Path) -> str:
    """Return RESULTS.md."""
    records, entries = best(root), ledger(root)
    rows = [claim for name in records for claim in _decided(records[name], entries.get(name, []))]
    lines = ["# Results", "", headline(root), ""]
    lines += [
        "| notebook | figures | paper's claims that hold | profile | minutes |",
        "|---" * 5 + "|",
    ]
    for name in notebooks.discover(root):
        if name.startswith("own/"):
            continue
        record = records.get(name)
        lines.append(_row(name, record, [row for row in rows if row[0]["notebook"] == name]))
    for title, verdict in (
        ("What does not hold", FAILS),
        ("What is not decided", NOT_DECIDED),
        ("Errata of the papers", ERRATUM),
    ):
        lines += ["", f"## {title}", ""]
        lines += [_claim(entry, claim) for entry, claim in rows if claim["verdict"] == verdict]
    lines += ["", "## Changed after a run", ""]
    for entry, _ in rows:
        for change in entry.get("changed", ()):
            what = f"{change['what']}, {change['date']}"
            lines.append(f"- {entry['id']} ({what}): {' '.join(change['reason'].split())}")
    return "\n".join(lines) + "\n"


def headline(root: Path) -> str:
    """Return one sentence that counts the verdicts of the papers' claims."""
    records, entries = best(root), ledger(root)
    counts, checks, changed, reduced = Counter(), Counter(), 0, 0
    for name, record in records.items():
        reduced += record["profile"] == "reduced"
        for entry, claim in _decided(record, entries.get(name, [])):
            (counts if entry["kind"] == "paper" else checks)[claim["verdict"]] += 1
            changed += "changed" in entry
    missing = sum(e["kind"] == "paper" for n, es in entries.items() if n not in records for e in es)
    return (
        f"Of {counts.total() + missing} claims of the papers {counts[HOLDS]} hold, {counts[FAILS]}"
        f" fail, {counts[NOT_DECIDED]} are not decided, {counts[ERRATUM]} are errata and {missing}"
        f" were not run. {reduced} of {len(records)} notebooks ran at a reduced scale. {changed}"
        f" entries were changed after a run. Of {checks.total()} checks of our own"
        f" {checks[FAILS]} fail."
    )


def _decided(record: dict, entries: list[dict]) -> list[tuple[dict, dict]]:
    claims = {claim["id"]: claim for claim in record["claims"]}
    return [(entry, claims[entry["id"]]) for entry in entries if entry["id"] in claims]


def _row(name: str, record: dict | None, claims: list) -> str:
    title = f"[{name}](notebooks/{name}.ipynb)"
    if record is None:
        return f"| {title} | | not run | | |"
    folder = folder_of(name, record["profile"], Path())
    shown = ", ".join(f"[{f}]({folder.as_posix()}/{f}.png)" for f in record["figures"])
    paper = [claim["verdict"] for entry, claim in claims if entry["kind"] == "paper"]
    old = record["versions"]["hgcore"] != _version()
    profile = record["profile"] + (f", hgcore {record['versions']['hgcore']}" if old else "")
    held = f"{paper.count(HOLDS)} of {len(paper)}"
    return f"| {title} | {shown} | {held} | {profile} | {record['seconds'] / 60:.1f} |"


def _version() -> str:
    from hgcore import __version__

    return __version__


def _claim(entry: dict, claim: dict) -> str:
    ours = "" if entry["kind"] == "paper" else " (our check)"
    place = f" ({entry['place']})" if "place" in entry else ""
    note = f" {' '.join(entry['note'].split())}" if "note" in entry else ""
    measured = f"measured {brief(claim['measured'])}"
    return f"- **{entry['notebook']}**{ours}: {entry['statement']}{place}: {measured}.{note}"


def brief(value) -> str:
    """Return a measured value in few characters."""
    if isinstance(value, dict):
        return f"nothing: {value.get('undecided')}"
    if isinstance(value, list) and len(value) > 6:
        numbers = np.ravel(np.array(value, dtype=object))
        return f"{len(numbers)} numbers from {brief(min(numbers))} to {brief(max(numbers))}"
    if isinstance(value, list):
        return ", ".join(map(brief, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def readme(root: Path) -> str:
    """Return README.md with today's table of papers between its two markers."""
    before, _, rest = (Path(root) / "README.md").read_text(encoding="utf-8").partition(START)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"README.md needs the lines {START.strip()} and {END.strip()}")
    records, entries = best(root), ledger(root)
    lines = ["| paper | figures and tables | claims that hold |", "| --- | --- | --- |"]
    for paper, title in PAPERS.items():
        own = {name: record for name, record in records.items() if name.startswith(f"{paper}/")}
        rows = [row for name in own for row in _decided(own[name], entries.get(name, []))]
        verdicts = [claim["verdict"] for entry, claim in rows if entry["kind"] == "paper"]
        count = sum(len(record["figures"]) for record in own.values())
        lines.append(f"| {title} | {count} | {verdicts.count(HOLDS)} of {len(verdicts)} |")
    table = "\n".join([*lines, "", headline(root) + " Details: [RESULTS.md](RESULTS.md)."])
    return before + START + table + "\n" + END + after


def texts(root: Path) -> dict[str, str]:
    """Return {file name: what it must hold}."""
    return {"RESULTS.md": text(root), "README.md": readme(root)}


def write(root: Path) -> None:
    """Write RESULTS.md and the README's table."""
    for name, content in texts(root).items():
        write_atomically(Path(root) / name, content.encode())


# ---- verify


def differences(file: Path, other: Path) -> Iterator[str]:
    """Yield in what the record in `file` differs from that of another run."""
    ours, theirs = load(file), load(other)
    verdicts = {claim["id"]: claim.get("verdict") for claim in theirs["claims"]}
    for claim in ours["claims"]:
        if claim.get("verdict") != verdicts.get(claim["id"]):
            yield f"claim {claim['id']}: {claim.get('verdict')}, now {verdicts.get(claim['id'])}"
    if set(ours["figures"]) != set(theirs["figures"]):
        yield f"figures: {sorted(ours['figures'])}, now {sorted(theirs['figures'])}"
        return
    for name, figure in ours["figures"].items():
        again, rtol = theirs["figures"][name]["series"], figure["rtol"]
        if set(figure["series"]) != set(again):
            yield f"{name}: series {sorted(set(figure['series']) ^ set(again))}"
        for series in set(figure["series"]) & set(again) if rtol is not None else ():
            gap = _gap(figure["series"][series], again[series])
            if not gap <= rtol:
                yield f"{name}: {series} differs by {gap:.2g} of its magnitude, allowed {rtol:.2g}"
        pictures = [place.with_name(f"{name}.png") for place in (file, other)]
        if rtol is not None and (gap := _picture_gap(*pictures)) > 0.01:
            yield f"{name}: the pictures differ by {gap:.2g} of full scale"


def _gap(a, b) -> float:
    """Return the largest difference of two series over their largest magnitude."""
    if isinstance(a, dict):
        same = isinstance(b, dict) and set(a) == set(b)
        return max((_gap(a[k], b[k]) for k in a), default=0.0) if same else np.inf
    x, y = (np.array(values, dtype=object) for values in (a, b))
    if x.shape != y.shape:
        return np.inf
    if not all(isinstance(v, int | float | None) for v in [*x.flat, *y.flat]):
        return 0.0 if a == b else np.inf
    x, y = x.astype(float), y.astype(float)
    if (np.isnan(x) != np.isnan(y)).any():
        return np.inf
    scale = max(np.nanmax(abs(x), initial=0), np.nanmax(abs(y), initial=0))
    return float(np.nanmax(abs(x - y), initial=0) / scale) if scale else 0.0


def _picture_gap(file: Path, other: Path) -> float:
    """Return the mean difference of two pictures, from 0 to 1."""
    from matplotlib.image import imread

    a, b = imread(file), imread(other)
    return float(abs(a - b).mean()) if a.shape == b.shape else 1.0
