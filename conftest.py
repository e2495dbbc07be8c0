"""nbval compares what readers see: not what goes to stderr, nor a second, HTML form of the same
result.
"""


def pytest_collectstart(collector):
    if getattr(collector, "path", None) is not None and collector.path.suffix == ".ipynb":
        collector.skip_compare += ("stderr", "text/html")
