"""Localising a robot from its odometry and ranges: the log, the model, the methods, the report."""
