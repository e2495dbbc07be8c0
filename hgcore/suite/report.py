"""What the records say, and the page of figures, made of nothing but the records, the ledger and
the notebooks.
"""

import json
from collections import Counter

from hgcore.suite import claims, figures, jobs, notebook, pages
from hgcore.suite.acceptance import satisfied

PAPERS = {  # in the order of the page: short name, title
    "tour": ("Tour", "A tour of the suite"),
    "maclaurin2015": (
        "Maclaurin 2015",
        "Maclaurin, Duvenaud, Adams 2015: Gradient-based Hyperparameter Optimization through "
        "Reversible Learning",
    ),
    "drmad2016": ("Fu 2016", "Fu, Luo, Feng, Low, Chua 2016: DrMAD"),
    "franceschi2017": (
        "Franceschi 2017",
        "Franceschi, Donini, Frasconi, Pontil 2017: "
        "Forward and Reverse Gradient-Based Hyperparameter Optimization",
    ),
    "lorraine2020": (
        "Lorraine 2020",
        "Lorraine, Vicol, Duvenaud 2020: Optimizing Millions of Hyperparameters by Implicit "
        "Differentiation",
    ),
    "beyond": ("Beyond", "Beyond the papers"),
}
VERDICTS = (*claims.VERDICTS, "NOT RUN")
SAID = {
    "HOLDS": "{} held",
    "FAILS": "{} failed",
    "REFUTED": "{} refuted",
    "NOT DECIDED": "{} not decided",
    "NOT RUN": "{} not run",
}


def latest(root):
    """{(figure, profile): record} of the notebooks that there are, without what a newer run of a
    notebook no longer draws.
    """
    names, keys = set(notebook.discover(root)), {}
    records = [record for record in notebook.records(root) if record["notebook"] in names]
    for record in records:
        keys.setdefault((record["notebook"], record["profile"]), {})[record["key"]] = record
    current = {
        place: next((key for key, record in found.items() if notebook.fresh(record, root)), None)
        for place, found in keys.items()
        if len(found) > 1
    }  # None: of two runs neither is today's, and both are shown
    return {
        (record["figure"], record["profile"]): record
        for record in records
        if current.get((record["notebook"], record["profile"])) in (None, record["key"])
    }


def doubts(root):
    """A line for each file that should be a record and is not JSON, and for each verdict that its
    own number contradicts.
    """
    for file in sorted((root / "figures").rglob("*.json")):
        try:
            json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            yield f"{file.relative_to(root)} cannot be read: {error}"
    for (figure, profile), record in latest(root).items():
        for claim in record["claims"]:
            rule, value = claim["accept"], claim["measured"]
            if (
                rule
                and not isinstance(value, str | dict)
                and satisfied(rule, value) != (claim["verdict"] in ("HOLDS", "REFUTED"))
            ):
                yield (
                    f"{figure} at profile {profile}: {claim['id']} is said to be "
                    f"{claim['verdict']}, measured {value}, accepted {rule}"
                )


def verdicts(root, profile):
    """[(notebook, entry, verdict)] of every claim in the ledgers; NOT RUN if no record has it."""
    said = {
        (record["notebook"], claim["id"]): claim["verdict"]
        for (_, ran), record in latest(root).items()
        if ran == profile
        for claim in record["claims"]
    }
    return [
        (name, entry, said.get((name, entry["id"]), "NOT RUN"))
        for name in notebook.discover(root)
        for entry in claims.entries(name, root)
    ]


def tally(said, profile="paper"):
    """`12 of 14 claims hold at profile paper; 1 refuted; 1 not decided.` of `verdicts`"""
    counts = Counter(verdict for *_, verdict in said)
    told = [
        verdict
        for verdict in VERDICTS[1:]
        if counts[verdict] or verdict in ("REFUTED", "NOT DECIDED")
    ]
    rest = "; ".join(SAID[verdict].format(counts[verdict]) for verdict in told)
    return f"{counts['HOLDS']} of {counts.total()} claims hold at profile {profile}; {rest}."


def states(name, records, root):
    """The state at (quick, paper) of a notebook's `latest` records: -, stale, FAILS, or done with
    its seconds.
    """
    known = [record for record in records.values() if record["notebook"] == name]
    return tuple(
        _state([record for record in known if record["profile"] == profile], root)
        for profile in ("quick", "paper")
    )


def _state(records, root):
    if not records:
        return "-"
    if {record["figure"] for record in records} != set(records[0]["siblings"]) or not all(
        notebook.fresh(record, root) for record in records
    ):
        return "stale"
    if any(claim["verdict"] == "FAILS" for record in records for claim in record["claims"]):
        return "FAILS"
    return f"done {duration(max(record['seconds'] for record in records))}"


def figures_of(name, records, root):
    """The figures that `latest` records and the ledger give a notebook."""
    claimed = [f"{notebook.paper(name)}/{entry['figure']}" for entry in claims.entries(name, root)]
    saved = [figure for (figure, _), record in records.items() if record["notebook"] == name]
    return sorted({*claimed, *saved})


# ---- the page


