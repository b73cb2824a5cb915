"""What the experiments of `bayesinf reproduce` share: their protocol, and densities on the line."""

from bayesinf.reproduce.protocol import OURS, Row, mean_and_interval, table, timed, write

__all__ = ["OURS", "Row", "mean_and_interval", "table", "timed", "write"]
