"""What was measured and planned, as a page to look at and as pictures for papers.

write_report(Path("report.html"), Situation(device, server, Link(5e6, 0.04), Constraints(max_accuracy_drop=1.0)))
write_pictures(Path("figures"), situation)
"""

from .figures import Situation
from .page import render, write_report
from .pictures import write_pictures

__all__ = ["Situation", "render", "write_pictures", "write_report"]
