"""Score responses one by one: how good is each of them?"""

from fsrm_lite import FastSlowRM

rm = FastSlowRM.from_pretrained()  # the embedded model; or a folder; or "org/name"
prompt = "Mia has 7 pens. Mia finds 8 more. How many pens does Mia have now?"
responses = ["The answer is 15 pens.", "The answer is 16 pens.", "The answer is 41 pens."]
for response, score in zip(responses, rm.score_many([(prompt, r) for r in responses]), strict=True):
    print(f"{score.score:.2f}  {score.route}  {response}")
