"""Parts of the judge: many thoughts at once, how tokens are drawn, what votes mean, where the engine runs."""
