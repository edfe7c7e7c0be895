"""Writes every page of docs/reference; a test holds the files to this."""

from pathlib import Path

from docs.pages import commands, metrics, settings, topics

FOLDER = Path(__file__).parents[1] / "reference"
PAGES = {
    "settings.md": settings.page,
    "commands.md": commands.page,
    "metrics.md": metrics.page,
    "topics.md": topics.page,
}

if __name__ == "__main__":
    for name, page in PAGES.items():
        (FOLDER / name).write_text(page())
