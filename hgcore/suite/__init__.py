"""The command line, notebooks, claims, records, figures: what regenerates and judges the suite."""

from hgcore.suite import claims, figures, meter, profiles
