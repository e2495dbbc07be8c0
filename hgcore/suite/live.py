"""What running notebooks show a person: one live line each on a terminal, a rare plain line in a
log file.
"""

import time

from tqdm import tqdm


class Watch:
    """One running notebook as seen from outside: its cell.

    `enter` is nbclient's on_cell_execute hook.
    """

    def __init__(self, name, cells):
        self.name, self.cells = name, cells
        self.cell, self.id = 0, ""
        self.over = False
        self.began = self.spoke = time.perf_counter()

    def enter(self, cell, cell_index):
        self.cell, self.id = self.cell + 1, cell.get("id", "")

    @property
    def seconds(self):
        return time.perf_counter() - self.began

    @property
    def place(self):
        """The running cell as the saved notebook numbers it, with its id: `cell In [3] (compute)`;
        empty before the first and after the last.
        """
        if self.over or not self.cell:
            return ""
        return f"cell In [{self.cell}]" + (f" ({self.id})" if self.id else "")

    def line(self):
        where = f"cell {self.cell} of {self.cells}" if self.cell else "starting"
        return f"{self.name:<40}  {self.seconds:5.0f} s  {where}"


class Bars:
    """Live lines at the bottom of a terminal, one for each running notebook."""

    def __init__(self, stream, slots):
        self.stream = stream
        self.bars = [
            tqdm(bar_format="{desc}", position=slot, leave=False, file=stream, dynamic_ncols=True)
            for slot in range(slots)
        ]

    def show(self, watches):
        for slot, bar in enumerate(self.bars):
            bar.set_description_str(watches[slot].line() if slot < len(watches) else "")

    def say(self, line):
        tqdm.write(line, file=self.stream)

    def close(self):
        for bar in reversed(self.bars):
            bar.close()


class Lines:
    """Plain lines for a log: at most one in `every` seconds for each running notebook."""

    def __init__(self, stream, every=10.0):
        self.stream, self.every = stream, every

    def show(self, watches):
        for watch in watches:
            if time.perf_counter() - watch.spoke >= self.every:
                watch.spoke = time.perf_counter()
                self.say(f"  running    {watch.seconds:8.1f} s  {watch.line()}")

    def say(self, line):
        print(line, file=self.stream, flush=True)

    def close(self):
        pass


def board(stream, slots):
    """The display that suits the stream: Bars on a terminal, else Lines."""
    return Bars(stream, slots) if stream.isatty() else Lines(stream)
