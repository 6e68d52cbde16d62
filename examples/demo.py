"""What ``make demo`` runs: ranks candidate answers with the embedded model, and shows which part decided what, and why.

The embedded model writes the candidates itself, at a temperature at which some of them are wrong. The first two
questions are chosen to show what the gate is for: there the candidate with the best fast score is wrong. In the first
the judge outweighs it, in the second the scores of the candidates with another answer do. In the last question the best
score is right, and nothing is thought about.
"""

from __future__ import annotations

import argparse
from collections import Counter

from fsrm_lite import FastSlowRM

QUESTIONS = (
    "Ned has 9 books. Then Ned loses 5. Then Ned buys 8. Ned loses 1. Then Ned buys 1. "
    "How many books does Ned have now?",
    "Kim has 17 apples. Then Kim loses 9. Then Kim buys 6. Then Kim buys 7. Kim loses 8. "
    "How many apples does Kim have now?",
    "There are 15 plums. 3 are broken and thrown away. They are shared equally among 4 friends. "
    "Each of the friends then gets 5 more. How many plums does each have?",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--candidates", type=int, default=8, help="samples per question (default: 8)")
    parser.add_argument("--temperature", type=float, default=1.0, help="of the sampling (default: 1.0)")
    parser.add_argument("--threads", type=int, default=None)
    options = parser.parse_args()
    with FastSlowRM.from_pretrained(threads=options.threads) as rm:
        for number, question in enumerate(QUESTIONS):
            show(rm, question, candidates(rm, question, options.candidates, options.temperature, seed=number))


def candidates(rm: FastSlowRM, question: str, count: int, temperature: float, seed: int) -> list[str]:
    """Return answers that the model itself writes; some may be alike."""
    prompt = rm.encoder.solve(question)
    written = rm.judge.generate([prompt], n=count, max_tokens=96, temperature=temperature, seed=seed)[0]
    return [text for text in (g.text.strip() for g in written) if text]


def show(rm: FastSlowRM, question: str, responses: list[str]) -> None:
    """Pick the best response and print how that came about."""
    selection = rm.best_of_n(question, responses)
    print(f"\nQuestion: {question}\n")
    print("  fast score  confidence (intuition, distribution)  candidate")
    counts = Counter(responses)
    for i, (score, response) in enumerate(zip(selection.scores, responses, strict=True)):
        if responses.index(response) < i:
            continue
        print(
            f"  [{i}]  {score.score:5.3f}  "
            f"{score.intuition_confidence:5.3f}, {score.distribution_confidence:5.3f}  {counts[response]} x {response}"
        )
    if not selection.comparisons:
        print("\n  The gate did not fire: the fast scores decide alone, those of one answer together.")
    for match in selection.comparisons:
        a, b = match.pair or (0, 1)
        print(f"\n  [{a}] against [{b}]: {'; '.join(match.reasons)}")
        for vote in match.votes:
            winner = (a, b)[vote.winner]
            order = f"[{b if vote.swapped else a}] shown first"
            print(f"    {order}, votes for [{winner}], p([{a}]) = {vote.p_first:.3f}, {vote.tokens_generated} tokens:")
            print("      " + vote.rationale.strip().replace("\n", " | "))
        print(
            f"    verdict: [{(a, b)[match.winner]}]  "
            f"(the two orders {'agree' if match.orders_agree else 'disagree: the fast score decides'})"
        )
    fast = max(range(len(responses)), key=lambda i: selection.scores[i].score)
    print(f"\n  Best: [{selection.index}] {responses[selection.index]}")
    if fast != selection.index:
        print(f"  The fast score alone would have taken [{fast}] {responses[fast]}")
    print(
        f"  Tokens: {selection.tokens_read} read, {selection.tokens_generated} generated "
        f"in {len(selection.comparisons)} slow comparisons"
    )


if __name__ == "__main__":
    main()
