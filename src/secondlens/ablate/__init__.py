"""What is lost without effects: accuracies after mean-ablation, and where effects take their way.

`ablate` takes effects away as one of `readings` or `reference` reads them; `recode` puts text codes
in place of directions; `budget` sets direct, second-order and indirect effects side by side.
"""
