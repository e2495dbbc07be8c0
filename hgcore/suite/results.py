"""What the records say: RESULTS.md, the README's table, and whether a record can be trusted."""

from __future__ import annotations

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
from hgcore.suite.session import digest, folder_of

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
    known, gpu = set(), Path(root) / "figures/beyond/gpu.json"  # of `make gpu`
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
        if file.stem != record["notebook"].rpartition("/")[2] or record["notebook"] not in names:
            yield f"{file}: it is the record of {record['notebook']}"
    for file in sorted((Path(root) / "figures").rglob("*.*")):
        quick = file.is_relative_to(Path(root) / "figures/quick")  # not committed
        if file.suffix in (".json", ".png", ".pdf") and not quick and file not in known | {gpu}:
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


# ---- RESULTS.md and the README's table


def best(root: Path) -> dict[str, dict]:
    """Return {notebook: its record} of the profile paper, else of reduced."""
    records = [load(file) for file in files(root, "reduced", "paper")]
    found = {record["notebook"]: record for record in records}
    return {name: found[name] for name in notebooks.discover(root) if name in found}


def decided(root: Path) -> list[dict]:
    """Return every claim of the ledger with its measured value and verdict, or "not run"."""
    records, rows = best(root), []
    for name, entries in ledger(root).items():
        claims = {claim["id"]: claim for claim in records.get(name, {"claims": []})["claims"]}
        missing = {"measured": None, "verdict": "not run"}
        rows += [entry | missing | claims.get(entry["id"], {}) for entry in entries]
    return rows


def headline(root: Path) -> str:
    """Return a count of the verdicts of the papers' claims, in words."""
    rows, profiles = decided(root), [record["profile"] for record in best(root).values()]
    count = Counter(row["verdict"] for row in rows if row["kind"] == "paper")
    checks = Counter(row["verdict"] for row in rows if row["kind"] == "suite")
    return (
        f"Of {count.total()} claims of the papers {count[HOLDS]} hold, {count[FAILS]} fail,"
        f" {count[NOT_DECIDED]} are not decided, {count[ERRATUM]} are errata and"
        f" {count['not run']} were not run. {profiles.count('reduced')} of {len(profiles)}"
        f" notebooks ran at a reduced scale. {sum('changed' in row for row in rows)} entries were"
        f" changed after a run. Of {checks.total()} checks of our own {checks[FAILS]} fail."
    )


def text(root: Path) -> str:
    """Return RESULTS.md."""
    records, rows = best(root), decided(root)
    lines = ["# Results", "", headline(root), ""]
    lines += ["| notebook | figures | paper's claims that hold | profile | minutes |"]
    lines += ["|---" * 5 + "|"]
    for name in notebooks.discover(root):
        own = [row["verdict"] for row in rows if (row["notebook"], row["kind"]) == (name, "paper")]
        lines += [] if name.startswith("own/") else [_row(name, records.get(name), own)]
    titles = {FAILS: "What does not hold", NOT_DECIDED: "Not decided", ERRATUM: "Errata"}
    for verdict, title in titles.items():
        lines += ["", f"## {title}", ""]
        lines += [_claim(row) for row in rows if row["verdict"] == verdict]
    lines += ["", "## Changed after a run", ""]
    changes = [(row["id"], change) for row in rows for change in row.get("changed", ())]
    lines += [f"- {i} ({c['what']}, {c['date']}): {c['reason']}" for i, c in changes]
    return "\n".join(lines) + "\n"


def _row(name: str, record: dict | None, verdicts: list) -> str:
    title = f"[{name}](notebooks/{name}.ipynb)"
    if record is None:
        return f"| {title} | | not run | | |"
    folder, made_by = folder_of(name, record["profile"], Path()), record["versions"]["hgcore"]
    shown = ", ".join(f"[{f}]({folder.as_posix()}/{f}.png)" for f in record["figures"])
    profile = record["profile"] + (f", hgcore {made_by}" if made_by != __version__ else "")
    held = f"{verdicts.count(HOLDS)} of {len(verdicts)}"
    return f"| {title} | {shown} | {held} | {profile} | {record['seconds'] / 60:.1f} |"


def _claim(row: dict) -> str:
    place = f" ({row['place']})" if row["kind"] == "paper" else " (a check of ours)"
    text = f"{row['statement']}{place} Measured: {brief(row['measured'])}. {row.get('note', '')}"
    return f"- **{row['notebook']}**: {' '.join(text.split())}"


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
    records, rows = best(root), decided(root)
    lines = ["| paper | figures and tables | claims that hold |", "| --- | --- | --- |"]
    for paper, title in PAPERS.items():
        own = [row for row in rows if row["notebook"].startswith(paper) and row["kind"] == "paper"]
        held = sum(row["verdict"] == HOLDS for row in own)
        count = sum(len(r["figures"]) for name, r in records.items() if name.startswith(paper))
        lines.append(f"| {title} | {count} | {held} of {len(own)} |")
    lines += ["", f"{headline(root)} [Details](RESULTS.md)."]
    return before + START + "\n".join(lines) + "\n" + END + after


def texts(root: Path) -> dict[str, str]:
    """Return {file name: what it must hold}."""
    return {"RESULTS.md": text(root), "README.md": readme(root)}


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
