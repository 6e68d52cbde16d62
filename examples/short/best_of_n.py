"""Let the model answer eight times, and choose the best answer, thinking where the gate asks for it."""

from fsrm_lite import FastSlowRM, SolveReasoner
from fsrm_lite.loops.reasoners import Sampling, Task

rm = FastSlowRM.from_pretrained()
prompt = (
    "Mia has 7 pens. Mia finds 8 more. Then Mia loses 4. Then Mia gets 6 from Fay. How many pens does Mia have now?"
)
proposals = SolveReasoner(rm).propose([Task(prompt)], Sampling(n=8, temperature=1.0))[0]
candidates = [proposal.text for proposal in proposals]
selection = rm.best_of_n(prompt, candidates)
print("best:", candidates[selection.index])
print(len(candidates), "candidates,", len(selection.comparisons), "matches")
