"""The load generator of split inference: real device processes, a real server, a real or an emulated link.

result = run(BenchOptions(Path("bundles/net"), link="10mbit,20ms", loads=(Load(rate=20),)), progress=lambda *_: None)
print(result.steps[0].stages["latency"].p99)
"""

from .options import BenchOptions, Load, MaxRate, Pace
from .result import BenchResult, Found, Step, write_csv
from .run import run

__all__ = ["BenchOptions", "BenchResult", "Found", "Load", "MaxRate", "Pace", "Step", "run", "write_csv"]
