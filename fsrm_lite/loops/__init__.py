"""A reasoner that writes answers, a critic that accepts or rejects them, and the loop between the two.

The method is DRR (Distillation-Reinforcement-Reasoning, arXiv 2501.01457): a small critic is trained on a reasoner's
own answers to questions with known results, and then tells the reasoner when to try again.

==================  ================================================================================
``reasoners``       whatever writes answers: a function, the bundle itself, an HTTP endpoint
``gguf_reasoner``   a bare GGUF file as a reasoner
``opening``         a reasoner by its name on the command line
``distill``         a reasoner's own answers, labelled by the known result: the training data of a critic
``critic``          whatever accepts or rejects an answer: the reward model, a fitted head, the reasoner
``critic_inputs``   what a fitted head reads of an answer, made by the fast model
``loop``            propose, review, tell the reasoner, try again, stop or abstain
==================  ================================================================================
"""
