"""What is lost without effects: accuracies after mean-ablation, and where effects take their way.

`accuracy` takes effects away as `readings` read them; `recoding` puts text codes in place of
directions; `attention` ablates whole attention layers; `budget` sets direct, second-order and
indirect effects side by side.
"""
