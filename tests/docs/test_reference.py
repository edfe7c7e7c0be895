from docs.pages.__main__ import FOLDER, PAGES
from docs.pages.markdown import table


def test_the_kept_pages_are_those_of_the_code():
    kept = {path.name: path.read_text() for path in FOLDER.iterdir()}
    assert kept == {name: page() for name, page in PAGES.items()}, "run 'make reference'"


def test_a_stroke_in_a_cell_ends_no_cell():
    assert list(table(["a", "b"], [["x|y", ""]]))[2] == r"| x\|y | |"
