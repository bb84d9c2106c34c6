"""Files of items to Parquet files of vectors: `embed_files` writes them, `verify`, `read_blocks`, `load_into` read."""

from ._output import Block, load_into, read_blocks, verify
from ._report import Report
from ._rows import Columns
from ._run import embed_files

__all__ = ["Block", "Columns", "Report", "embed_files", "load_into", "read_blocks", "verify"]
