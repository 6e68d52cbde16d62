"""Ask a reasoner until a critic accepts its answer; here the critic is the reward model itself."""

from fsrm_lite import FastSlowRM, ReasoningLoop, RewardCritic, SolveReasoner
from fsrm_lite.loops.reasoners import Sampling

rm = FastSlowRM.from_pretrained()
question = (
    "Mia has 7 pens. Mia finds 8 more. Then Mia loses 4. Then Mia gets 6 from Fay. How many pens does Mia have now?"
)
loop = ReasoningLoop(SolveReasoner(rm), RewardCritic(rm), max_turns=4, sampling=Sampling(temperature=1.2, seed=1))
result = loop.run(question)
for turn in result.turns:
    print("accepted" if turn.accepted else "rejected", f"{turn.score:.2f}", turn.response)
print(result.outcome, result.response)
