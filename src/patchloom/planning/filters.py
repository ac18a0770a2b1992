"""stub"""
from __future__ import annotations
from typing import Any
import numpy as np
from pydantic import BaseModel
from patchloom.scores import Score
class FilterConfig(BaseModel):
    name: str = "mean"
    threshold: float = 0
    filtered_patch_prob: float = 0.0
    asks_coverage: bool = False
    @property
    def reason(self) -> str: return f"filter {self.name}"
    def scores(self, ndim: int) -> tuple[Score, ...]: return (Score(self.name),)
    def keeps(self, columns: Any, ndim: int) -> Any: return columns[self.name] >= self.threshold
def parse_filters(items: Any) -> tuple[FilterConfig, ...]:
    return tuple(i if isinstance(i, FilterConfig) else FilterConfig(**i) for i in items)
def lucky(p: float, seed: int, which: int, key: int, address: Any) -> Any: return np.zeros(len(address), bool)
