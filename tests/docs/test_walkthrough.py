"""The walkthrough runs as it stands there, and its table is that of the files."""

import re

import pytest
from pages import WALKTHROUGH, run_page, working_in

from benchmarks.walkthrough import counting

PAGE = WALKTHROUGH.read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_walkthrough_runs(tmp_path, preloaded):
    with working_in(tmp_path / "work", preloaded.command):
        assert run_page(WALKTHROUGH) == []


def test_the_table_is_that_of_the_files():
    assert counting.written(PAGE) == PAGE, "write it anew: python -m benchmarks.walkthrough"


def test_no_tool_needs_fewer_lines_for_nearly_all_tasks():
    fewest, tasks = map(int, re.search(r"Fewest lines here: (\d+) of (\d+)", PAGE).groups())
    assert tasks == 20
    assert fewest >= 17


PYTHON = '''"""Text."""
import os
from a import (
    b,
)


def f(x):
    """Text.

    More."""
    # why
    return os.path.join(
        x, b(x)
    )
'''
SECTION = """<!-- scene -->
```bash
rm x
```

```bash
a | b
# why
c
```

```python
>>> import os
>>> for x in f(1):
...     g(x)
>>> g(2)
3
```
"""


def test_lines_are_counted_alike():
    assert counting.count_python(PYTHON) == (4, 2)
    assert counting.count_section(SECTION) == (4, 5)


def test_lines_of_the_page_are_no_longer_than_those_of_the_others():
    for _, text in counting.sections():
        for _, _, code in counting.FENCES.findall(text):
            assert all(len(line.removeprefix(">>> ")) <= 115 for line in code.splitlines())
