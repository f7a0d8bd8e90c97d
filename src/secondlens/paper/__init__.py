"""The paper, reproduced: its tables and figures, a file for each, listed in `registry`.

Each is a function from a `Study` to a `Result`. Figures 3 and 9 to 12 draw the `curves` of ablated
layers; Tables 2 and 5 and Figure 5 show the same kind of `neurons`.
"""
