"""Executes the notebook of the documentation again and keeps its outputs.

make demo
.venv/bin/python docs/scripts/execute_notebook.py       (in the folder that demo-workspace is in)

docs/notebook/read_run.ipynb    the cells are written there; this script only fills in what they print
"""

from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[1] / "notebook" / "read_run.ipynb"
SECONDS = 300  # for a cell


def main() -> None:
    """Executes the notebook here and writes it."""
    nbformat.write(executed(nbformat.read(NOTEBOOK, 4), Path.cwd()), NOTEBOOK)


def executed(notebook: nbformat.NotebookNode, folder: Path) -> nbformat.NotebookNode:
    """The notebook with the outputs that its cells have in a folder, without times."""
    NotebookClient(notebook, timeout=SECONDS, resources={"metadata": {"path": str(folder)}}).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
    return notebook


if __name__ == "__main__":
    main()
