"""Loaders of event logs: Taobao, JData, RetailRocket, REES46, and CSV, JSON Lines or Parquet by a column mapping.

In: a file (gzipped or not) or a directory of files. Out: `Log`, which yields (line, ClickEvent), or `LogColumns` by
`read_columns`; both come from the same cleaned blocks. Nothing is dropped silently: `log.problems` counts it.
"""

from model.datasets.arguments import add_log_arguments, log_from_args
from model.datasets.columns import ColumnReader, LogColumns, event_time_order, read_columns
from model.datasets.formats import FORMATS, Format, LogError
from model.datasets.log import Block, Log, LogOptions, read_log
from model.datasets.problems import Problem, Problems, Reason
from model.datasets.values import TimeUnit

__all__ = [
    "FORMATS", "Block", "ColumnReader", "Format", "Log", "LogColumns", "LogError", "LogOptions", "Problem", "Problems",
    "Reason", "TimeUnit", "add_log_arguments", "event_time_order", "log_from_args", "read_columns", "read_log",
]  # fmt: skip
