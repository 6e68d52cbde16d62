"""Choose a gate from labelled pairs: at most 5 % wrong among those that the fast path decides alone."""

from fsrm_lite import FastSlowRM
from fsrm_lite.measure.calibration import Goal, calibrate
from fsrm_lite.measure.labelled import LabelledItem
from fsrm_lite.models.data import held_out

rm = FastSlowRM.from_pretrained()
pairs = held_out("calibration", 300)
fast = rm.compare_many([(p.problem.question, p.chosen.text, p.rejected.text) for p in pairs], judge="never")
items = [LabelledItem.from_comparison(str(i), comparison, label=0) for i, comparison in enumerate(fast)]
found = calibrate(items, Goal(risk=0.05, confidence=0.9), resamples=50)
print(found.report["guarantee"]["statement"])
print(found.gate)
