"""How MacroEval's thresholds are measured: what is a model's own noise, and from where on its answers are unusable."""
