"""The RL Zoo's files of tuned settings, read as they stand; nothing in them is evaluated."""

from upslope.config.zoo.entry import ZooEntry, read_zoo
from upslope.config.zoo.files import algorithm_of

__all__ = ["ZooEntry", "algorithm_of", "read_zoo"]
