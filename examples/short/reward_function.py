"""A reward function for TRL's trainers: GRPOTrainer(reward_funcs=reward, ...)."""

from fsrm_lite.integrations.trl import RewardFunction

reward = RewardFunction()  # judge="never" by default: a training step waits for its rewards
prompt = "Mia has 7 pens. Mia finds 8 more. How many pens does Mia have now?"
completions = ["7 + 8 = 15. The answer is 15 pens.", "The answer is 41 pens.", ""]
for value, completion in zip(reward(prompts=[prompt] * 3, completions=completions), completions, strict=True):
    print(f"{value:.2f}  {completion!r}")