def build(root):
    """Write figures/index.html and a page for each notebook; return the index."""
    index = root / "figures" / "index.html"
    for name in notebook.discover(root):
        nb, origin = _source(name, root)
        home = "../" * (name.count("/") + 1) + "index.html"
        html = pages.template("notebook.html").render(
            name=name, home=home, origin=origin, cells=pages.notebook_html(notebook.normalise(nb))
        )
        figures.write(index.parent / "pages" / f"{name}.html", html.encode())
    figures.write(
        index,
        pages.template("index.html").render(papers=_papers(root), tallies=_tallies(root)).encode(),
    )
    return index


def _source(name, root):
    """The notebook with the best outputs that there are, and whose they are."""
    for profile in ("paper", "quick"):
        if nb := jobs.executed(name, profile, root):
            return nb, f"profile {profile}"
    return notebook.read(name, root), "profile quick, as committed"


def _tallies(root):
    ran = {profile for _, profile in latest(root)} | {"paper"}
    said = {profile: verdicts(root, profile) for profile in sorted(ran)}
    counts = {profile: Counter(verdict for *_, verdict in said[profile]) for profile in said}
    return [
        {
            "text": tally(said[profile], profile),
            "counts": [(verdict, counts[profile][verdict]) for verdict in VERDICTS],
        }
        for profile in said
    ]


def _papers(root):
    names, records = notebook.discover(root), latest(root)
    order = sorted(
        {notebook.paper(name) for name in names},
        key=lambda paper: ([*PAPERS, paper].index(paper), paper),
    )
    return [
        {
            "id": paper,
            "short": PAPERS.get(paper, (paper,))[0],
            "title": PAPERS.get(paper, (paper,))[-1],
            "notebooks": [
                _book(name, records, root) for name in names if notebook.paper(name) == paper
            ],
        }
        for paper in order
    ]


def _book(name, records, root):
    own = {place: record for place, record in records.items() if record["notebook"] == name}
    decided = {claim["id"] for record in own.values() for claim in record["claims"]}
    unrun = [
        entry | {"statement": pages.inline(entry["statement"])}
        for entry in claims.entries(name, root)
        if entry["id"] not in decided
    ]
    return {
        "name": name,
        "title": pages.inline(_title(name, root)),
        "page": f"pages/{name}.html",
        "unrun": unrun,
        "figures": [_figure(figure, own, root) for figure in sorted({figure for figure, _ in own})],
    }


def _title(name, root):
    """The notebook's first heading, its name without one."""
    lines = (
        line
        for cell in notebook.read(name, root)["cells"]
        if cell["cell_type"] == "markdown"
        for line in cell["source"].splitlines()
    )
    return next((line[2:].strip() for line in lines if line.startswith("# ")), name)


def _figure(figure, records, root):
    """What the page shows of one figure: the paper profile's record if there is one."""
    record, quick = (
        records.get((figure, "paper")) or records[figure, "quick"],
        records.get((figure, "quick")),
    )
    facts = [
        f"profile {record['profile']}",
        duration(record["seconds"]),
        f"{record['device']} ({record['device_name']})",
        f"{record['backend']}, {record['dtype']}",
        f"seed {record['seed']}",
    ]
    counts = (
        Counter(claim["verdict"] for claim in quick["claims"])
        if quick and quick is not record
        else Counter()
    )
    also = ", ".join(
        said.format(counts[verdict]) for verdict, said in SAID.items() if counts[verdict]
    )
    return {
        "id": figure,
        "stem": ("quick/" if record is quick else "") + figure,
        "meta": " · ".join(facts),
        "stale": not notebook.fresh(record, root),
        "claims": [_claim(claim) for claim in record["claims"]],
        "other": also and f"At profile quick, {duration(quick['seconds'])}: {also}.",
    }


def _claim(claim):
    paper = claim["paper"]
    error = f" ± {_shown(paper['reading_error'])}" if paper.get("reading_error") is not None else ""
    return {
        "verdict": claim["verdict"],
        "place": claim["place"],
        "statement": pages.inline(claim["statement"]),
        "measured": _shown(claim["measured"]),
        "accepted": accepted(claim["accept"]),
        "note": pages.inline(claim["note"]) if claim["note"] else "",
        "paper": "no value" if paper["value"] is None else _shown(paper["value"]) + error,
        "known": paper["known"],
    }


def accepted(rule):
    """An acceptance in words, empty for none."""
    match rule:
        case None:
            return ""
        case {"min": low, "max": high}:
            return f"{_shown(low)} to {_shown(high)}"
        case {"min": low}:
            return f"at least {_shown(low)}"
        case {"max": high}:
            return f"at most {_shown(high)}"
        case {"equals": value}:
            return f"exactly {_shown(value)}"
        case {"order": order}:
            return order + (f", by at least {_shown(rule['margin'])}" if "margin" in rule else "")
        case _:
            return "yes"


def _shown(value):
    """A measured value for a reader: four digits, at most six numbers of a list."""
    match value:
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.4g}".replace("-", "\u2212", 1) if value < 0 else f"{value:.4g}"
        case {"min": low, "max": high, "len": count}:
            return f"{_shown(low)} to {_shown(high)} ({count} values)"
        case list() if len(value) > 6:
            return (
                ", ".join(map(_shown, value[:3])) + f", … {_shown(value[-1])} ({len(value)} values)"
            )
        case list():
            return ", ".join(map(_shown, value))
    return "none" if value is None else str(value)


def duration(seconds):
    """Seconds, minutes or hours, as one would say it: `85 s`, `7 min`, `2.4 h`."""
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )
