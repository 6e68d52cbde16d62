"""Order responses by score, each for itself."""

from fsrm_lite import FastSlowRM

rm = FastSlowRM.from_pretrained()
prompt = "Mia has 7 pens. Mia finds 8 more. How many pens does Mia have now?"
for entry in rm.rank(prompt, ["16 pens", "15 pens", "15 cups"]):
    print(f"{entry['score']:.2f}  {entry['text']}")
