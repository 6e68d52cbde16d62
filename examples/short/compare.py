"""Compare two responses, and show what the judge thought if it was asked."""

from fsrm_lite import FastSlowRM

rm = FastSlowRM.from_pretrained()
prompt = "Mia has 7 pens. Mia finds 8 more. How many pens does Mia have now?"
responses = ("15 pens", "16 pens")
comparison = rm.compare(prompt, *responses)
print("better:", responses[comparison.winner], " decided by the path:", comparison.route)
print("why the judge was asked:", "; ".join(comparison.reasons) or "it was not")
print(comparison.rationale)
