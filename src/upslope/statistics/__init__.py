"""Intervals, tests and the rule of a comparison: functions of numbers, which know no policies."""
