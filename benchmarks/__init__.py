"""Speed and size, as ratios measured in one process.

`python -m benchmarks [--only=NAME,...] [--json=FILE]` interleaves the two
sides of each ratio, so that whatever else the machine does hits both alike.
"""
